"""Jobs on this machine's devices: each a process of its own with its own lease, refilled at once."""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from autocl_sweeper import hydra_job
from autocl_sweeper.executor import guardian
from autocl_sweeper.executor.fresh import FreshProcess
from autocl_sweeper.executor.pool import Grant, Pool
from autocl_sweeper.executor.processes import end_group, exit_reason, signal_group, write_group
from autocl_sweeper.executor.warm import ForkedProcess, Template, TemplateLostError
from autocl_sweeper.hydra_job import GO
from autocl_sweeper.outcome import JobFiles, failure, last_lines
from autocl_sweeper.types import Job, Outcome, State

log = logging.getLogger(__name__)

GRACE_S = 10.0  # from SIGTERM to SIGKILL: long enough for a handler that saves a checkpoint
STRAGGLER_S = 1.0  # what a dead job's own helpers (resource trackers) get to finish
POLL_S = 1.0  # how often devices that others hold are looked at again
TEMPLATE_DIED = "the process it was forked from died"
BAD_FORK = "Cannot re-initialize CUDA in forked subprocess"


class Commands(Protocol):
    """What to run for a job; `hydra_job.Package` in real life."""

    def argv(self, job: Job, returns: bool) -> list[str]: ...


class Process(Protocol):
    """A job process, however it was started. It leads a session and waits for `GO` on its stdin."""

    pid: int

    def wait(self) -> None:
        """Until it is dead. Its number stays taken, so its group can still be signalled."""
        ...

    def reap(self) -> int | None:
        """Give up its number; its exit status, or None when that was lost."""
        ...


@dataclass
class _Running:
    job: Job
    grant: Grant
    process: Process
    forked: bool
    started: float
    ended_by: str = ""  # why we ended it: the reason of its outcome
    timers: list[threading.Timer] = field(default_factory=list)
    # Its number is its own only until it is reaped: afterwards a signal would hit a stranger.
    signalling: threading.Lock = field(default_factory=threading.Lock)
    reaped: bool = False


