"""What a sweep prints at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autocl_sweeper import results
from autocl_sweeper.plan import Plan
from autocl_sweeper.report.progress import settings_text
from autocl_sweeper.results import Chain
from autocl_sweeper.types import History

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_summary(plan: Plan, history: History, folder: Path, console: Console) -> None:
    """The beam of each stage, the best chain with its matrix and metrics, and where the files are."""
    chains = results.final_chains(plan, history)
    if not chains:
        return
    best = chains[0]
    console.print()
    console.print(_beams(plan, history, best))
    for title, matrix in (("dev (selection)", best.evaluation), ("test", best.test)):
        if matrix is not None:
            console.print(_matrix(f"Best chain, scores on {title}", list(plan.tasks), matrix))
            console.print(_metrics_line(matrix))
    _print_spread(plan, chains, console)
    console.print(f"Best chain: score {best.score:.4f}", style="bold")
    for trial in best.trials:
        console.print(
            f"  {trial.stage}. {trial.task}: trial {trial.number}, {settings_text(trial)}",
            highlight=False,
        )
    console.print("Files:", style="bold")
    files = (results.BEST_FILE, results.RESULT_FILE, results.TABLE_FILE, "journal.jsonl")
    for name in files:
        console.print(f"  {folder / name}", soft_wrap=True, highlight=False)
    checkpoint = best.trials[-1].outcome and best.trials[-1].outcome.checkpoint
    if checkpoint:
        console.print(f"  {folder / checkpoint}  (the best model)", soft_wrap=True, highlight=False)


def _beams(plan: Plan, history: History, best: Chain) -> Table:
    from rich.table import Table

    on_best = {trial.number for trial in best.trials}
    table = Table(title="Beam of each stage (* is on the best chain)", title_justify="left")
    for column in ("stage", "task", "trial", "parent", "score", "settings"):
        table.add_column(column, justify="right" if column in ("trial", "score") else "left")
    for stage in plan.stages:
        for number in history.beams.get(stage.number, ()):
            trial = history[number]
            table.add_row(
                str(stage.number),
                stage.task,
                f"{'*' if number in on_best else ''}{number}",
                "-" if trial.parent is None else str(trial.parent),
                f"{trial.score:.4f}",
                settings_text(trial),
            )
        table.add_section()
    return table


def _matrix(title: str, tasks: Sequence[str], matrix: Sequence[Sequence[float]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("after training on")
    for task in tasks[: len(matrix)]:
        table.add_column(task, justify="right")
    table.add_column("mean", justify="right", style="bold")
    for task, row in zip(tasks, matrix, strict=True):
        blank = [""] * (len(matrix) - len(row))
        table.add_row(task, *(f"{n:.3f}" for n in row), *blank, f"{sum(row) / len(row):.3f}")
    return table


def _metrics_line(matrix: Sequence[Sequence[float]]) -> str:
    found = results.continual_metrics(matrix)
    return "  " + ", ".join(f"{name.replace('_', ' ')} {n:.4f}" for name, n in found.items())


def _print_spread(plan: Plan, chains: Sequence[Chain], console: Console) -> None:
    if len(chains) < 2:
        return
    worst = chains[-1]
    difference = results.spread(chains)
    console.print(
        f"Final chains: {len(chains)}, from {worst.score:.4f} to {chains[0].score:.4f}:"
        f" settings are worth {difference:.4f}.",
        highlight=False,
    )
