"""Calls at given times, from one thread for all jobs: it sleeps until the next one is due."""

from __future__ import annotations

import logging
import threading
import time
from bisect import insort
from collections.abc import Callable
from operator import itemgetter
from typing import TypeAlias

log = logging.getLogger(__name__)

Deadline: TypeAlias = tuple[float, Callable[[], None]]  # when it is due, what is called
STOOD_S = 5.0  # a thread that comes so much too late did not run meanwhile


class Deadlines:
    """Times are those of `now`. A call must be quick; it may set further deadlines.

    The thread starts with the first deadline and ends with `close`. Time in which this process did not
    run (SIGSTOP, a batch system that suspends it) is not counted: its jobs stood still as well.
    """

    def __init__(self) -> None:
        self._waiting: list[Deadline] = []  # the next one first
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        # When the thread looks next; None: it has nothing to do.
        self._expected: float | None = None
        self._stood_s = 0.0

    def now(self) -> float:
        """Seconds since some moment, without those in which this process stood still."""
        with self._changed:
            clock = time.monotonic()
            if self._expected is not None and clock - self._expected > STOOD_S:
                self._stood_s += clock - self._expected
                self._expected = clock
            return clock - self._stood_s

    def after(self, delay_s: float, call: Callable[[], None]) -> Deadline:
        with self._changed:
            deadline = (self.now() + delay_s, call)
            insort(self._waiting, deadline, key=itemgetter(0))
            if self._expected is None:
                self._expected = time.monotonic()
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            self._changed.notify()
        return deadline

    def cancel(self, deadline: Deadline) -> None:
        with self._changed:
            self._waiting = [one for one in self._waiting if one is not deadline]

    def close(self) -> None:
        """No call is made any more, except one that is going on."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except Exception:  # one job's trouble must not leave the others without a timeout
                log.exception("a deadline of a job could not be kept")

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._closed:
                now = self.now()
                self._expected = now + self._stood_s
                if self._waiting and self._waiting[0][0] <= now:
                    return self._waiting.pop(0)[1]
                wait_s = self._waiting[0][0] - now if self._waiting else None
                self._expected = None if wait_s is None else self._expected + wait_s
                self._changed.wait(wait_s)
            return None
