"""A job that outlived its controller, in the hands of the next one: not a child of anybody here."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from autocl_sweeper.executor.process.groups import recorded_group, start_time

LOOK_S = 0.5  # where the kernel has no file descriptors for processes (before Linux 5.3)


class AdoptedProcess:
    """A job process whose end can be awaited, and whose exit status nobody here will know."""

    def __init__(self, pid: int, started: str, devices: tuple[str, ...] = ()) -> None:
        """`started`: clock ticks since boot, as `processes.start_time` tells them."""
        self.pid = pid
        self.devices = devices
        self._started = started

    @classmethod
    def find(cls, record: Path) -> AdoptedProcess | None:
        """The process noted there by `write_group`, while it lives."""
        noted = recorded_group(record)
        return None if noted is None else cls(*noted)

    @property
    def age_s(self) -> float:
        boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(0.0, boot_s - int(self._started) / os.sysconf("SC_CLK_TCK"))

    def wait(self) -> None:
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:  # it is dead, or such descriptors are unknown here
            while self._alive():
                time.sleep(LOOK_S)
            return
        try:
            if self._alive():  # else the descriptor may be a stranger's
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                poll.poll()
        finally:
            os.close(fd)

    def reap(self) -> None:
        """Somebody else does: the forkserver, or the system's first process."""

    def _alive(self) -> bool:
        return start_time(self.pid) == self._started
