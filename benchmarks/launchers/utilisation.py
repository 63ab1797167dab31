"""How busy a sweep keeps its devices: order of jobs, and stages that begin early.

    python benchmarks/launchers/utilisation.py            in virtual time, 200 seeds, seconds long
    python benchmarks/launchers/utilisation.py --real     and with processes that sleep, minutes long

Jobs are heavy-tailed: lognormal with sigma 1, as training runs of a search are. Every figure is the
span of the jobs themselves over a bound that no launcher can beat or a rule on paper, so what the
machine does besides matters little; the real run still wants it idle.
"""

from __future__ import annotations

import argparse
import heapq
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from unittest import mock

from autocl_sweeper.display.progress import LogProgress
from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.order import Work
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.plan import Plan, Settings
from autocl_sweeper.results.early import waste
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.sequential import SequentialTopK, Stage
from autocl_sweeper.sweep import books
from autocl_sweeper.sweep.loop import Sweep
from autocl_sweeper.types import Job, Outcome, State
from hydra_plugins.hydra_autocl_sweeper._schema import AutoCLSweeperConf

DEVICES = 8
JOBS = 40  # of a stage
STAGES = 4
STAGE_JOBS = (10, 16, 40)  # jobs of each stage of a tree
BEAM = 2

DEFAULTS = asdict(AutoCLSweeperConf(top_k=BEAM, handover={"parent": "parent"}))
SETTINGS = Settings(**{field.name: DEFAULTS[field.name] for field in fields(Settings)})


def sleeps(seed: int | str, count: int = JOBS) -> list[float]:
    """Durations in seconds whose sum is 1.5 per job."""
    dice = random.Random(f"sleeps/{seed}")
    drawn = [dice.lognormvariate(0, 1) for _ in range(count)]
    return [round(1.5 * count * one / sum(drawn), 3) for one in drawn]


def first_in_first_out(durations: Sequence[float]) -> float:
    """The span of jobs that start as submitted on the device that frees first, without overhead."""
    free = [0.0] * DEVICES
    for seconds in durations:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def bound(durations: Sequence[float]) -> float:
    """No order on these devices takes less."""
    return max(sum(durations) / DEVICES, max(durations))


class Tree:
    """A sweep in virtual time; `durations[stage - 1][suggestion]`, the same for every parent."""

    def __init__(
        self, durations: Sequence[Sequence[float]], seed: int, pipeline: bool, known: float | None
    ) -> None:
        """`known`: jobs go longest first by their duration, known up to this lognormal error."""
        dice = random.Random(f"errors/{seed}")
        stages = []
        for number, row in enumerate(durations, start=1):
            params = [
                {"seconds": s, "guess": s * dice.lognormvariate(0, known or 0), "index": i}
                for i, s in enumerate(row)
            ]
            stages.append(Stage(number, f"task{number}", ListedSearch(params)))
        tasks = {stage.task: stage.task for stage in stages}
        work = None if known is None else Work({"guess"})
        strategy = SequentialTopK(stages, TopK(BEAM), pipeline, work)
        plan = Plan(SETTINGS, strategy, tasks, {"task": None}, True, {}, {})
        self._seed = seed
        self._chains: dict[str, str] = {"": ""}
        executor = SimulatedExecutor(DEVICES, self._run)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "sweep")
            files = JobFiles.of(folder)
            self.history = Sweep(folder, plan, executor, files, LogProgress()).run()
        self.span_s = executor.clock_s
        begins = [span.begin_s for span in executor.busy]
        # Work exists until the last job has started; what comes then is the end of the last one.
        worked = max(begins)
        busy = sum(min(span.end_s, worked) - span.begin_s for span in executor.busy)
        self.idle_share = max(0.0, 1 - busy / (DEVICES * worked)) if worked else 0.0
        self.wasted_share = waste(self.history).share

    def _run(self, job: Job) -> Outcome:
        """The score comes from the chain of suggestions, so that every way to run it agrees."""
        given = dict(text.partition("=")[::2] for text in job.overrides)
        chain = f"{self._chains[given.get('parent', '')]}/{given['index']}"
        self._chains[str(job.number)] = chain
        score = random.Random(f"{self._seed}{chain}").random()
        seconds = float(given["seconds"])
        return Outcome(State.COMPLETE, numbers={"score": score}, returned="float", seconds=seconds)


