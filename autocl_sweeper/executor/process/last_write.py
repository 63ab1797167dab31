"""When a job last wrote something: a line of output, or a file in its folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from autocl_sweeper.outcome import JobFiles


class LastWrite:
    """How long a job has been quiet, by `now`. It looks only when asked."""

    def __init__(
        self, files: JobFiles, number: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._files = files
        self._number = number
        self._now = now
        self._looked = self._wrote = now()
        self._seen: tuple[int, float] | None = None

    def quiet_s(self) -> float:
        """Seconds since the job last wrote, or since this object was made if that was later."""
        now, clock = self._now(), time.time()
        size, newest = _size_and_time(self._files.log(self._number))
        newest = max(newest, _newest_below(self._folder()))
        if (size, newest) != self._seen:
            # Times are a file server's, whose clock may be another than ours: what was not there at
            # the last look was written since then, whatever its time says.
            wrote = now - (clock - newest)
            self._wrote = wrote if self._looked <= wrote <= now else now
            self._seen = (size, newest)
        self._looked = now
        return now - self._wrote

    def _folder(self) -> Path | None:
        try:
            return Path(self._files.output(self._number).read_text("utf-8", "surrogateescape"))
        except OSError:  # it has not come so far
            return None


def _size_and_time(path: Path) -> tuple[int, float]:
    try:
        found = path.stat()
    except OSError:  # not there yet, or its file server is not
        return 0, 0.0
    return found.st_size, found.st_mtime


def _newest_below(folder: Path | None) -> float:
    """The latest time of a file or folder there (seconds since 1970); 0 when there is none."""
    newest = 0.0
    waiting = [] if folder is None else [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    newest = max(newest, entry.stat(follow_symlinks=False).st_mtime)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:  # removed meanwhile (then the folder above has a new time), or not ours
            continue
    return newest
