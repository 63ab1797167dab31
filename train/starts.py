"""What each kind of start was worth in a sweep, task by task.

    python -m train.starts <hydra.sweep.dir>

A row is a kind of start of a task: the parent's own, or what `merge.init` made. Columns: trials; dev score before
the first update, after 50 and after 200 (where the jobs validated there: trainer.eval_on_start=true
trainer.eval_strategy=steps trainer.eval_steps=50) and at the end, all of the start's best trial; updates until
it was as good as the best trial that goes on from its parent; forward transfer, the score before the first
update minus that of a random start; seconds of jobs, and of them those that merging took. starts.json in the
folder has the same.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from autocl_sweeper.errors import AutoCLError
from train.merge.plan import write_whole

TABLE, BEST, NAME = "trials.csv", "optimization_results.yaml", "starts.json"
LAST = "last"
AT = (0, 50, 200)


class StartsError(AutoCLError):
    """A folder whose starts cannot be compared."""


@dataclass(frozen=True)
class Trial:
    """A finished trial and its validations."""

    task: str
    stage: int
    start: str
    score: float
    by_step: Mapping[int, float]  # updates -> dev score of its own task
    seconds: float
    seconds_merge: float


@dataclass(frozen=True)
class Row:
    """One kind of start of one task."""

    stage: int
    task: str
    start: str
    trials: int
    after: Mapping[int, float | None]  # updates -> dev score
    end: float
    updates_to_last: int | None  # until it was as good as the best trial with its parent's start
    forward_transfer: float | None
    seconds: float
    seconds_merge: float


def trials_of(folder: Path) -> tuple[list[Trial], bool]:
    """The finished trials of a sweep, and whether a higher score is better. Raises StartsError."""
    try:
        with (folder / TABLE).open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["state"] == "COMPLETE"]
        direction = yaml.safe_load((folder / BEST).read_text())["direction"]
    except (OSError, KeyError, TypeError) as error:
        raise StartsError(f"{folder}: holds no sweep of hydra/sweeper=autocl: {error}") from error
    return [_trial(folder / row["folder"], row) for row in rows], direction == "maximize"


def _trial(job: Path, row: Mapping[str, str]) -> Trial:
    config: Any = yaml.safe_load((job / ".hydra/config.yaml").read_text())
    merge = config.get("merge") or {}
    inits = merge.get("init") or LAST
    inits = [inits] if isinstance(inits, str) else inits
    if merge.get("extra_parents"):
        start = [LAST, *inits][int(row.get("extra") or 0)]
    else:
        start = inits[0]
    state = job / "trainer_state.json"  # an untrained job has none
    log = json.loads(state.read_text())["log_history"] if state.is_file() else []
    by_step = {int(one["step"]): float(one["eval_score"]) for one in log if "eval_score" in one}
    return Trial(
        row["task"], int(row["stage"]), start, float(row["score"]), by_step, float(row["seconds"]),
        float(row.get("seconds_merge") or 0),
    )  # fmt: skip


def compared(trials: Sequence[Trial], maximize: bool = True) -> list[Row]:
    """A row per stage and start, of the stages that have more than one start."""
    rows, sign = [], 1 if maximize else -1
    for stage in sorted({one.stage for one in trials}):
        own = [one for one in trials if one.stage == stage]
        best = {
            start: max((t for t in own if t.start == start), key=lambda t: sign * t.score)
            for start in dict.fromkeys(one.start for one in own)
        }
        if len(best) < 2:
            continue
        last = max(best[LAST].by_step.values(), default=None) if LAST in best else None
        untrained = best["random"].by_step.get(0) if "random" in best else None
        for start, one in best.items():
            same = [t for t in own if t.start == start]
            reached = [s for s, v in sorted(one.by_step.items()) if last is not None and v >= last]
            begin = one.by_step.get(0)
            rows.append(
                Row(
                    stage, one.task, start, len(same), {n: one.by_step.get(n) for n in AT}, one.score,
                    reached[0] if reached else None,
                    None if begin is None or untrained is None else begin - untrained,
                    sum(t.seconds for t in same), sum(t.seconds_merge for t in same),
                )
            )  # fmt: skip
    return rows


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def table(rows: Sequence[Row]) -> str:
    heads = ("stage", "task", "start", "trials", *(f"after {n}" for n in AT), "end", "updates to last",
             "forward transfer", "seconds", "of them merging")  # fmt: skip
    cells = [
        (str(r.stage), r.task, r.start, str(r.trials), *(shown(r.after[n]) for n in AT), shown(r.end),
         "-" if r.updates_to_last is None else str(r.updates_to_last), shown(r.forward_transfer),
         f"{r.seconds:.1f}", f"{r.seconds_merge:.1f}")
        for r in rows
    ]  # fmt: skip
    lines = [heads, *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    folder = Path(argv[0]).absolute()
    try:
        rows = compared(*trials_of(folder))
    except (AutoCLError, OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if not rows:
        print(f"{folder}: no task has trials with different starts (merge.init)")
        return 0
    write_whole(folder / NAME, json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
