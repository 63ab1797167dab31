"""When a job last wrote something: a line of output, or a file in its folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from autocl_sweeper.outcome import JobFiles


class LastWrite:
    """How long a job has been quiet, by `now`. It looks only when asked."""

    def __init__(self, files: JobFiles, number: int, now: Callable[[], float]) -> None:
        self._files = files
        self._number = number
        self._now = now
        self._looked = self._wrote = now()
        self._seen: tuple[int, float] | None = None

    def quiet_s(self) -> float:
        """Seconds since the job last wrote, or since this object was made if that was later."""
        now, clock = self._now(), time.time()
        size, newest = 0, 0.0
        with suppress(OSError):  # not there yet, or its file server is not
            log = self._files.log(self._number).stat()
            size, newest = log.st_size, log.st_mtime
        newest = max(newest, *_times_below(self._files.output_folder(self._number)))
        if (size, newest) != self._seen:
            # Times are a file server's, whose clock may be another than ours: what was not there at
            # the last look was written since then, whatever its time says.
            wrote = now - (clock - newest)
            self._wrote = wrote if self._looked <= wrote <= now else now
            self._seen = (size, newest)
        self._looked = now
        return now - self._wrote


def _times_below(folder: Path | None) -> Iterator[float]:
    """When the files and folders there were written, in seconds since 1970; 0 first."""
    yield 0.0
    for place, folders, files in os.walk(folder) if folder is not None else ():
        for name in (*folders, *files):
            with suppress(OSError):  # removed meanwhile: then the folder above has a new time
                yield os.lstat(os.path.join(place, name)).st_mtime
