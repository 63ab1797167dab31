"""What executors need to know of processes: why one ended, and the groups that jobs lead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autocl_sweeper.executor.process.guardian import end_marked, is_marked, living, stat
from autocl_sweeper.types import Cause

JOB = "AUTOCL_JOB"  # in a job's environment, and so in that of all it starts: which job it is
STRAGGLER_S = 1.0  # what a dead job's own helpers (resource trackers) get to finish


def exit_reason(status: int) -> str:
    """What the exit status of a process that left no outcome means, in words."""
    if status < 0:
        number = -status
        known = number in set(signal.Signals)  # most real-time signals have no name
        return f"killed by {signal.Signals(number).name if known else f'signal {number}'}"
    if status == 0:
        return "exit status 0 before the task function returned"
    return f"exit status {status}"


@dataclass(frozen=True)
class OomKills:
    """How many processes the kernel has killed for want of memory; None: it does not tell."""

    group: int | None  # of our control group: jobs are in it as well
    machine: int | None

    @classmethod
    def now(cls) -> OomKills:
        return cls(_first_count(_group_counters()), _first_count(("/proc/vmstat",)))

    def blame(self, now: OomKills) -> tuple[str, Cause]:
        """What a SIGKILL that nobody here sent was, between this count and a later one."""
        killer = "the kernel's out-of-memory killer"
        if self.group is not None and now.group is not None and now.group > self.group:
            return f"{killer}: its count for this control group rose", Cause.HOST_MEMORY
        if self.machine is None or now.machine is None:
            return f"likely {killer}", Cause.SIGNAL
        if now.machine > self.machine:
            return f"most likely {killer}: its count for this machine rose", Cause.HOST_MEMORY
        return f"not {killer}: its count did not rise", Cause.SIGNAL


def _group_counters() -> Iterator[str]:
    """Files that count the kills of this process's control group, version 2 first."""
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    for line in sorted(lines, key=lambda text: not text.startswith("0::")):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield f"/sys/fs/cgroup{path}/memory.events"
            yield "/sys/fs/cgroup/memory.events"  # in a container with a namespace of its own
        elif "memory" in controllers.split(","):
            yield f"/sys/fs/cgroup/memory{path}/memory.oom_control"
            yield "/sys/fs/cgroup/memory/memory.oom_control"


def _first_count(paths: Iterable[str]) -> int | None:
    for path in paths:
        with suppress(OSError), open(path) as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return None


# -- process groups ---------------------------------------------------------------------------------


def end_group(group: int, patience_s: float, reaped: bool = False, mark: str = "") -> None:
    """Kill what is left of a job whose process, the leader of `group`, is dead.

    That is the group, and whoever left it (a daemon calls setsid) and has `JOB=<mark>` in the
    environment it was started with. `reaped`: the leader's number is free again, so that nothing is
    signalled where nobody is left.
    """
    leader = stat(group)
    since = int(leader[19]) if leader else 0
    marks = {entry(mark)} if mark else set()
    deadline = time.monotonic() + patience_s
    while (left := _left(group, marks, since)) and time.monotonic() < deadline:
        time.sleep(0.02)
    if not reaped or True in left.values():
        signal_group(group, signal.SIGKILL)
    if False in left.values():
        end_marked(marks, since)


def _left(group: int, marks: set[bytes], since: int) -> dict[int, bool]:
    """The living processes of a job besides its leader -> whether they are in its group."""
    others = {pid: fields for pid, fields in living().items() if pid != group}
    return {
        pid: int(fields[2]) == group
        for pid, fields in others.items()
        if int(fields[2]) == group or (marks and is_marked(pid, fields, marks, since))
    }


def entry(mark: str) -> bytes:
    """What a job with this mark, and all that it starts, has in its environment."""
    return os.fsencode(f"{JOB}={mark}")


def signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def children(parent: int) -> list[int]:
    """Its living children."""
    return [pid for pid, fields in living().items() if int(fields[1]) == parent]
