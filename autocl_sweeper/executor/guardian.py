"""Ends the jobs of a controller that died: `python -I -S guardian.py`, fed through its stdin.

A controller can be killed in a way it cannot answer, and its jobs run in sessions of their own. So
each executor starts one of these, in its own session too, and tells it every process group it
starts (`+pgid`) and has reaped (`-pgid`). When the pipe breaks, the groups still known are killed.
"""

import os
import signal
import sys


def main() -> None:
    groups: set[int] = set()
    for line in sys.stdin:
        change, group = line[0], int(line[1:])
        (groups.add if change == "+" else groups.discard)(group)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:  # it ended by itself in the same instant
            continue


if __name__ == "__main__":
    # A Ctrl-C or a service manager's SIGTERM is the controller's to answer; the pipe tells the rest.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    main()
