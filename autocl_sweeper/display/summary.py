"""What a sweep prints at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autocl_sweeper.display.progress import settings_text, short_key, value_text
from autocl_sweeper.display.screen import four, table
from autocl_sweeper.journal import NAME as JOURNAL
from autocl_sweeper.plan import Plan
from autocl_sweeper.results.best import BEST_FILE
from autocl_sweeper.results.early import early_texts
from autocl_sweeper.results.lineage import continual_metrics, final_lineages
from autocl_sweeper.results.result_file import RESULT_FILE
from autocl_sweeper.results.table import TABLE_FILE
from autocl_sweeper.types import History, State, Suggestion, Trial
from autocl_sweeper.verdict import alike, named

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_KINDS = 5  # of failures, each a line


def print_summary(plan: Plan, history: History, folder: Path, console: Console) -> None:
    """The beam of each stage, the best chain with its matrix and metrics, and where the files are."""
    chains = final_lineages(plan, history)
    if not chains:
        return
    best = chains[0]
    on_best = {trial.number for trial in best.trials}
    beams = [history[number] for beam in history.beams.values() for number in beam]
    console.print("\nBeam of each stage (* is on the best chain)", style="bold", highlight=False)
    console.print(_trials(beams, on_best))
    for title, matrix, forward in (
        ("dev data (selection)", best.evaluation, best.forward),
        ("test data", best.test, None),
    ):
        if matrix is not None:
            console.print(f"Best chain, scores on {title}", style="bold")
            console.print(_matrix(list(plan.tasks), matrix))
            found = continual_metrics(matrix, forward)
            text = ", ".join(f"{name.replace('_', ' ')} {n:.4f}" for name, n in found.items())
            console.print(f"  {text}\n", highlight=False)
    console.print(f"Best chain: score {four(best.score)}", style="bold", highlight=False)
    console.print(_trials(best.trials, set()))
    if len(chains) > 1:
        scores = f"from {four(chains[-1].score)} to {four(best.score)}"
        told = f"Chains through the last stage: {len(chains)}, {scores}"
        console.print(told, highlight=False)
    for told in early_texts(history):
        console.print(told[0].upper() + told[1:], highlight=False, soft_wrap=True)
    console.print("Files", style="bold")
    files = [BEST_FILE, RESULT_FILE, TABLE_FILE, JOURNAL]
    outcome = best.trials[-1].outcome
    if outcome is not None and outcome.checkpoint is not None:
        files.append(outcome.checkpoint)
    for name in files:
        console.print(f"  {folder / name}", soft_wrap=True, highlight=False)


def print_best(plan: Plan, history: History, folder: Path, console: Console) -> None:
    """The best trial of a sweep without a sequence, its failures by kind, and where the table is."""
    failed = [trial for trial in history if trial.state is State.FAIL]
    chains = final_lineages(plan, history)
    if not chains and not failed:  # jobs without a score: there is nothing to compare
        return
    lines = []
    if chains:
        best = chains[0].trials[-1]
        settings = settings_text(best)
        lines.append(
            f"Best of {len(history)} trials: {four(best.score)}, trial {best.number} ({settings})"
        )
    if failed:
        lines.append(f"{len(failed)} of {len(history)} trials failed:")
    for kind in alike(failed)[:MOST_KINDS]:
        assert kind[0].outcome is not None
        lines.append(f"  {named(kind)}: {kind[0].outcome.reason.partition(chr(10))[0]}")
    lines.append(f"All trials: {folder / TABLE_FILE}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _trials(trials: Sequence[Trial], marked: set[int]) -> Table:
    """A row per trial; every parameter that one of them has is a column of its own."""
    shown = table()
    keys = list(dict.fromkeys(key for trial in trials for key in trial.suggestion.params))
    for column in ("stage", "task", "trial", "parent", "score"):
        shown.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    origins = [_origin(trial.suggestion) for trial in trials]
    if any(origins):
        shown.add_column("origin", no_wrap=True)
    for key in keys:  # a heading that may break at its underscores keeps the column narrow
        shown.add_column(short_key(key).replace("_", " "), justify="right")
    for trial, origin in zip(trials, origins, strict=True):
        params = trial.suggestion.params
        shown.add_row(
            str(trial.stage),
            trial.task,
            f"{'*' if trial.number in marked else ''}{trial.number}",
            "-" if trial.parent is None else str(trial.parent),
            four(trial.score),
            *([origin] if any(origins) else []),
            *(value_text(params[key]) if key in params else "" for key in keys),
        )
    return shown


def _origin(suggestion: Suggestion) -> str:
    """Where a suggestion comes from, in a few words: its source and how many keys are from there."""
    carried = suggestion.carried
    source = "" if suggestion.source is None else f" {suggestion.source}"
    if carried is not None:
        kept = f" ({carried.keys}/{len(suggestion.params)})"
        source += kept if carried.sweep is None else f" of {Path(carried.sweep).name}{kept}"
    return f"{suggestion.origin}{source}" if suggestion.origin else ""


def _matrix(tasks: Sequence[str], matrix: Sequence[Sequence[float]]) -> Table:
    shown = table()
    shown.add_column("after")
    for task in tasks[: len(matrix)]:
        shown.add_column(task, justify="right")
    shown.add_column("mean", justify="right", style="bold")
    for task, row in zip(tasks, matrix, strict=False):  # a sweep that stopped early has fewer rows
        blank = [""] * (len(matrix) - len(row))
        shown.add_row(task, *(f"{n:.3f}" for n in row), *blank, f"{sum(row) / len(row):.3f}")
    return shown
