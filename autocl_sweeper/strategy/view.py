"""A stage as its search sees it: live windows on the history, which copy nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from autocl_sweeper.protocols import Selection
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.types import History, State, Suggestion, Trial, Value


@dataclass(frozen=True)
class LiveTrial:
    """A trial as it is now, whenever it is looked at."""

    number: int
    _history: History
    _selection: Selection

    @property
    def _trial(self) -> Trial:
        return self._history[self.number]

    @property
    def suggestion(self) -> Suggestion:
        return self._trial.suggestion

    @property
    def params(self) -> Mapping[str, Value]:
        return self._trial.suggestion.params

    @property
    def parent(self) -> int | None:
        return self._trial.parent

    @property
    def state(self) -> State:
        return self._trial.state

    @property
    def score(self) -> float | None:
        return self._trial.score

    @property
    def loss(self) -> float | None:
        score = self.score
        return None if score is None else self._selection.loss(score)

    @property
    def reports(self) -> Sequence[tuple[int, float]]:
        reports = self._history.reports(self.number)
        return [(report.step, self._selection.loss(report.score)) for report in reports]

    @property
    def seconds(self) -> float:
        outcome = self._trial.outcome
        return 0.0 if outcome is None else outcome.seconds


class LiveTrials(Sequence[LiveTrial]):
    """Trials by their numbers; one is made when it is looked at."""

    def __init__(self, numbers: Sequence[int], history: History, selection: Selection) -> None:
        self._numbers = numbers
        self._history = history
        self._selection = selection

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> LiveTrial: ...
    @overload
    def __getitem__(self, place: slice) -> LiveTrials: ...
    def __getitem__(self, place: int | slice) -> LiveTrial | LiveTrials:
        if isinstance(place, slice):
            return LiveTrials(self._numbers[place], self._history, self._selection)
        return LiveTrial(self._numbers[place], self._history, self._selection)


class LiveStage:
    """A StageView. Whoever follows the history calls `note` for every change of the stage."""

    def __init__(
        self, stage: Stage, history: History, selection: Selection, earlier: Sequence[LiveStage]
    ) -> None:
        self.number = stage.number
        self.task = stage.task
        self.earlier = earlier
        self._stage = stage
        self._history = history
        self._selection = selection
        self._started: dict[int, None] = {}  # without those given up
        self._numbers: list[int] | None = []  # the same; None: to be listed anew
        self._changes: list[int] = []

    def note(self, trial: Trial) -> None:
        self._changes.append(trial.number)
        if trial.number in self._history.given_up:
            self._started.pop(trial.number, None)
            self._numbers = None
        elif trial.number not in self._started:
            self._started[trial.number] = None
            if self._numbers is not None:
                self._numbers.append(trial.number)

    @property
    def trials(self) -> LiveTrials:
        if self._numbers is None:
            self._numbers = list(self._started)
        return LiveTrials(self._numbers, self._history, self._selection)

    @property
    def parents(self) -> LiveTrials:
        beam = self._history.beams.get(self.number - 1, ())
        return LiveTrials(beam, self._history, self._selection)

    @property
    def jobs_left(self) -> int | None:
        if self._stage.limit is None:
            return None
        jobs = self._stage.jobs(self._stage.limit, max(1, len(self.parents)))
        return max(0, jobs - len(self._started))

    @property
    def revision(self) -> int:
        return len(self._changes)

    def changed(self, since: int) -> LiveTrials:
        numbers = [n for n in dict.fromkeys(self._changes[since:]) if n in self._started]
        return LiveTrials(numbers, self._history, self._selection)


def before_any_trial(stages: Sequence[Stage], selection: Selection) -> list[LiveStage]:
    """The view of each stage as it is before the sweep begins."""
    return views(stages, History(), selection)


def views(stages: Sequence[Stage], history: History, selection: Selection) -> list[LiveStage]:
    """A view of each stage, all of them empty until they are noted the trials of `history`."""
    found: list[LiveStage] = []
    for stage in stages:
        found.append(LiveStage(stage, history, selection, tuple(found)))
    return found