def virtual(seeds: int) -> None:
    print(f"One stage, {JOBS} jobs, {DEVICES} devices, {seeds} seeds, in virtual time")
    fifo, longest, guessed, paper = [], [], [], []
    for seed in range(seeds):
        row = sleeps(seed)
        fifo.append(Tree([row], seed, False, None).span_s / first_in_first_out(row))
        paper.append(first_in_first_out(row) / bound(row))
        longest.append(Tree([row], seed, False, 0.0).span_s / bound(row))
        guessed.append(Tree([row], seed, False, 0.4).span_s / bound(row))
    table(
        ("order", "against", "median", "worst"),
        [
            ("submitted", "first in, first out on paper", *middle_and_worst(fifo)),
            ("first in, first out on paper", "max(sum/8, longest)", *middle_and_worst(paper)),
            ("longest, durations known", "max(sum/8, longest)", *middle_and_worst(longest)),
            ("longest, known within 40 %", "max(sum/8, longest)", *middle_and_worst(guessed)),
        ],
    )
    print(f"\n{STAGES} stages, beam {BEAM}, against the best possible with barriers:")
    print("the sum over the stages of max(sum/8, longest)")
    rows = []
    for jobs in STAGE_JOBS:
        trees = [stages_of(seed, jobs) for seed in range(seeds)]
        least = [without_barriers(durations) / with_barriers(durations) for durations in trees]
        row = ("sum of all / 8, which nothing beats", *middle_and_worst(least), "0.0%", "0.0%")
        rows.append((str(jobs), *row))
        for name, pipeline, known in (
            ("barriers, submitted", False, None),
            ("barriers, longest, durations known", False, 0.0),
            ("pipelined, submitted", True, None),
            ("pipelined, longest, known within 40 %", True, 0.4),
            ("pipelined, longest, durations known", True, 0.0),
        ):
            ratios, idle, wasted = [], [], []
            for seed, durations in enumerate(trees):
                tree = Tree(durations, seed, pipeline, known)
                ratios.append(tree.span_s / with_barriers(durations))
                idle.append(tree.idle_share)
                wasted.append(tree.wasted_share)
            shares = [f"{statistics.mean(s):.1%}" for s in (idle, wasted)]
            rows.append((str(jobs), name, *middle_and_worst(ratios), *shares))
    table(("jobs a stage", "", "median", "worst", "idle while work exists", "given up"), rows)


