"""A job that outlived its controller, in the hands of the next one: not a child of anybody here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autocl_sweeper.executor.process.groups import signal_group
from autocl_sweeper.executor.process.guardian import start_time

LOOK_S = 0.05  # between two looks whether it lives


@dataclass
class AdoptedProcess:
    """A job process whose end can be awaited, and whose exit status nobody here will know."""

    pid: int
    started: str  # clock ticks since boot, which no later process of that number shares
    devices: tuple[str, ...] = ()

    @classmethod
    def find(cls, record: Path) -> AdoptedProcess | None:
        """The process noted there by `write_group`, while it lives."""
        try:
            pid, started, *devices = record.read_text().split()
            found = cls(int(pid), started, tuple(devices))
        except (OSError, ValueError):
            return None
        return found if found.is_alive() else None

    @property
    def age_s(self) -> float:
        boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(0.0, boot_s - int(self.started) / os.sysconf("SC_CLK_TCK"))

    def is_alive(self) -> bool:
        return start_time(self.pid) == self.started

    def wait(self) -> None:
        while self.is_alive():
            time.sleep(LOOK_S)

    def reap(self) -> None:
        """Somebody else does: the forkserver, or the system's first process."""


def write_group(path: Path, group: int, devices: Sequence[str]) -> None:
    """Note a running job's group for whoever resumes the sweep."""
    path.write_text(" ".join([str(group), start_time(group), *devices]))


def end_recorded_group(path: Path) -> bool:
    """Kill the job that a dead controller left running, if it still is. True when there was one."""
    if (noted := AdoptedProcess.find(path)) is None:
        return False
    signal_group(noted.pid, signal.SIGKILL)
    noted.wait()
    return True
