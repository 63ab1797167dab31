"""The main job and its baseline, by the commands a user types, and what the search was worth.

    python benchmarks/split_digits.py --folder demo                 one seed; `make demo` runs this
    python benchmarks/split_digits.py --folder runs --seeds 0 1 2   a row per seed

Per seed: the sweep of conf/experiment/split_digits.yaml, and plain sequential fine-tuning with one
fixed setting and without penalties (conf/experiment/split_digits_plain.yaml). Both chains start
from the same seed and are selected on dev data; test data is only reported. A folder that holds a
finished sweep is not run again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from autocl_sweeper.journal import fold, read

ROOT = Path(__file__).resolve().parent.parent
TASKS = "digits_01,digits_23,digits_45,digits_67,digits_89"


@dataclass(frozen=True)
class Result:
    jobs: int
    seconds: float  # of the command; about 0 when the sweep was finished before
    dev: float  # average accuracy of the best chain
    test: float
    worst: float  # dev accuracy of the worst chain through the last stage


def run(experiment: str, seed: int, folder: Path) -> Result:
    command = [
        sys.executable, "train.py", "-m", f"experiment={experiment}", f"task={TASKS}",
        f"seed={seed}", f"evaluation.split_seed={seed}", f"hydra.sweep.dir={folder}",
    ]  # fmt: skip
    print(f"\n$ {shlex.join(['python', *command[1:]])}", flush=True)
    start = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = time.monotonic() - start
    told = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    history = fold(read(folder)).history
    last = [t.score for t in history.stage(told["stages"]) if t.score is not None]
    return Result(
        jobs=len(history),
        seconds=seconds,
        dev=told["metrics"]["eval"]["average_accuracy"],
        test=told["metrics"]["test"]["average_accuracy"],
        worst=min(last),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the sweeps go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        folder = options.folder.absolute() / f"seed_{seed}"
        swept = run("split_digits", seed, folder / "sweep")
        rows.append((seed, swept, run("split_digits_plain", seed, folder / "plain")))

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in (
        "seed", "best chain (dev)", "worst chain (dev)", "spread",
        "best chain (test)", "plain (test)", "gain (test)", "jobs", "seconds",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for seed, swept, plain in rows:
        table.add_row(
            str(seed),
            *(f"{n:.3f}" for n in (swept.dev, swept.worst, swept.dev - swept.worst)),
            *(f"{n:.3f}" for n in (swept.test, plain.test, swept.test - plain.test)),
            f"{swept.jobs} + {plain.jobs}",
            f"{swept.seconds:.0f} + {plain.seconds:.0f}",
        )
    print("\nAverage accuracy over the five tasks after the last one")
    Console().print(table)
    print("worst chain: the lowest that a setting of the search brought a surviving chain to")


if __name__ == "__main__":
    main()
