"""The joints of the house: what a search, selection, pruner or executor of one's own has to do.

Nothing to inherit and nothing to register: a class that has the methods is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from autocl_sweeper.curves import Curves
from autocl_sweeper.types import Job, Later, Outcome, Report, Suggestion, Trial
from autocl_sweeper.view import StageView


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
    """A rule of early stopping, asked about the curves of one stage.

    Pure functions: same curves, same answer. `max_steps`: the steps of a full training.
    """

    def steps(self, max_steps: int) -> tuple[int, ...]:
        """The steps at which trials are judged, or from which on; rising."""
        ...

    def prune(self, curves: Curves, trial: int, max_steps: int) -> str | None:
        """Why to stop a running trial, asked once after each report of it; None: it goes on.

        The controller ends the job and journals the trial as PRUNED with its last report.
        """
        ...

    def distrust(self, curves: Curves, max_steps: int) -> str | None:
        """Why these curves allow no judgement, and `prune` stops nothing; None: they do."""
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
