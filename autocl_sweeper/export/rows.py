"""What an export writes: a sweep in a few words, and each of its trials as it is now."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from autocl_sweeper.distributions import Distribution
from autocl_sweeper.journal import Record
from autocl_sweeper.plan.spaces import distributions_of
from autocl_sweeper.types import History, Report, State, Trial, Value

SETTINGS = "hydra.sweeper."  # what keys of a fingerprint begin with, if they are settings


@dataclass(frozen=True)
class Described:
    """A sweep as its exports name it. `spaces`: task -> override key -> distribution, in order."""

    folder: Path
    name: str  # distinguishes it from other sweeps in the same place
    maximize: bool
    spaces: Mapping[str, Mapping[str, Distribution]]
    stages: int = 1
    settings: Mapping[str, Value] = field(default_factory=dict)  # of the sweeper


def described(folder: Path, fingerprint: Mapping[str, Any], name: str | None = None) -> Described:
    """The sweep of a fingerprint, as its journal has it. Without a name: where it lies."""
    keys = {key: value for key, value in fingerprint.items() if key.startswith(SETTINGS)}
    return Described(
        folder,
        name or "/".join(folder.parts[-2:]),
        fingerprint["hydra.sweeper.direction"] == "maximize",
        {task: distributions_of(space) for task, space in fingerprint["search space"].items()},
        len(fingerprint.get("hydra.sweeper.sequence") or [""]),
        {key.removeprefix(SETTINGS): value for key, value in keys.items()},
    )


@dataclass(frozen=True)
class Row:
    """A trial, its reports (a live view), and when it started and ended, in seconds since the epoch.

    `state` is RUNNING also while a finished trial may still lose its parent.
    """

    trial: Trial
    state: State
    reports: Sequence[Report] = ()
    started: float | None = None
    ended: float | None = None

    @property
    def score(self) -> float | None:
        """What an export shows as the trial's value: a stopped trial has its last report."""
        if self.trial.score is None and self.state is State.PRUNED and self.reports:
            return self.reports[-1].score
        return self.trial.score


Beams = Mapping[int, Sequence[int]]


class Place(Protocol):
    """Somewhere trials are written to. May raise anything: the sweep goes on."""

    def write(self, rows: Sequence[Row], beams: Beams) -> None:
        """Write trials that are new or changed since the last call, and the beams so far."""
        ...


class Rows:
    """The rows of a history, by the journal's events."""

    def __init__(self, history: History, records: Iterable[Record] = ()) -> None:
        """`records`: the events the history was folded from."""
        self._history = history
        self._started: dict[int, float] = {}
        self._ended: dict[int, float] = {}
        self._held: set[int] = set()  # over, and shown as running
        for record in records:
            self._note_time(record["event"], record, record["time"])

    def every(self) -> list[Row]:
        return [self._row(number) for number in range(len(self._history))]

    def after(self, event: str, record: Record, time_s: float) -> list[Row]:
        """Rows that an event changed; the history has it already."""
        self._note_time(event, record, time_s)
        if event == "select":
            return [self._row(number) for number in sorted(self._held)]
        known = event in ("start", "report", "finish", "give_up")
        return [self._row(record["trial"])] if known else []

    def _row(self, number: int) -> Row:
        trial, state = self._history[number], self._history[number].state
        self._held.discard(number)
        if state is not State.RUNNING and not self._sure(trial):
            self._held.add(number)
            state = State.RUNNING
        times = (self._started.get(number), self._ended.get(number))
        return Row(trial, state, self._history.reports(number), *times)

    def _sure(self, trial: Trial) -> bool:
        """Whether nothing can change a finished trial's state: it is not taken back with its parent."""
        if trial.number in self._history.ending:  # its job runs yet
            return False
        if trial.number in self._history.given_up:
            return True
        if trial.parent is None or trial.stage < self._history.open_stage:
            return True
        return trial.parent in self._history.beams.get(trial.stage - 1, ())

    def _note_time(self, event: str, record: Record, time_s: float) -> None:
        if event == "start":
            self._started[record["trial"]] = time_s
            self._ended.pop(record["trial"], None)
        elif event in ("finish", "give_up"):
            self._ended[record["trial"]] = time_s


def text_of(value: Value) -> str:
    """A value as JSON text, which every dashboard can show."""
    return json.dumps(value, ensure_ascii=False)


def about(trial: Trial) -> dict[str, Value]:
    """What a dashboard shows of a trial beside its parameters and numbers."""
    found: dict[str, Value] = {
        "trial": trial.number,
        "task": trial.task,
        "stage": trial.stage,
        "parent": trial.parent,
        "folder": trial.folder or None,
        "attempt": trial.attempt,
        "origin": trial.suggestion.origin,
        "source": trial.suggestion.source,
        "repeat": trial.repeat or None,
        "extra": trial.extra or None,
    }
    return {key: value for key, value in found.items() if value is not None}


def numbers_of(row: Row) -> dict[str, float]:
    """Metrics of a trial: its score first, then whatever else its job returned."""
    outcome = row.trial.outcome
    if outcome is None:
        return {}
    found = {} if row.score is None else {"score": row.score}
    found |= {f"eval/{task}": number for task, number in outcome.evaluations.items()}
    found |= {f"test/{task}": number for task, number in outcome.tests.items()}
    found |= {key: number for key, number in outcome.numbers.items() if key not in found}
    finite = {key: number for key, number in found.items() if not math.isnan(number)}
    return {**finite, "seconds": outcome.seconds}
