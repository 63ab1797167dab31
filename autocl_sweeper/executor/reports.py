"""What running jobs reported, read from the files they append to."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from autocl_sweeper.outcome import JobFiles, is_number
from autocl_sweeper.types import Report

LOOK_S = 1.0  # between two looks at the files of running jobs


@dataclass
class _Read:
    """How far a job's file has been read."""

    known: int  # reports still to come that are known already
    offset: int = 0


class ReportFiles:
    """The reports of the jobs of one sweep, each given once. For a single thread."""

    def __init__(self, files: JobFiles, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._clock = clock
        self._running: dict[int, _Read] = {}
        self._over: dict[int, _Read] = {}  # jobs that ended since the last call of `new`
        self._looked = -math.inf

    def begin(self, number: int, known: int = 0) -> None:
        """A job starts, or goes on although `known` of its reports were read before."""
        self._running[number] = _Read(known)
        self._over.pop(number, None)

    def end(self, number: int) -> None:
        """The job is over: the next call of `new` reads its file for the last time."""
        if number in self._running:
            self._over[number] = self._running.pop(number)

    def new(self) -> list[Report]:
        """Reports since the last call. Files of running jobs are not looked at all the time."""
        looked = dict(self._over)
        self._over.clear()
        if self._clock() - self._looked >= LOOK_S:
            self._looked = self._clock()
            looked |= self._running
        return [report for number, read in looked.items() for report in self._rest(number, read)]

    def _rest(self, number: int, progress: _Read) -> list[Report]:
        """What a job's file has got since it was read, up to its last whole line."""
        try:
            with open(self._files.reports(number), "rb") as file:
                file.seek(progress.offset)
                data = file.read()
        except OSError:  # not there yet, or its file server is not
            return []
        whole = data[: data.rfind(b"\n") + 1]
        progress.offset += len(whole)
        parsed = (_parse(number, line) for line in whole.splitlines())
        found = [report for report in parsed if report is not None]
        skipped = min(progress.known, len(found))
        progress.known -= skipped
        return found[skipped:]


def _parse(number: int, line: bytes) -> Report | None:
    """A line that is no report is left out: any process of a job can write there."""
    try:
        record = json.loads(line)
        score, step = record["score"], record["step"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(step, int) or not (score is None or is_number(score)):
        return None
    return Report(number, step, math.nan if score is None else float(score))
