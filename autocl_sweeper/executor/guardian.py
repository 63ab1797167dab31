"""Stands in for a controller that died: `python -I -S guardian.py kill|finish`, fed by its stdin.

A controller can be killed in a way it cannot answer, and its jobs run in sessions of their own. So
each executor starts one of these, in its own session too, and tells it every process group it
starts (`+pgid`) and has reaped (`-pgid`). When the pipe breaks, the groups still known are killed;
with `finish`, each only after its job has ended, so that nothing of it is left. What is no job
(`!pgid`) is killed either way.
"""

import os
import signal
import sys
import time

LOOK_S = 1.0  # also what a dead job's own helpers get to finish


def main(finish: bool) -> None:
    groups: dict[int, str] = {}
    for line in sys.stdin:
        change, group = line[0], int(line[1:])
        if change == "-":
            groups.pop(group, None)
        else:
            groups[group] = start_time(group) if change == "+" else ""
    if finish:
        for group in [group for group, started in groups.items() if not started]:
            kill(group)
            del groups[group]
        while groups:
            ended = [group for group, started in groups.items() if start_time(group) != started]
            time.sleep(LOOK_S)
            for group in ended:
                kill(group)
                del groups[group]
    for group in groups:
        kill(group)


def kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:  # all of it has ended by itself
        return


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
