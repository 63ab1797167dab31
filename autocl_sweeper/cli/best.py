"""`autocl best`: the best chain, and how to use it."""

from __future__ import annotations

import argparse
import shlex

from autocl_sweeper.cli.options import folder_argument, print_json, sweep_of
from autocl_sweeper.cli.show import facts
from autocl_sweeper.display.screen import four
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.overview import Overview
from autocl_sweeper.types import Trial

HELP = "the best chain: a trial per stage, its parameters and checkpoint"
DESCRIPTION = "The best chain of a sweep. While the sweep runs: the best chain so far."
KEYS = ("stage", "task", "trial", "score", "params", "folder", "checkpoint", "overrides")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overrides", action="store_true", help="the overrides of each stage's job, a line a stage"
    )
    folder_argument(parser)


def run(given: argparse.Namespace) -> None:
    sweep = sweep_of(given)
    if not sweep.chain:
        why = "no trial has a score yet"
        if failed := sweep.counts["FAIL"]:
            why = f"{failed} of {len(sweep.history)} trials failed"
        raise ConfigurationError(f"'{sweep.folder}' has no best trial: {why}.")
    if given.json:
        print_json([_entry(sweep, trial) for trial in sweep.chain])
    elif given.overrides:
        for trial in sweep.chain:
            print(shlex.join(sweep.overrides_of(trial.number)))
    else:
        _print(sweep)


def _entry(sweep: Overview, trial: Trial) -> dict[str, object]:
    found = facts(sweep, trial) | {"overrides": sweep.overrides_of(trial.number)}
    return {key: found[key] for key in KEYS}


def _print(sweep: Overview) -> None:
    from rich.cells import cell_len, set_cell_size

    from autocl_sweeper.display.progress import settings_text
    from autocl_sweeper.page.story import title_text
    from autocl_sweeper.page.words import clean

    print(title_text(sweep))
    width = max(cell_len(clean(trial.task)) for trial in sweep.chain)
    for trial in sweep.chain:
        task = set_cell_size(clean(trial.task), width + 2) if width else ""
        settings = clean(settings_text(trial))
        print(
            f"  {trial.stage}  {task}trial {trial.number:<5} {four(trial.score)}  {settings}".rstrip()
        )
    last = sweep.chain[-1].outcome
    if last is not None and last.checkpoint is not None:
        print(f"  checkpoint: {sweep.folder / last.checkpoint}")