def stages_of(seed: int, jobs: int) -> list[list[float]]:
    return [sleeps(f"{seed}/{i}", jobs if i == 0 else jobs // BEAM) for i in range(STAGES)]


def jobs_of(stages: Sequence[Sequence[float]]) -> list[list[float]]:
    """The first stage has one parent, the others have two."""
    return [[s for s in row for _ in range(BEAM if i else 1)] for i, row in enumerate(stages)]


def with_barriers(stages: Sequence[Sequence[float]]) -> float:
    return sum(map(bound, jobs_of(stages)))


def without_barriers(stages: Sequence[Sequence[float]]) -> float:
    return sum(map(sum, jobs_of(stages))) / DEVICES


def middle_and_worst(ratios: Sequence[float]) -> tuple[str, str]:
    return f"{statistics.median(ratios):.3f}", f"{max(ratios):.3f}"


# -- processes that sleep -----------------------------------------------------------------------------

APP = """
import json, os, random, time
import hydra
from hydra.core.config_store import ConfigStore

ConfigStore.instance().store(name="config", node={"seconds": 0.0, "task": "one"})

@hydra.main(version_base=None, config_name="config")
def main(cfg):
    begin = time.monotonic()
    time.sleep(cfg.seconds)
    span = {"begin": begin, "end": time.monotonic()}
    with open(os.environ["SPANS"], "a") as file:
        file.write(json.dumps(span) + chr(10))
    return random.Random(f"{cfg.task}/{cfg.seconds}").random()

main()
"""


def real(repeats: int) -> None:
    """Through Hydra, from a warm process: the span from the first user code to the last."""
    rows = []
    for repeat in range(repeats):
        row = sleeps(repeat)
        listed = ",".join(map(str, row))
        for order in ("submitted", "longest"):
            spans = launched(f"seconds={listed}", f"hydra.launcher.order={order}")
            span = max(s["end"] for s in spans) - min(s["begin"] for s in spans)
            assert len(spans) == JOBS
            against = first_in_first_out(row) if order == "submitted" else bound(row)
            name = "first in, first out" if order == "submitted" else "max(sum/8, longest)"
            rows.append((order, str(repeat), f"{span:.2f}", name, f"{span / against:.3f}"))
    print(f"\nThe same jobs as processes that sleep, forked from a warm one, {DEVICES} CPU slots")
    table(("order", "seed", "span s", "against", "ratio"), rows)
    rows = []
    for repeat in range(repeats):
        stages = stages_of(repeat, STAGE_JOBS[0])
        params = {f"t{i}": [{"seconds": s} for s in row] for i, row in enumerate(stages)}
        for pipeline in (False, True):
            spans = launched(
                "hydra/sweeper=autocl",
                f"task={','.join(params)}",
                *(
                    f"+hydra.sweeper.task_params.{task}={hydra_list(p)}"
                    for task, p in params.items()
                ),
                f"hydra.sweeper.pipeline={pipeline}",
                "hydra.sweeper.handover.init_from=null",
                f"hydra.sweeper.top_k={BEAM}",
            )
            span = max(s["end"] for s in spans) - min(s["begin"] for s in spans)
            ratio = span / with_barriers(stages)
            rows.append(("on" if pipeline else "off", str(repeat), f"{span:.2f}", f"{ratio:.3f}"))
    print(f"\n{STAGES} stages of {STAGE_JOBS[0]} jobs, beam {BEAM}, longest first,")
    print("against the best possible with barriers")
    table(("pipeline", "seed", "span s", "ratio"), rows)


def hydra_list(suggestions: Sequence[Mapping[str, float]]) -> str:
    inner = ",".join(
        "{" + ",".join(f"{key}:{value}" for key, value in one.items()) + "}" for one in suggestions
    )
    return f"[{inner}]"


def launched(*arguments: str) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as scratch:
        app = Path(scratch, "app.py")
        app.write_text(APP)
        environment = {
            **os.environ,
            "SPANS": f"{scratch}/spans",
            "AUTOCL_LEASE_DIR": f"{scratch}/leases",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        command = [
            sys.executable, str(app), "-m", "hydra/launcher=gpu", "hydra.launcher.warm=true",
            f"hydra.launcher.cpu_slots={DEVICES}", "hydra.launcher.duration_keys=[seconds]",
            f"hydra.sweep.dir={scratch}/sweep", *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        return [json.loads(line) for line in Path(scratch, "spans").read_text().splitlines()]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="also with processes that sleep")
    parser.add_argument("--seeds", type=int, default=200, help="of the virtual part")
    parser.add_argument("--repeats", type=int, default=4, help="of the real part")
    options = parser.parse_args()
    logging.disable()
    versions = ", ".join(f"{name} {version(name)}" for name in ("hydra-core", "omegaconf"))
    print(f"Python {sys.version.split()[0]}, {versions}, {os.cpu_count()} cores")
    with (  # virtual time does not wait for a disk
        mock.patch("os.fsync"),
        mock.patch.object(books, "write_best"),
        mock.patch.object(books, "write_table"),
    ):
        virtual(options.seeds)
    if options.real:
        real(options.repeats)


if __name__ == "__main__":
    main()
