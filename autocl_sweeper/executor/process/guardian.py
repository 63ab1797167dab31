"""Stands in for a controller that died: `python -I -S guardian.py kill|finish`, fed by its stdin.

A controller can be killed in a way it cannot answer, and its jobs run in sessions of their own. So
each executor starts one of these, in its own session too, and tells it every process group it
starts (`+pgid started mark`) and has reaped (`-pgid`). When the pipe breaks, the groups still known
are killed, and with them all that have their mark in the environment they were started with; with
`finish`, each only after its job has ended, so that nothing of it is left. What is no job
(`!pgid started mark`) is killed either way.
"""

import os
import signal
import sys
import time

LOOK_S = 1.0  # also what a dead job's own helpers get to finish


def main(finish: bool) -> None:
    known: dict[int, list[str]] = {}  # group -> what it is, when it was started, its mark
    for line in sys.stdin:
        group, *more = line[1:].split()
        if line[0] == "-":
            known.pop(int(group), None)
        else:
            known[int(group)] = [line[0], *more]
    if finish:
        end({group: told for group, told in known.items() if told[0] == "!"})
        jobs = {group: told for group, told in known.items() if told[0] == "+"}
        while jobs:
            ended = {g: told for g, told in jobs.items() if start_time(g) != told[1]}
            time.sleep(LOOK_S)
            end(ended)
            for group in ended:
                del jobs[group]
    else:
        end(known)


def end(groups: dict[int, list[str]]) -> None:
    """Kill these groups, and what left them: it has the mark, and so has all that it starts."""
    for group, (_, started, _) in groups.items():
        try:
            if start_time(group) in ("", started):  # else the number is a stranger's by now
                os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:  # all of it has ended by itself
            continue
    deadline = time.monotonic() + LOOK_S  # what the kernel holds does not end for us
    marks = {bytes.fromhex(mark) for _, _, mark in groups.values()}
    while marks and (left := marked(marks)) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(0.02)


def marked(marks: set[bytes]) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    environment = file.read().split(b"\0")
            except OSError:  # it ended, or is not ours
                continue
            if not marks.isdisjoint(environment) and start_time(int(name)):
                found.append(int(name))
    return found


def start_time(pid: int) -> str:
    """When a living process started; empty when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == b"Z" else fields[19].decode()


if __name__ == "__main__":
    # A Ctrl-C or a service manager's SIGTERM is the controller's to answer; the pipe tells the rest.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    main(finish=sys.argv[1] == "finish")
