"""What executors need to know of processes: why one ended, and the groups that jobs lead."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path


def exit_reason(status: int) -> str:
    """What the exit status of a job that left no outcome means, in words."""
    if status < 0:
        name = signal.Signals(-status).name
        hint = " (the kernel's out-of-memory killer does this)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    if status == 0:
        return "exit status 0 before the task function returned"
    return f"exit status {status}"


# -- process groups ---------------------------------------------------------------------------------


def write_group(path: Path, group: int) -> None:
    """Note a running job's group with its start time, which no later process of that id shares."""
    path.write_text(f"{group} {_start_time(group)}")


def end_recorded_group(path: Path) -> bool:
    """Kill the job that a dead controller left running, if it still is. True when there was one."""
    try:
        group, start_time = path.read_text().split()
    except (OSError, ValueError):
        return False
    alive = _start_time(int(group)) == start_time != ""
    if alive:
        signal_group(int(group), signal.SIGKILL)
        while _start_time(int(group)) == start_time:
            time.sleep(0.01)
    return alive


def end_group(group: int, patience_s: float) -> None:
    """Kill what is left of a group whose leader is dead and not yet reaped."""
    deadline = time.monotonic() + patience_s
    while _members(group) and time.monotonic() < deadline:
        time.sleep(0.02)
    signal_group(group, signal.SIGKILL)


def signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _members(group: int) -> bool:
    """Whether a process besides the leader is in the group and alive."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != group:
            fields = _stat(int(name))
            if fields and int(fields[2]) == group and fields[0] != "Z":
                return True
    return False


def _start_time(pid: int) -> str:
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
