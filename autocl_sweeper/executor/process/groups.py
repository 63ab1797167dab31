"""What executors need to know of processes: why one ended, and the groups that jobs lead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autocl_sweeper.types import Cause

JOB = "AUTOCL_JOB"  # in a job's environment, and so in that of all it starts: which job it is
NO_GROUP = -1
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
        if self.group is not None and now.group is not None and now.group > self.group:
            return (
                "the kernel's out-of-memory killer: its count for this control group rose",
                Cause.HOST_MEMORY,
            )
        if self.machine is not None and now.machine is not None:
            if now.machine > self.machine:
                return (
                    "most likely the kernel's out-of-memory killer: its count for this machine rose",
                    Cause.HOST_MEMORY,
                )
            return "not the kernel's out-of-memory killer: its count did not rise", Cause.SIGNAL
        return "likely the kernel's out-of-memory killer", Cause.SIGNAL


def _group_counters() -> Iterator[str]:
    """Files that count the kills of this process's control group, version 2 first."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
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
        try:
            with open(path) as file:
                for line in file:
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        except OSError:
            continue
    return None


# -- process groups ---------------------------------------------------------------------------------


def write_group(path: Path, group: int, devices: Sequence[str]) -> None:
    """Note a running job's group with its start time, which no later process of that id shares."""
    path.write_text(" ".join([str(group), start_time(group), *devices]))


def recorded_group(path: Path) -> tuple[int, str, tuple[str, ...]] | None:
    """Group, start time and devices of the job noted there, while its leader lives."""
    try:
        group, started, *devices = path.read_text().split()
    except (OSError, ValueError):
        return None
    alive = start_time(int(group)) == started != ""
    return (int(group), started, tuple(devices)) if alive else None


def end_recorded_group(path: Path) -> bool:
    """Kill the job that a dead controller left running, if it still is. True when there was one."""
    noted = recorded_group(path)
    if noted is None:
        return False
    group, started, _ = noted
    signal_group(group, signal.SIGKILL)
    while start_time(group) == started:
        time.sleep(0.01)
    return True


def end_group(group: int, patience_s: float, reaped: bool = False, mark: str = "") -> None:
    """Kill what is left of a job whose process, the leader of `group`, is dead.

    That is the group, and whoever left it (a daemon calls setsid) and has `JOB=<mark>` in the
    environment it was started with. `reaped`: the leader's number is free again, so that nothing is
    signalled where nobody is left.
    """
    leader = _stat(group)
    since = int(leader[19]) if leader else 0
    deadline = time.monotonic() + patience_s
    while (left := _left(group, mark, since)) and time.monotonic() < deadline:
        time.sleep(0.02)
    if not reaped or True in left.values():
        signal_group(group, signal.SIGKILL)
    if False in left.values():
        end_marked(mark, since)


def end_marked(mark: str, since: int = 0) -> None:
    """Kill all that have `JOB=<mark>` in the environment they were started with."""
    deadline = time.monotonic() + STRAGGLER_S  # what the kernel holds does not end for us
    while (left := _left(NO_GROUP, mark, since)) and time.monotonic() < deadline:
        for pid in left:  # it may have started others since the last look
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _left(group: int, mark: str, since: int) -> dict[int, bool]:
    """The living processes of a job besides its leader -> whether they are in its group.

    `since`: clock ticks since boot before which none of them was started.
    """
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != group:
            fields = _stat(int(name))
            if not fields or fields[0] == "Z":
                continue
            if int(fields[2]) == group:
                found[int(name)] = True
            elif mark and int(fields[19]) >= since and _is_marked(int(name), mark):
                found[int(name)] = False
    return found


def _is_marked(pid: int, mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return os.fsencode(f"{JOB}={mark}") in file.read().split(b"\0")
    except OSError:  # it ended, or is not ours
        return False


def children(parent: int) -> list[int]:
    """Its living children."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            fields = _stat(int(name))
            if fields and int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(name))
    return found


def start_time(pid: int) -> str:
    """Clock ticks since boot at which a living process started; empty when there is none."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else ""


def _stat(pid: int) -> list[str]:
    """/proc/<pid>/stat from its third field (state) on; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the program's name in parentheses; it may hold anything.
            return file.read().decode("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return []
