"""The controller's side of `guardian`, which ends its jobs when it dies."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

from autocl_sweeper.executor.process import guardian
from autocl_sweeper.executor.process.groups import JOB, entry


class Guard:
    """A guardian that is started with the first process it is to know of. The creator calls `close`."""

    def __init__(self, jobs_outlive: bool) -> None:
        self._at_death = "finish" if jobs_outlive else "kill"
        self._guardian: subprocess.Popen[bytes] | None = None

    def tell(self, change: str, group: int, mark: str = "") -> None:
        """`change`: "+" for a job, "!" for what is none, "-" for what has been reaped."""
        if self._guardian is None:
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", guardian.__file__, self._at_death],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                # Of a sweep inside a job: it has to outlive that job.
                env={name: value for name, value in os.environ.items() if name != JOB},
                start_new_session=True,
                bufsize=0,
            )
        assert self._guardian.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed it; resuming still ends what is left
            told = f"{guardian.start_time(group) or 0} {entry(mark).hex()}" if mark else ""
            self._guardian.stdin.write(f"{change}{group} {told}\n".encode())

    def close(self) -> None:
        if self._guardian is not None:
            self._guardian.communicate()
            self._guardian = None
