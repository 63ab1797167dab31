"""How job processes start: forked from a process that has imported already, or as fresh interpreters."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from autocl_sweeper.device.pool import Grant
from autocl_sweeper.executor.process.adopted import write_group
from autocl_sweeper.executor.process.forked import ForkServer, ForkServerLostError
from autocl_sweeper.executor.process.forkserver import in_memory
from autocl_sweeper.executor.process.fresh import FreshProcess
from autocl_sweeper.executor.process.groups import JOB
from autocl_sweeper.executor.process.guard import Guard
from autocl_sweeper.executor.running import Process
from autocl_sweeper.job.process import GO
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.reporter import VARIABLE as REPORTS
from autocl_sweeper.types import Job

log = logging.getLogger(__name__)


class Commands(Protocol):
    """What to run for a job; `job.Package` in real life."""

    def command(self) -> list[str]: ...

    def order(self, job: Job, returns: bool) -> bytes:
        """Raises what composing the job does."""
        ...


@dataclass
class Starter:
    """Jobs are forked from what `start_forkserver` starts while that works, and are fresh otherwise."""

    commands: Commands
    files: JobFiles
    guard: Guard
    start_forkserver: Callable[[], ForkServer] | None
    jobs_outlive: bool
    _forkserver: ForkServer | None = None  # started when a job wants a device
    _forks: bool | None = None  # whether jobs are forked; None: not known yet

    def get_ready(self) -> None:
        """The first call waits for the fork server. Raises what its `ready` does."""
        if self._forks is None:
            start = self.start_forkserver
            self._forks = start is not None and self._forks_from(start())

    def _forks_from(self, forkserver: ForkServer) -> bool:
        self._forkserver = forkserver
        first = forkserver.pid
        self.guard.tell("!", first, forkserver.mark)
        if not forkserver.ready():
            return False
        if forkserver.pid != first:  # it began again, without a module that forks would suffer from
            self.guard.tell("-", first)
            self.guard.tell("!", forkserver.pid, forkserver.mark)
        if self.jobs_outlive:
            forkserver.outlive()
            self.guard.tell("-", forkserver.pid)  # it ends after its last job
        return True

    def doing(self) -> str:
        """What jobs wait for; empty when they can start."""
        if self._forks is None and self._forkserver is not None:
            return self._forkserver.importing()
        return ""

    def stop_forking(self, reason: str) -> None:
        if self._forks and self._forkserver is not None:
            self._forks = False
            self._forkserver.retire()
            log.warning("%s: further jobs start in fresh interpreters", reason)

    @contextmanager
    def start(
        self, number: int, order: bytes, grant: Grant, environment: Mapping[str, str]
    ) -> Iterator[Process]:
        """The process of a job, which whoever resumes the sweep can find. It begins after the block."""
        stdin, word = os.pipe()
        # A job starts with a word, so a controller killed before it leaves no job unknown.
        with open(word, "wb", buffering=0) as go:
            try:
                with open(self.files.log(number), "wb") as output, in_memory(order) as reading:
                    own = {
                        **grant.environment,
                        **environment,
                        JOB: self.files.mark(number),
                        REPORTS: str(self.files.reports(number).absolute()),
                    }
                    process = self._process([stdin, output.fileno(), reading, *grant.fds], own)
            finally:
                os.close(stdin)
            self.guard.tell("+", process.pid, self.files.mark(number))
            write_group(self.files.group(number), process.pid, grant.ids)
            yield process
            with suppress(BrokenPipeError):  # its end is seen where its process is waited for
                go.write(GO)

    def _process(self, fds: Sequence[int], environment: Mapping[str, str]) -> Process:
        if self._forks:
            assert self._forkserver is not None
            try:
                return self._forkserver.start(fds, environment)
            except ForkServerLostError as lost:
                self.stop_forking(str(lost))
        return FreshProcess(self.commands.command(), fds, environment)

    def close(self) -> None:
        if self._forkserver is not None:
            if not self._forkserver.kept:
                self._forkserver.close()
            self.guard.tell("-", self._forkserver.pid)
            self._forkserver = None
