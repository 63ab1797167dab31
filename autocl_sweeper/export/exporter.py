"""Keeps exports current while a sweep runs, without making it wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from autocl_sweeper.export.rows import Beams, Place, Row, Rows
from autocl_sweeper.journal import Record
from autocl_sweeper.types import History

PAUSE_S = 0.5  # between two writes: what changes meanwhile is written together
RETRY_S = 60.0  # after a failure
STUCK_S = 60.0  # at the end of a sweep: so long without a row written, and it waits no more
CHUNK = 20  # rows at a time

log = logging.getLogger(__name__)


class Exporter:
    """Writes rows to places from a thread of its own: a slow or lost storage holds up no job."""

    def __init__(self, places: Mapping[str, Callable[[], Place]]) -> None:
        """`places`: what to call a place in messages -> what opens it, in the thread."""
        self._places = [_Behind(name, begin) for name, begin in places.items()]
        self._rows: Rows | None = None
        self._changed = threading.Condition()
        self._fresh: dict[int, Row] = {}  # not seen by the thread yet
        self._beams: dict[int, Sequence[int]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="export", daemon=True)

    def begin(self, records: Iterable[Record], history: History) -> None:
        """Write all of a history, folded from these records, and from then on what changes."""
        if not self._places:
            return
        self._rows = Rows(history, records)
        self._beams.update(history.beams)
        self._fresh.update((row.trial.number, row) for row in self._rows.every())
        self._thread.start()

    def note(self, event: str, record: Record) -> None:
        """An event is in the journal and in the history."""
        if self._rows is None:
            return
        rows = self._rows.after(event, record, time.time())
        with self._changed:
            if event == "select":
                self._beams[record["stage"]] = tuple(record["beam"])
            self._fresh.update((row.trial.number, row) for row in rows)
            self._changed.notify()

    def close(self) -> None:
        """Write what is left, for as long as rows are written at all."""
        if self._rows is None:
            return
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(1.0)
        if self._thread.is_alive():
            log.info(
                "The last trials are written to %s", ", ".join(one.name for one in self._places)
            )
        before = -1
        while self._thread.is_alive() and (left := self._left()) != before:
            before = left
            self._thread.join(STUCK_S)
        if self._thread.is_alive():
            late = ", ".join(place.name for place in self._places if place.waiting)
            log.warning(f"{late}: not up to date; `autocl export` writes it from the journal")

    def _left(self) -> int:
        return sum(len(place.waiting) for place in self._places)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fresh or self._closed)
                fresh, self._fresh = self._fresh, {}
                beams, closed = dict(self._beams), self._closed
            for place in self._places:
                place.write(fresh, beams, closed)
            if closed:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._closed, PAUSE_S)


@dataclass
class _Behind:
    """A place, and the rows it does not have yet."""

    name: str
    begin: Callable[[], Place]
    place: Place | None = None
    every: dict[int, Row] = field(default_factory=dict)
    waiting: dict[int, Row] = field(default_factory=dict)
    try_at: float = 0.0
    warned: bool = False

    def write(self, fresh: Mapping[int, Row], beams: Beams, last: bool) -> None:
        self.every.update(fresh)
        self.waiting.update(fresh)
        if not last and time.monotonic() < self.try_at:
            return
        try:
            if self.place is None:
                self.place = self.begin()
                self.waiting.update(self.every)
            numbers = sorted(self.waiting)
            for start in range(0, len(numbers), CHUNK):
                chunk = numbers[start : start + CHUNK]
                self.place.write([self.waiting[number] for number in chunk], beams)
                for number in chunk:
                    del self.waiting[number]
            self.place.write([], beams)
        except Exception as error:  # storages raise what they like, and the sweep goes on
            self.place = None  # half a row may be written: it begins anew
            self.try_at = time.monotonic() + RETRY_S
            if not self.warned:
                log.warning(
                    f"{self.name} could not be written; the sweep goes on, and `autocl export` writes"
                    f" it again from the journal.\n  {type(error).__name__}: {error}"
                )
            self.warned = True
