"""A command as a child of the job: its output passed on as it comes, nothing of it left at the end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from autocl_sweeper.executor.process.groups import JOB, end_group, signal_group
from autocl_sweeper.executor.process.guard import Guard

LOOK_S = 0.5  # how often a command is asked for its end that has left its output to others


def run(
    argv: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    heard: Callable[[bytes], None],
    grace_s: float,
) -> int:
    """The exit status of a command; negative: the signal that ended it.

    heard: gets its output, stderr included, as it comes. It leads a session of its own, which ends
    when this function does: by SIGTERM, and `grace_s` later SIGKILL, if it is interrupted.
    """
    launched = os.environ.get(JOB)  # then the launcher guards all that has this mark
    mark = "" if launched else f"script-{os.getpid()}-{time.monotonic_ns()}"
    guard = Guard(jobs_outlive=False)
    with _sigterm_interrupts():
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env={**environment, JOB: launched or mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )
        try:
            if mark:
                guard.tell("+", process.pid, mark)
            _listen(process, heard)
        except BaseException:
            signal_group(process.pid, signal.SIGTERM)
            _listen(process, heard, time.monotonic() + grace_s)
            raise
        finally:
            end_group(process.pid, 0.0, reaped=process.poll() is not None, mark=mark)
            process.wait()
            if mark:
                guard.tell("-", process.pid)
            guard.close()
            assert process.stdout is not None
            process.stdout.close()
    return process.returncode


def _listen(
    process: subprocess.Popen[bytes], heard: Callable[[bytes], None], until: float | None = None
) -> None:
    """Pass output on until the command has ended, or until then."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    ended: float | None = None
    while until is None or time.monotonic() < until:
        if ended is None and process.poll() is not None:
            ended = time.monotonic()
        ready, _, _ = select.select([output], [], [], LOOK_S if ended is None else 0.0)
        data = os.read(output, 1 << 16) if ready else b""
        if data:
            heard(data)
        if ended is not None and (not data or time.monotonic() > ended + LOOK_S):
            return  # what it left behind may hold the pipe, and go on writing
        if ready and not data:  # it closed its output: it ends, or goes on in silence
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_S)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise in here, where nothing else answers it: the command is to hear of it."""
    default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
