"""Stands in for a controller that died: `python -I -S guardian.py kill|finish`, fed by its stdin.

A controller can be killed in a way it cannot answer, and its jobs run in sessions of their own. So
each executor starts one of these, in its own session too, and tells it every process group it
starts (`+pgid started mark`) and has reaped (`-pgid`). When the pipe breaks, the groups still known
are killed, and with them all that have their mark in the environment they were started with; with
`finish`, each only after its job has ended, so that nothing of it is left. What is no job
(`!pgid started mark`) is killed either way. It imports the standard library alone, to start at once.
"""

import os
import signal
import sys
import time
from contextlib import suppress

LOOK_S = 1.0  # what a dead job's own helpers get to finish, and what is killed gets to end


def main(finish: bool) -> None:
    known: dict[int, list[str]] = {}  # group -> what it is, when it was started, its mark
    for line in sys.stdin:
        group, *more = line[1:].split()
        if line[0] == "-":
            known.pop(int(group), None)
        else:
            known[int(group)] = [line[0], *more]
    jobs = {group: told for group, told in known.items() if finish and told[0] == "+"}
    end({group: told for group, told in known.items() if group not in jobs})
    while jobs:
        ended = {group: told for group, told in jobs.items() if start_time(group) != told[1]}
        time.sleep(LOOK_S)
        end(ended)
        jobs = {group: told for group, told in jobs.items() if group not in ended}


def end(groups: dict[int, list[str]]) -> None:
    """Kill these groups, and what left them: it has the mark, and so has all that it starts."""
    for group, (_, started, _) in groups.items():
        with suppress(ProcessLookupError):  # all of it has ended by itself
            if start_time(group) in ("", started):  # else the number is a stranger's by now
                os.killpg(group, signal.SIGKILL)
    end_marked({bytes.fromhex(mark) for _, _, mark in groups.values()})


def end_marked(marks: set[bytes], since: int = 0) -> None:
    """Kill all that have one of these in the environment they were started with, `since` or later."""
    deadline = time.monotonic() + LOOK_S  # what the kernel holds does not end for us
    while marks and time.monotonic() < deadline:
        left = [pid for pid, fields in living().items() if is_marked(pid, fields, marks, since)]
        if not left:
            break
        for pid in left:  # it may have started others since the last look
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def is_marked(pid: int, fields: list[str], marks: set[bytes], since: int) -> bool:
    """`since`: clock ticks since boot before which it was not started."""
    with suppress(OSError):  # it ended, or is not ours
        if int(fields[19]) >= since:
            with open(f"/proc/{pid}/environ", "rb") as file:
                return not marks.isdisjoint(file.read().split(b"\0"))
    return False


def living() -> dict[int, list[str]]:
    """The living processes, each with its `stat`."""
    found = {int(name): stat(int(name)) for name in os.listdir("/proc") if name.isdecimal()}
    return {pid: fields for pid, fields in found.items() if fields and fields[0] != "Z"}


def start_time(pid: int) -> str:
    """Clock ticks since boot at which a living process started; empty when there is none."""
    fields = stat(pid)
    return fields[19] if fields and fields[0] != "Z" else ""


def stat(pid: int) -> list[str]:
    """/proc/<pid>/stat from its third field (state) on; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the program's name in parentheses; it may hold anything.
            return file.read().decode("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return []


if __name__ == "__main__":
    # A Ctrl-C or a service manager's SIGTERM is the controller's to answer; the pipe tells the rest.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    main(finish=sys.argv[1] == "finish")
