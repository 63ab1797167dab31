"""When a job that failed runs again: soon at first, then ever later, and never in others' way."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from autocl_sweeper.types import OUT_OF_DEVICE_MEMORY, Cause, Outcome, State, Trial

LONGEST_DELAY_S = 600.0
INFEASIBLE = (Cause.INFEASIBLE, Cause.INFEASIBLE_BUDGET)  # the same settings would end the same
NO_TIME_MENDS = (Cause.CONFIGURATION, *OUT_OF_DEVICE_MEMORY, Cause.CANCELLED, *INFEASIBLE)

Item = TypeVar("Item")


def delay_s(first_s: float, retry: int) -> float:
    """What goes by before the n-th retry (from 1): doubling from `first_s` to ten minutes."""
    return min(first_s * 2.0 ** min(retry - 1, 50), max(first_s, LONGEST_DELAY_S))


def rest_s(pause_s: float, gone_s: float) -> float:
    """What is left of a pause that began `gone_s` ago, as the clock of another process had it.

    Clocks are set, and those of two machines differ: never more than the pause, never less than 0.
    """
    return min(max(pause_s - gone_s, 0.0), pause_s)


def is_infeasible(trial: Trial) -> bool:
    """Whether its settings cannot be trained: it never runs again, whatever `retries` says."""
    return trial.outcome is not None and trial.outcome.cause in INFEASIBLE


class Retries(Generic[Item]):
    """Jobs that are to run, each not before its time; what is due comes out in order of that.

    A job is known by its number, and may fail `limit` times before its end counts.
    """

    def __init__(
        self, limit: int, first_delay_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._first_delay_s = first_delay_s
        self._clock = clock
        self.failed: Counter[int] = Counter()  # attempts that count
        self.alone: set[int] = set()  # jobs that ran out of device memory beside others
        self._heap: list[tuple[float, int, Item]] = []
        self._places = itertools.count()

    def left(self, number: int) -> bool:
        return self.failed[number] < self._limit

    def after(self, number: int, outcome: Outcome) -> float | None:
        """The seconds until this job runs again; None: its end counts.

        A lost attempt says nothing about the job: it runs again at once and is no retry. A retry
        comes after a while, in which others run: what broke may recover by itself.
        """
        if outcome.lost:
            if outcome.cause in OUT_OF_DEVICE_MEMORY:
                self.alone.add(number)
            return 0.0
        hopeless = outcome.state is not State.FAIL or outcome.cause in NO_TIME_MENDS
        if hopeless or not self.left(number):
            return None
        self.failed[number] += 1
        return self.pause_s(number)

    def pause_s(self, number: int) -> float:
        """What goes by between the last failure that counts and the attempt after it."""
        return delay_s(self._first_delay_s, self.failed[number])

    def __bool__(self) -> bool:
        return bool(self._heap)

    def __iter__(self) -> Iterator[Item]:
        """All of it, in no order."""
        return (item for _, _, item in self._heap)

    def drop(self, unwanted: Callable[[Item], bool]) -> None:
        self._heap = [entry for entry in self._heap if not unwanted(entry[2])]
        heapq.heapify(self._heap)

    def add(self, item: Item, delay_s: float = 0.0) -> None:
        heapq.heappush(self._heap, (self._clock() + delay_s, next(self._places), item))

    def due(self) -> bool:
        return bool(self._heap) and self._heap[0][0] <= self._clock()

    def pop(self) -> Item:
        """What has been due for longest."""
        return heapq.heappop(self._heap)[2]

    def wait_s(self) -> float | None:
        """How long until something is due; None when it is now, or when nothing waits."""
        if not self._heap or self.due():
            return None
        return self._heap[0][0] - self._clock()