class LocalExecutor:
    """An Executor of processes. One thread waits for each job, so an end is seen at once.

    With `returns`, outcomes carry Hydra's JobReturn. Every job leads its own session: ending it
    ends what it started. Jobs are forked from `template` while that works, and are fresh
    interpreters otherwise. The creator calls `close`, which closes `template` too.
    """

    def __init__(
        self,
        commands: Commands,
        files: JobFiles,
        pool: Pool,
        timeout_s: float | None = None,
        returns: bool = False,
        template: Template | None = None,
    ) -> None:
        self._commands = commands
        self._files = files
        self._pool = pool
        self._timeout_s = timeout_s
        self._returns = returns
        self._running: dict[int, _Running] = {}
        self._ended: queue.SimpleQueue[tuple[_Running, Outcome]] = queue.SimpleQueue()
        self._ready: Grant | None = None
        self._refused = ""
        self._guardian: subprocess.Popen[bytes] | None = None
        self._template = template
        self._forks: bool | None = None  # whether jobs are forked; None: not known yet
        if template is not None:
            self._tell_guardian("+", template.pid)

    def free_slots(self) -> int:
        """1 when a device is leased and waits for a job, else 0. The lease is kept for `submit`.

        The first call waits for the template. Raises ConfigurationError when a module that it
        should import does not exist, before a device is touched.
        """
        if self._forks is None:
            self._forks = self._template is not None and self._template.ready()
        if self._ready is None:
            self._ready = self._pool.acquire()
            refused = self._pool.refusal
            if refused != self._refused and refused and not self._running:
                log.info("waiting for a device: %s", refused)
            self._refused = refused
        return int(self._ready is not None)

    def devices(self) -> dict[int, tuple[str, ...]]:
        """Trial number -> the devices it runs on."""
        return {number: running.grant.ids for number, running in self._running.items()}

    def submit(self, job: Job) -> None:
        if not self.free_slots():
            raise RuntimeError(f"job {job.number} submitted without a free slot")
        grant, self._ready = self._ready, None
        assert grant is not None
        running = self._start(job, grant)
        self._running[job.number] = running
        if self._timeout_s is not None:
            reason = f"timed out after {self._timeout_s:g} s (hydra.launcher.timeout_s)"
            timer = threading.Timer(self._timeout_s, self._end, (running, reason))
            timer.daemon = True
            timer.start()
            running.timers.append(timer)
        threading.Thread(
            target=self._await, args=(running,), name=f"job-{job.number}", daemon=True
        ).start()

    def wait(self, timeout_s: float | None) -> list[tuple[Job, Outcome]]:
        """Jobs that ended; at the latest after `POLL_S` while devices are held by others."""
        if self._ready is not None:  # asked for and not used: others may want the device
            self._ready.close()
            self._ready = None
        if self._refused:
            timeout_s = POLL_S if timeout_s is None else min(timeout_s, POLL_S)
        elif not self._running and timeout_s is None:
            timeout_s = 0.0
        ended = []
        with suppress(queue.Empty):
            ended.append(self._ended.get(timeout=timeout_s))
            while True:
                ended.append(self._ended.get_nowait())
        for running, _ in ended:
            del self._running[running.job.number]
        return [(running.job, outcome) for running, outcome in ended]

    def cancel(self, job: Job) -> None:
        running = self._running.get(job.number)
        if running is not None:
            self._end(running, "cancelled")

    def close(self) -> None:
        if self._ready is not None:
            self._ready.close()
            self._ready = None
        for running in list(self._running.values()):
            self._end(running, "the sweep ended")
        while self._running:
            self.wait(None)
        if self._template is not None:
            self._template.close()
            self._tell_guardian("-", self._template.pid)
            self._template = None
        if self._guardian is not None:
            assert self._guardian.stdin is not None
            self._guardian.stdin.close()
            self._guardian.wait()
            self._guardian = None

    def _start(self, job: Job, grant: Grant) -> _Running:
        self._files.folder.mkdir(parents=True, exist_ok=True)
        self._files.forget(job.number)
        stdin, word = os.pipe()
        try:
            with open(self._files.log(job.number), "wb") as output:
                process = self._process(job, stdin, output.fileno(), grant)
        finally:
            os.close(stdin)
            # The job holds its own copy: the lease ends when the last of its processes does.
            grant.close()
        self._tell_guardian("+", process.pid)
        write_group(self._files.group(job.number), process.pid)
        # A job starts with this word, so a controller killed before it leaves no job unknown.
        with open(word, "wb", buffering=0) as file, suppress(BrokenPipeError):  # `_await` finds out
            file.write(GO)
        return _Running(job, grant, process, isinstance(process, ForkedProcess), time.monotonic())

    def _process(self, job: Job, stdin: int, output: int, grant: Grant) -> Process:
        if self._forks:
            assert self._template is not None
            arguments = self._template.arguments(job, self._returns)
            try:
                return self._template.start(arguments, stdin, output, grant.fds, grant.environment)
            except TemplateLostError as lost:
                self._stop_forking(str(lost))
        argv = self._commands.argv(job, self._returns)
        return FreshProcess(argv, stdin, output, grant.fds, grant.environment)

    def _stop_forking(self, reason: str) -> None:
        if self._forks:
            self._forks = False
            log.warning("%s: further jobs start in fresh interpreters", reason)

    def _await(self, running: _Running) -> None:
        """Runs in the job's thread: from here on nobody else reaps the process."""
        pid = running.process.pid
        running.process.wait()
        end_group(pid, STRAGGLER_S)
        with running.signalling:
            running.reaped = True
            for timer in running.timers:
                timer.cancel()
            status = running.process.reap()
        self._tell_guardian("-", pid)
        try:
            outcome = self._outcome(running, status)
        except Exception as error:  # a result that can be read in the job's process alone
            outcome = failure(error, time.monotonic() - running.started)
        self._ended.put((running, outcome))

    def _outcome(self, running: _Running, status: int | None) -> Outcome:
        number = running.job.number
        outcome = self._files.read_outcome(number)
        lost = outcome is None and status is None and not running.ended_by
        if outcome is None:
            outcome = Outcome(
                state=State.FAIL,
                reason=running.ended_by
                or (TEMPLATE_DIED if status is None else exit_reason(status)),
                seconds=time.monotonic() - running.started,
            )
        elif self._returns:
            returned = hydra_job.read_return(self._files.job_return(number))
            outcome = replace(outcome, job_return=returned)
        if outcome.state is State.FAIL:
            tail = last_lines(self._files.log(number))
            outcome = replace(outcome, log_tail=tail or outcome.log_tail)
            if running.forked and BAD_FORK in outcome.reason:
                self._stop_forking(f"job {number} could not use CUDA in a forked process")
                lost = True
        return replace(outcome, lost=True) if lost else outcome

    def _end(self, running: _Running, reason: str) -> None:
        """SIGTERM to all of a job, SIGKILL after `GRACE_S`; the job's thread reports its end."""
        with running.signalling:
            if running.reaped:
                return
            running.ended_by = running.ended_by or reason
            signal_group(running.process.pid, signal.SIGTERM)
            timer = threading.Timer(GRACE_S, self._kill, (running,))
            timer.daemon = True
            timer.start()
            running.timers.append(timer)

    def _kill(self, running: _Running) -> None:
        with running.signalling:
            if not running.reaped:
                signal_group(running.process.pid, signal.SIGKILL)

    def _tell_guardian(self, change: str, group: int) -> None:
        if self._guardian is None:
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(guardian.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                bufsize=0,
            )
        assert self._guardian is not None and self._guardian.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed it; resuming still ends what is left
            self._guardian.stdin.write(f"{change}{group}\n".encode())
