"""Jobs without Hydra: any command, run by an executor as if it were a job's process."""

from __future__ import annotations

import sys

from autocl_sweeper.types import Job

# Commands that run the text of their order.
PYTHON = [sys.executable, "-c", "import sys; exec(open(int(sys.argv[1])).read())"]
SHELL = ["/bin/sh", "-c", 'eval "$(cat /proc/self/fd/$0)"']


class Command:
    """Runs one command for every job; its last argument is the descriptor of an empty order."""

    def __init__(self, *argv: str) -> None:
        self._argv = argv

    def command(self) -> list[str]:
        return list(self._argv)

    def order(self, job: Job, returns: bool) -> bytes:
        return b""


def script(text: str) -> Command:
    """Runs Python text."""
    return Command(sys.executable, "-c", text)
