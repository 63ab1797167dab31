"""The joints of the house: what a search, selection, pruner or executor of one's own has to do.

Nothing to inherit and nothing to register: a class that has the methods is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from autocl_sweeper.types import Job, Later, Outcome, Report, State, Suggestion, Trial, Value


class TrialView(Protocol):
    """A trial as a search sees it: always as it is now."""

    @property
    def number(self) -> int: ...
    @property
    def suggestion(self) -> Suggestion: ...
    @property
    def params(self) -> Mapping[str, Value]: ...
    @property
    def parent(self) -> int | None: ...
    @property
    def state(self) -> State: ...
    @property
    def score(self) -> float | None: ...
    @property
    def loss(self) -> float | None:
        """The stage's objective, lower is better; None before there is a score."""
        ...

    @property
    def reports(self) -> Sequence[tuple[int, float]]:
        """(step, loss) of the last attempt, in the order of arrival; nan where training diverged."""
        ...

    @property
    def seconds(self) -> float:
        """How long its job took; 0 while it runs."""
        ...


class StageView(Protocol):
    """A stage as its search sees it: live, so that looking costs nothing that is not looked at."""

    @property
    def number(self) -> int: ...
    @property
    def task(self) -> str: ...
    @property
    def jobs_left(self) -> int | None:
        """Jobs that the stage may still start; None without a limit."""
        ...

    @property
    def parents(self) -> Sequence[TrialView]:
        """The beam of the stage before, best first; empty in the first stage."""
        ...

    @property
    def trials(self) -> Sequence[TrialView]:
        """The trials of the stage in the order they started, without given-up ones."""
        ...

    @property
    def earlier(self) -> Sequence[StageView]:
        """The stages before, which are over: oldest first."""
        ...

    @property
    def revision(self) -> int:
        """Grows with every change of a trial of this stage, its reports among them."""
        ...

    def changed(self, since: int) -> Sequence[TrialView]:
        """Trials that changed after that revision, each once: for what mirrors the stage."""
        ...


class Search(Protocol):
    @property
    def size(self) -> int | None:
        """How many suggestions there are; None for a search without end."""
        ...

    @property
    def pairing(self) -> Literal["every", "one"]:
        """Whether a suggestion runs with every parent or with the one it names."""
        ...

    def ask(self, stage: StageView) -> Suggestion | Later | None:
        """The next suggestion; `Later`: not before a running trial ends; None: there is no other.

        Same view, same answer, in another process on another day. Asked only after the last
        suggestion got all its parents, so the next index is that of the last trial plus 1.
        """
        ...


@runtime_checkable
class IndexedSearch(Search, Protocol):
    """A search whose suggestions depend on their place alone, not on how others turned out.

    Each runs with every parent. It may be asked ahead and in any order, so its stages can begin
    early and longest first.
    """

    def suggestion(self, index: int) -> Suggestion:
        """The suggestion at this place, from 0; there are `size` of them."""
        ...


class Selection(Protocol):
    @property
    def monotone(self) -> bool:
        """Whether a trial that is out never returns, whatever finishes later.

        Then selecting from the survivors so far and a newcomer gives what selecting from all
        would, so the next stage may begin early and checkpoints can go at once.
        """
        ...

    def loss(self, score: float) -> float:
        """The objective with lower better."""
        ...

    def __call__(self, finished: Sequence[Trial]) -> list[Trial]:
        """The survivors, best first; ties go to the one that stands before the other."""
        ...


class Pruner(Protocol):
    def prune(self, reports: Mapping[int, Sequence[tuple[int, float]]], trial: int) -> bool:
        """Whether to stop a running trial, given the reports of its stage: trial -> (step, loss).

        Called once after each report of `trial`. A pure function: same reports, same answer. The
        controller ends the job and journals the trial as PRUNED with its last report.
        """
        ...


class Executor(Protocol):
    def free_slots(self) -> int: ...

    def submit(self, job: Job) -> None:
        """Never blocks."""
        ...

    def wait(self, timeout_s: float | None) -> list[tuple[Job, Outcome]]:
        """Jobs that ended since the last call, each exactly once.

        Waits at most `timeout_s` for one (None: until one ends); 0 only looks.
        """
        ...

    def reports(self) -> list[Report]:
        """Reports that jobs made since the last call, each once, those of one job in their order.

        What a job reported before its end is given by the first call after `wait` gave that end.
        """
        ...

    def cancel(self, job: Job) -> None:
        """End a job before its time. Does not wait; `wait` reports the end like any other.

        Nothing happens when `wait` has told its end already.
        """
        ...

    def adopt(self, job: Job) -> bool:
        """Take over a job that outlived its controller: `wait` will give its outcome. False: none.

        Of its reports, the first `job.reported` are known already.
        """
        ...

    def stop(self) -> None:
        """Begin to end what runs, in good order: `wait` gives what ends, then nothing.

        `close` before that ends the rest at once.
        """
        ...

    def close(self) -> None:
        """Idempotent; leaves no process behind."""
        ...
