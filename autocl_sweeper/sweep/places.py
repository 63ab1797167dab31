"""On which devices jobs run, for the journal. It is for readers alone: nothing hangs on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autocl_sweeper.display.panel import Packing, Watched
from autocl_sweeper.protocols import Executor
from autocl_sweeper.types import History


class Places:
    """Gives an event for each attempt, once its executor says where it runs."""

    def __init__(self, executor: Executor, history: History) -> None:
        self._executor = executor
        self._history = history
        self._told: set[int] = set()  # running trials whose devices are in the journal

    def events(self, submitted: set[int]) -> Iterator[tuple[str, dict[str, Any]]]:
        """`submitted`: the trials whose jobs the executor has."""
        waiting = submitted - self._told
        if not waiting or not isinstance(self._executor, Watched):
            return
        where = self._executor.devices()
        shares = self._executor.reserved() if isinstance(self._executor, Packing) else {}
        for number in sorted(waiting & where.keys()):
            self._told.add(number)
            fields = {"trial": number, "attempt": self._history[number].attempt}
            mib, source = shares.get(number, (None, ""))
            share = {"reserved_mib": mib, "reserved_by": source} if source else {}
            yield "running", {**fields, "device": list(where[number]), **share}

    def forget(self, number: int) -> None:
        """An attempt is over: the next one is placed anew."""
        self._told.discard(number)
