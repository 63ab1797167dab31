"""Which of the jobs that may start goes first: the longest, as far as one can tell.

Longest first keeps the last jobs of a stage short, so that devices run out of work together
(Graham, "Bounds on multiprocessing timing anomalies", 1969).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.types import Job, Value

DURATION_KEYS = (
    "num_train_epochs",
    "epochs",
    "max_epochs",
    "num_epochs",
    "max_steps",
    "num_steps",
    "max_train_samples",
    "train_rows",
)
"""Settings that the duration of a job grows with, unless `hydra.launcher.duration_keys` says else."""

Place = TypeVar("Place")
"""What a suggestion runs with: a parent, and which of its repeats."""

WINDOW = 1024  # suggestions looked at together; what a stage costs at its start does not grow


class Work:
    """How much work a job is, in units of its own: the product of the settings it grows with.

    `keys` are override keys or their last parts. `configs` tell, by task, what a job has that does
    not set a key itself.
    """

    def __init__(
        self, keys: Collection[str], configs: Mapping[str, Mapping[str, Value]] | None = None
    ) -> None:
        self._keys = keys
        self._configs = {task: self._counting(one) for task, one in (configs or {}).items()}

    def __call__(self, params: Mapping[str, Value], task: str = "") -> float:
        product = 1.0
        for value in {**self._configs.get(task, {}), **self._counting(params)}.values():
            # max_steps=-1 and its like mean that something else says how long a job is.
            if isinstance(value, (int, float)) and value > 0:
                product *= value
        return product

    def _counting(self, params: Mapping[str, Value]) -> dict[str, Value]:
        bare = ((key.lstrip("+"), value) for key, value in params.items())
        return {
            key: value
            for key, value in bare
            if key in self._keys or key.rpartition(".")[2] in self._keys
        }


def work_of(
    launcher: Mapping[str, Any], configs: Mapping[str, Mapping[str, Value]] | None = None
) -> Work | None:
    """What `order` and `duration_keys` of a launcher ask for; None: in the order submitted.

    Raises ConfigurationError.
    """
    order = launcher.get("order", "submitted")
    if order not in ("longest", "submitted"):
        raise ConfigurationError(
            f"hydra.launcher.order={order!r} is not one of: longest, submitted.\n"
            "  `autocl docs hydra.launcher.order` (docs/launcher.md) explains them."
        )
    keys = launcher.get("duration_keys")
    keys = DURATION_KEYS if keys is None else tuple(keys)
    return Work(frozenset(keys), configs) if order == "longest" else None


def longest_first(jobs: Sequence[Job], work: Work) -> list[Job]:
    """Jobs that are all known from the start, by the overrides whose values are plain numbers."""

    def amount(job: Job) -> float:
        found: dict[str, Value] = {}
        for text in job.overrides:
            key, _, value = text.partition("=")
            with suppress(ValueError):
                found[key] = float(value)
        return work(found)

    return sorted(jobs, key=amount, reverse=True)


class Durations:
    """What finished jobs of one stage took, and what that says of the others."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._work = 0.0
        self._of: dict[int, tuple[float, int]] = {}  # suggestion -> seconds in all, jobs

    def note(self, index: int, work: float, seconds: float) -> None:
        self._seconds += seconds
        self._work += work
        before, jobs = self._of.get(index, (0.0, 0))
        self._of[index] = (before + seconds, jobs + 1)

    def of(self, index: int) -> float | None:
        """Mean seconds of this suggestion with other parents; None before one of them finished."""
        if index not in self._of:
            return None
        seconds, jobs = self._of[index]
        return seconds / jobs

    @property
    def per_work(self) -> float:
        """Seconds per unit of work; 1 before any job finished: the work alone decides then."""
        return self._seconds / self._work if self._seconds else 1.0


class Queue(Generic[Place]):
    """The suggestions of a stage that miss one of `parents`, longest first.

    What the same suggestion took with another parent is the best estimate; for the others it is
    their work at the pace of the stage. Equal estimates keep the order of the suggestions. Without
    `work` that order is all.
    """

    def __init__(
        self,
        count: int,
        parents: Sequence[Place],
        durations: Durations,
        work: Callable[[int], float] | None,
        partial: int = 0,
    ) -> None:
        """`partial`: with how many of the parents, the first ones, one more suggestion runs."""
        self._whole = count
        self._partial = partial
        self._count = count + (partial > 0)
        self._parents = parents
        self._durations = durations
        self._work = work
        self._next_window = 0
        self._waiting: list[int] = []  # of the window looked at, the next one last
        self._works: dict[int, float] = {}  # of the same; empty without `work`
        self._sorted = True

    def next(self, begun: Collection[tuple[int, Place]]) -> tuple[int, Place] | None:
        """The suggestion and the parent that start next; None when there is no other."""
        while self._waiting or self._next_window < self._count:
            if not self._waiting:
                window = range(self._next_window, min(self._next_window + WINDOW, self._count))
                self._next_window = window.stop
                self._waiting = [*reversed(window)]
                self._works = {i: self._work(i) for i in window} if self._work else {}
                self._sorted = False
            if not self._sorted and self._works:
                self._waiting.sort(key=lambda index: (self._estimate(index), -index))
            self._sorted = True
            whole = self._waiting[-1] < self._whole
            for parent in self._parents if whole else self._parents[: self._partial]:
                if (self._waiting[-1], parent) not in begun:
                    return self._waiting[-1], parent
            self._waiting.pop()
        return None

    def note(self) -> None:
        """A job of the stage finished: durations are known better."""
        self._sorted = False

    def _estimate(self, index: int) -> float:
        seconds = self._durations.of(index)
        return self._works[index] * self._durations.per_work if seconds is None else seconds
