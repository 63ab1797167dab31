"""A stage as its search sees it: live windows on the history, which copy nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from autocl_sweeper.types import History, State, Suggestion, Trial, Value

Loss = Callable[[float], float]
"""The objective with lower better, of a score."""


@dataclass(frozen=True)
class TrialView:
    """A trial as it is now, whenever it is looked at."""

    number: int
    _history: History
    _loss: Loss

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
    def repeat(self) -> int:
        return self._trial.repeat

    @property
    def extra(self) -> int:
        return self._trial.extra

    @property
    def state(self) -> State:
        return self._trial.state

    @property
    def score(self) -> float | None:
        return self._trial.score

    @property
    def loss(self) -> float | None:
        """The stage's objective, lower is better; None before there is a score."""
        score = self.score
        return None if score is None else self._loss(score)

    @property
    def reports(self) -> list[tuple[int, float]]:
        """(step, loss) of the last attempt, steps rising; nan where training diverged."""
        return [(one.step, self._loss(one.score)) for one in self._history.reports(self.number)]

    @property
    def seconds(self) -> float:
        """How long its job took; 0 while it runs."""
        outcome = self._trial.outcome
        return 0.0 if outcome is None else outcome.seconds


@dataclass(frozen=True)
class TrialViews:
    """Trials by their numbers; one is made when it is looked at."""

    _numbers: Sequence[int]
    _history: History
    _loss: Loss

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> TrialView:
        return TrialView(self._numbers[place], self._history, self._loss)

    def __iter__(self) -> Iterator[TrialView]:
        return (TrialView(number, self._history, self._loss) for number in self._numbers)


class StageView:
    """A stage, what came before it and what it may still do.

    `earlier` are the stages before, which are over, oldest first. `note` is called for every change
    of the stage's trials by whatever follows the history.
    """

    def __init__(
        self,
        number: int,
        task: str,
        history: History,
        loss: Loss,
        jobs: Callable[[int], int | None],
        earlier: Sequence[StageView],
        sweep: str | None = None,
        has_parents: bool = True,
    ) -> None:
        """`jobs`: number of parents -> how many jobs the stage may start; None without a limit.

        has_parents: whether trials start from the beam of the stage before, if there is one.
        sweep: the folder of another sweep that the stage belongs to, its trial numbers with it.
        """
        self.number = number
        self.task = task
        self.earlier = earlier
        self.sweep = sweep
        self._history = history
        self._loss = loss
        self._jobs = jobs
        self._has_parents = has_parents
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
    def trials(self) -> TrialViews:
        """The trials of the stage in the order they started, without given-up ones."""
        if self._numbers is None:
            self._numbers = list(self._started)
        return self._views(self._numbers)

    @property
    def parents(self) -> TrialViews:
        """The beam of the stage before, best first; empty where trials start from scratch."""
        beams = self._history.beams if self._has_parents else {}
        return self._views(beams.get(self.number - 1, ()))

    @property
    def jobs_left(self) -> int | None:
        """Jobs that the stage may still start; None without a limit."""
        jobs = self._jobs(max(1, len(self.parents)))
        return None if jobs is None else max(0, jobs - len(self._started))

    @property
    def revision(self) -> int:
        """Grows with every change of a trial of this stage, its reports among them."""
        return len(self._changes)

    def changed(self, since: int) -> TrialViews:
        """Trials that changed after that revision, each once: for what mirrors the stage."""
        return self._views([n for n in dict.fromkeys(self._changes[since:]) if n in self._started])

    def _views(self, numbers: Sequence[int]) -> TrialViews:
        return TrialViews(numbers, self._history, self._loss)
