"""O-LoRA beside SeqLoRA through three text tasks on a pretrained model, at equal cost.

    python benchmarks/text_chain.py --folder demo-text               one seed; `make demo-text` runs this
    python benchmarks/text_chain.py trainer.learning_rate=1e-3 --folder runs --seeds 0 1 2    means, intervals

Per seed and method the sweep of conf/experiment/text_minilm.yaml, or of another --experiment: the same tasks,
settings and number of jobs, selected on dev rows; test rows are evaluated once, at the end. A folder
that holds a finished sweep is not run again. What is missing of models and texts: python -m train.models.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from autocl_sweeper.compare import LEVEL, t_quantile

ROOT = Path(__file__).resolve().parent.parent
METHODS = {"O-LoRA": "lora", "SeqLoRA": "seqlora"}
METRICS = ("average_accuracy", "backward_transfer", "forgetting")


@dataclass(frozen=True)
class Chain:
    """The best chain of a sweep: test accuracies after each task, on that one and those before it."""

    tasks: Sequence[str]
    matrix: Sequence[Sequence[float]]
    metrics: dict[str, float]


def run(experiment: str, delta: str, seed: int, folder: Path, more: Sequence[str]) -> Chain:
    command = [
        sys.executable, "train.py", "-m", "hydra/sweeper=autocl", f"experiment={experiment}",
        f"delta={delta}", f"seed={seed}", f"hydra.sweep.dir={folder}", *more,
    ]  # fmt: skip
    print(f"\n$ {shlex.join(['python', *command[1:]])}", flush=True)
    start = time.monotonic()
    if not (folder / "test_results.json").is_file():
        subprocess.run(command, cwd=ROOT, check=True)
    print(f"{time.monotonic() - start:.0f} s", flush=True)
    best = json.loads((folder / "test_results.json").read_text())["chains"][0]
    return Chain(best["tasks"], best["matrix"], best["metrics"])


def mean(values: Sequence[float]) -> str:
    """The mean, and half the width of its t-interval."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    t = t_quantile((1 + LEVEL) / 2, len(values) - 1)
    return f"{fmean(values):.3f} +- {t * stdev(values) / len(values) ** 0.5:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the sweeps go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--experiment", default="text_minilm")
    parser.add_argument("overrides", nargs="*", help="of both sweeps")
    options = parser.parse_args()
    found: dict[str, list[Chain]] = {name: [] for name in METHODS}
    for seed in options.seeds:
        for name, delta in METHODS.items():
            folder = options.folder.absolute() / f"seed_{seed}" / name
            found[name].append(run(options.experiment, delta, seed, folder, options.overrides))

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for seed, *chains in zip(options.seeds, *found.values(), strict=True):
        title = f"Accuracy on test rows, seed {seed}"
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title)
        table.add_column("after")
        for name, chain in zip(METHODS, chains, strict=True):
            for task in chain.tasks:
                table.add_column("\n".join([name, *task.split("_")]), justify="right")
        for i, task in enumerate(chains[0].tasks):
            cells = [f"{row:.3f}" for c in chains for row in c.matrix[i]]
            blank = [""] * (len(chains[0].tasks) - i - 1)
            table.add_row(task, *cells[: i + 1], *blank, *cells[i + 1 :], *blank)
        console.print(table)
    table = Table(box=SIMPLE_HEAD)
    table.add_column(f"{len(options.seeds)} seed(s)")
    for name in (*METHODS, "difference"):
        table.add_column(name, justify="right")
    for metric in METRICS:
        ours, theirs = ([chain.metrics[metric] for chain in found[name]] for name in METHODS)
        apart = [a - b for a, b in zip(ours, theirs, strict=True)]
        table.add_row(metric.replace("_", " "), mean(ours), mean(theirs), mean(apart))
    console.print(table)
    if len(options.seeds) > 1:
        print(f"+-: half the width of the {LEVEL:.0%} t-interval over seeds")


if __name__ == "__main__":
    main()
