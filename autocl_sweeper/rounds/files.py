"""The files of a search in rounds, each rewritten as a whole from the history."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from autocl_sweeper.outcome import LOG_NAME, write_whole
from autocl_sweeper.rounds.scalars import EventFiles
from autocl_sweeper.rounds.schedule import write_schedule
from autocl_sweeper.rounds.table import Rounds, log_name, model_name, saved, settings_of, written
from autocl_sweeper.types import Trial

log = logging.getLogger(__name__)


class RoundFiles:
    """The files of one task's rounds, below the sweep folder or a folder of the task in it."""

    def __init__(self, folder: Path, rounds: Rounds) -> None:
        self.rounds = rounds
        self.root = folder / rounds.root
        self.log_file = self.root / "log_file.txt"
        self.best_model = self.root / "best_model"
        self._visualization = self.root / "visualization"
        self._folder = folder
        self._events = EventFiles(self._visualization)
        self._copied: int | None = None  # the trial whose checkpoint is in best_model

    def log_of(self, trial: Trial) -> Path:
        return self.root / log_name(*self.rounds.round_of(trial))

    def begin(self, trial: Trial) -> None:
        """A trial's log can be followed under its place in the round while it runs."""
        if trial.folder:
            _link(self.log_of(trial), self._folder / trial.folder / LOG_NAME)

    def write(self) -> None:
        """Everything, as the history has it now."""
        self.root.mkdir(parents=True, exist_ok=True)
        winner = self.rounds.best()
        if winner is not None:
            write_schedule(self._folder, self.rounds, winner)
            try:
                self._copy(winner)
            except OSError as error:  # a full disk must not end a search whose trials go on
                log.warning(f"{self.best_model} could not be written: {error}")
        self._link_all()
        text = self._head(winner) + "\n" + written(self.rounds, self._folder, "\t")
        write_whole(self.log_file, text.encode("utf-8", "backslashreplace"))
        table = written(self.rounds, self._folder, ",")
        write_whole(self._visualization / "trials.csv", table.encode("utf-8", "backslashreplace"))
        self._events.write(self.rounds)

    def finish(self) -> None:
        """Everything, for the last time."""
        self._events.finish()
        self.write()
        self._events.finish()

    def _head(self, winner: Trial | None) -> str:
        over = sum(one.over for one in self.rounds.all())
        told = [f"rounds: {over} of {self.rounds.total} are over"]
        if winner is None:
            told.append("best score: none yet")
        else:
            number, place = self.rounds.round_of(winner)
            told += [
                f"best score: {winner.score!r} (round {number}, trial {place})",
                f"best settings: {settings_of(winner)}",
                f"best model: {self.best_model}",
            ]
        return "".join(f"{line}\n" for line in told)

    def _copy(self, winner: Trial) -> None:
        if self._copied == winner.number and self.best_model.is_dir():
            return
        there = saved(winner, self._folder)
        model = None if there is None else self._folder / there
        if model is None or (model.is_dir() and not any(model.iterdir())):
            model = None
            number, place = self.rounds.round_of(winner)
            log.warning(
                f"round {number}, trial {place} is the best and has saved nothing:"
                f" {self.best_model} is empty"
            )

        def fill(folder: Path) -> None:
            if model is not None and model.is_dir():
                shutil.copytree(model, folder, symlinks=True, dirs_exist_ok=True)
            elif model is not None:
                shutil.copy2(model, folder / model.name)

        _replace(self.best_model, fill)
        self._copied = winner.number

    def _link_all(self) -> None:
        """Logs and models by their places; the link of a model that is gone goes as well."""
        for one in self.rounds.all():
            for place, trial in one.trials.items():
                self.begin(trial)
                model = self.root / model_name(one.number, place)
                if (there := saved(trial, self._folder)) is not None:
                    _link(model, self._folder / there)
                elif model.is_symlink():
                    model.unlink()


def _link(link: Path, target: Path) -> None:
    """A relative link, so that the sweep folder can be moved."""
    link.parent.mkdir(parents=True, exist_ok=True)
    path = os.path.relpath(target, link.parent)
    if link.is_symlink() and os.readlink(link) == path:
        return
    aside = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    aside.symlink_to(path)
    os.replace(aside, link)


def _replace(target: Path, fill: Callable[[Path], None]) -> None:
    """Give `target` new contents, made beside it: it is never half old and half new."""
    new, old = (target.with_name(f".{target.name}.{word}") for word in ("new", "old"))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir(parents=True)
    fill(new)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
