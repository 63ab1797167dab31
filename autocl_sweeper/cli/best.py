"""`autocl best`: the best chain, and how to use it."""

from __future__ import annotations

import argparse
import shlex

from autocl_sweeper.cli.options import (
    Commands,
    folder_argument,
    json_option,
    print_json,
    sweep_of,
)
from autocl_sweeper.display.screen import four
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.overview import Overview


def add(commands: Commands) -> None:
    best = commands.add_parser(
        "best",
        help="the best chain: a trial per stage, its parameters and checkpoint",
        description="The best chain of a sweep. While the sweep runs: the best chain so far.",
    )
    json_option(best)
    best.add_argument(
        "--overrides", action="store_true", help="the overrides of each stage's job, a line a stage"
    )
    folder_argument(best)
    best.set_defaults(run=_best)


def _best(given: argparse.Namespace) -> None:
    sweep = sweep_of(given)
    if not sweep.chain:
        failed = sweep.counts["FAIL"]
        why = (
            f"{failed} of {len(sweep.history)} trials failed"
            if failed
            else "no trial has a score yet"
        )
        raise ConfigurationError(f"'{sweep.folder}' has no best trial: {why}.")
    if given.json:
        print_json([_entry(sweep, number) for number in range(len(sweep.chain))])
    elif given.overrides:
        for trial in sweep.chain:
            print(shlex.join(sweep.overrides_of(trial.number)))
    else:
        _print(sweep)


def _entry(sweep: Overview, place: int) -> dict[str, object]:
    trial = sweep.chain[place]
    checkpoint = trial.outcome.checkpoint if trial.outcome else None
    return {
        "stage": trial.stage,
        "task": trial.task,
        "trial": trial.number,
        "score": trial.score,
        "params": dict(trial.suggestion.params),
        "folder": str(sweep.folder / trial.folder) if trial.folder else None,
        "checkpoint": checkpoint and str(sweep.folder / checkpoint),
        "overrides": sweep.overrides_of(trial.number),
    }


def _print(sweep: Overview) -> None:
    from rich.cells import cell_len

    from autocl_sweeper.display.progress import settings_text
    from autocl_sweeper.page.story import title_text
    from autocl_sweeper.page.words import clean

    print(title_text(sweep))
    width = max(cell_len(clean(trial.task)) for trial in sweep.chain)
    for trial in sweep.chain:
        task = clean(trial.task)
        task += " " * (width - cell_len(task) + 2) if width else ""
        settings = clean(settings_text(trial))
        print(
            f"  {trial.stage}  {task}trial {trial.number:<5} {four(trial.score)}  {settings}".rstrip()
        )
    last = sweep.chain[-1].outcome
    if last is not None and last.checkpoint is not None:
        print(f"  checkpoint: {sweep.folder / last.checkpoint}")
