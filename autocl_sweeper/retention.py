"""Which checkpoints may go: those that no later trial can start from."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from autocl_sweeper.folder import free_name, remove
from autocl_sweeper.outcome import CHECKPOINT_NAME
from autocl_sweeper.protocols import Selection
from autocl_sweeper.types import History, Outcome, State, Trial

log = logging.getLogger(__name__)


class Retention:
    """The checkpoints of one sweep folder. `drops`: whether any of them are ever removed.

    chained: whether stages start from those before. Else the survivors of each stage stay.
    """

    def __init__(
        self, folder: Path, selection: Selection, drops: bool, chained: bool = True
    ) -> None:
        self._folder = folder
        self._leaders = Leaders(selection, chained)
        self._drops = drops
        self._stays: set[Path] = set()  # what could not be removed

    @property
    def any_ranked(self) -> bool:
        """Whether any trial of the sweep was ever ranked."""
        return self._leaders.any_ranked

    def resume(self, history: History) -> None:
        """Do what a controller that ended may have left undone."""
        for trial in history:
            if trial.state is not State.RUNNING and trial.stage <= history.open_stage:
                self.ended(trial, history)
        for stage, beam in history.beams.items():
            self.drop(self._leaders.close(stage, beam, history))

    def ended(self, trial: Trial, history: History) -> None:
        """A trial ended whose parents are in the beam for good."""
        self.drop(self._leaders.add(trial, history))

    def closed(self, stage: int, beam: Sequence[int], history: History) -> None:
        """A stage is over. Trials of the next one that began early now have parents for good."""
        self.drop(self._leaders.close(stage, beam, history))
        for trial in history.stage(stage + 1):
            if trial.state is not State.RUNNING:
                self.ended(trial, history)

    def drop(self, trials: Iterable[Trial]) -> None:
        """Remove the checkpoints of these trials. Only ever below the trial's own folder."""
        for trial in trials if self._drops else ():
            named = trial.outcome.checkpoint if trial.outcome else None
            path = self._folder / (named or f"{trial.folder}/{CHECKPOINT_NAME}")
            if not trial.folder or not os.path.exists(path):
                continue
            home, path = (self._folder / trial.folder).resolve(), path.resolve()
            if home in path.parents and path not in self._stays:
                self._remove(path, trial)

    def _remove(self, path: Path, trial: Trial) -> None:
        try:
            remove(path)
        except OSError as error:
            self._stays.add(path)
            log.warning(
                "the checkpoint of trial %d cannot be removed and stays: %s", trial.number, error
            )

    def in_folder(self, outcome: Outcome) -> Outcome:
        """Checkpoints inside the sweep folder are named relative to it, so that it can be moved."""
        if outcome.checkpoint is None:
            return outcome
        path = os.path.relpath(outcome.checkpoint, self._folder)
        return outcome if path.startswith("..") else replace(outcome, checkpoint=path)

    def move_aside(self, trial: Trial, keep_checkpoint: bool) -> None:
        """Keep what an earlier attempt left, beside the folder that the next one fills.

        Its checkpoint only on request: no trial will ever start from it.
        """
        folder = self._folder / trial.folder
        if trial.folder and folder.exists():
            checkpoint = folder / CHECKPOINT_NAME
            if not keep_checkpoint and checkpoint.exists():
                self._remove(checkpoint, trial)
            aside = folder.with_name(f"{folder.name}.attempt{trial.attempt - 1}")
            folder.rename(free_name(aside, "again") if os.path.lexists(aside) else aside)


class Leaders:
    """The trials that may still become parents, so that the others' checkpoints can go.

    With a monotone selection a trial that is out is out for good; else its stage decides.
    """

    def __init__(self, selection: Selection, chained: bool = True) -> None:
        self._selection = selection
        self._chained = chained
        self._stages: dict[int, list[Trial]] = {}
        self._kept: dict[int, Trial] = {}

    @property
    def any_ranked(self) -> bool:
        return bool(self._stages)

    def add(self, trial: Trial, history: History) -> list[Trial]:
        """A trial ended whose parents are in the beam for good: those that are out now."""
        if trial.state is not State.COMPLETE or trial.score is None:
            return [trial]
        before = [*self._stages.get(trial.stage, ()), trial]
        leaders = before
        if self._selection.monotone:
            leaders = self._selection(sorted(before, key=history.place))
        self._stages[trial.stage] = leaders
        self._kept[trial.number] = trial
        staying = {leader.number for leader in leaders}
        out = [other for other in before if other.number not in staying]
        for other in out:
            del self._kept[other.number]
        return out

    def close(self, stage: int, beam: Sequence[int], history: History) -> list[Trial]:
        """A stage is over: those of it and of earlier ones that no survivor descends from."""
        needed = {t.number for number in beam for t in history.lineage(history[number])}
        if not self._chained:
            needed |= {number for other in history.beams.values() for number in other}
        out = [t for t in self._kept.values() if t.stage <= stage and t.number not in needed]
        for trial in out:
            del self._kept[trial.number]
        return out
