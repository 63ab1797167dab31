"""How runs are measured so that they can be compared: interleaved, from an equal start, on a quiet card."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.memory.cards import Card, Watch

RESULTS = "results.jsonl"
WINDOW = 20  # steps of the fixed load whose median is compared
SETTLED = 0.01  # share by which it may still change
NEAR_C = 3  # degrees between the starts of cooled runs


@dataclass(frozen=True)
class Job:
    """One thing to measure. `act` gets a folder of its own and returns numbers."""

    task: str
    method: str
    act: Callable[[Path], dict[str, Any]]


class NotSettled(Exception):
    """The card did not come to the start that all runs share."""


def warm(
    load: Callable[[], float],
    quiet_s: float,
    limit_s: float,
    wanted: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> float:
    """Run a fixed load until the median of 20 steps changes by less than 1 % for `quiet_s`; that median.

    load: one step; its seconds. wanted: the median of an earlier start, which is enough once reached.
    Raises NotSettled after `limit_s`.
    """
    began = since = clock()
    reference: float | None = None
    while True:
        now = median(load() for _ in range(WINDOW))
        if wanted is not None and abs(now / wanted - 1) < SETTLED:
            return now
        if reference is None or abs(now / reference - 1) >= SETTLED:
            reference, since = now, clock()
        elif wanted is None and clock() - since >= quiet_s:
            return now
        if clock() - began >= limit_s:
            raise NotSettled(
                f"the median of {WINDOW} steps of the fixed load is {now * 1000:.2f} ms and still changes "
                f"by 1 % or more after {limit_s:g} s. Other work may run on this machine; see "
                "python -m benchmarks.memory gpus"
            )


def cool(
    temperature: Callable[[], int | None],
    first: int,
    limit_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Sleep until the card is within 3 C of the start of the first run. Raises NotSettled."""
    waited = 0.0
    while (now := temperature()) is not None and abs(now - first) > NEAR_C:
        if waited >= limit_s or now < first:
            raise NotSettled(
                f"the card has {now} C after {waited:g} s, the first run began at {first} C"
            )
        sleep(5.0)
        waited += 5.0


def interleaved(jobs: Sequence[Job], repeats: int) -> Iterator[tuple[int, Job]]:
    """A B C A B C: every method once before any comes again."""
    for repeat in range(1, repeats + 1):
        for job in jobs:
            yield repeat, job


def measure(
    jobs: Sequence[Job],
    repeats: int,
    folder: Path,
    facts: dict[str, Any],
    reader: Callable[[], Card] | None = None,
    before: Callable[[], None] = lambda: None,
    limit_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[dict[str, Any]]:
    """Run the jobs in turns and append a line of each to results.jsonl; the lines.

    reader: reads the one card all runs are on; None on the CPU. before: brings it to the start of a
    run. A run beside which others compute is void: it is kept as such and once run again. limit_s: no
    run begins that would last longer; those are written as left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = None if limit_s is None else clock() + limit_s
    longest: dict[tuple[str, str], float] = {}
    lines: list[dict[str, Any]] = []

    def keep(repeat: int, job: Job, **values: Any) -> None:
        line = {"task": job.task, "method": job.method, "repeat": repeat, **facts, **values}
        lines.append(line)
        with (folder / RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    for repeat, job in interleaved(jobs, repeats):
        for again in ("", ".again"):
            began = clock()
            expected = longest.get((job.task, job.method), max(longest.values(), default=0.0))
            if end is not None and began + expected > end:
                keep(repeat, job, left_out=f"no time: it takes {expected:.0f} s")
                break
            before()
            watch = Watch(reader)
            with watch:
                numbers = job.act(folder / f"{job.task}-{job.method}-{repeat}{again}")
            took = clock() - began
            longest[job.task, job.method] = max(took, longest.get((job.task, job.method), 0.0))
            looks = watch.looks and {
                "card_before": dataclasses.asdict(watch.looks[0]),
                "card_after": dataclasses.asdict(watch.looks[-1]),
                "temperature_c": [one.temperature_c for one in watch.looks],
                "clock_mhz": [one.clock_mhz for one in watch.looks],
            }
            keep(repeat, job, **numbers, **(looks or {}), void=watch.void)
            if not watch.void:
                break
    return lines
