"""A job that runs on devices of this machine: its limits, and how it is ended."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from autocl_sweeper.device.pool import Grant, Pool
from autocl_sweeper.executor.process.adopted import AdoptedProcess
from autocl_sweeper.executor.process.deadlines import Deadline, Deadlines
from autocl_sweeper.executor.process.groups import OomKills, signal_group
from autocl_sweeper.executor.process.last_write import LastWrite
from autocl_sweeper.types import Cause, Job, Need


class Process(Protocol):
    """A job process, however it was started. It leads a session and waits for `GO` on its stdin."""

    pid: int

    def wait(self) -> None:
        """Until it is dead. Its number stays taken, so its group can still be signalled."""
        ...

    def reap(self) -> int | None:
        """Give up its number; its exit status, or None when that was lost."""
        ...


@dataclass(frozen=True)
class Limits:
    """When a job is ended, and how: SIGTERM to all of its processes, `grace_s` later SIGKILL."""

    timeout_s: float | None = None
    stall_s: float | None = None  # without a write to its log or its folder
    grace_s: float = 10.0  # long enough for a handler that saves a checkpoint


@dataclass
class Running:
    """One job from its start to its end. Its thread reaps it, any other may end it before."""

    job: Job
    devices: tuple[str, ...]
    alone: bool  # no other job of this account was on its devices
    process: Process
    writing: LastWrite
    limits: Limits
    deadlines: Deadlines
    started: float = field(default_factory=time.monotonic)
    need: Need = field(default_factory=Need)
    grant: Grant | None = None  # our copy of its leases; none of an adopted job that has its own
    oom_kills: OomKills = field(default_factory=OomKills.now)
    ended_by: tuple[str, Cause] | None = None  # why we ended it
    over: bool = False  # its outcome is there for `wait`
    abandoned: bool = False  # though its processes are not dead
    thread: threading.Thread = field(init=False)
    # Its number is its own only until it is reaped: afterwards a signal would hit a stranger.
    _signalling: threading.RLock = field(default_factory=threading.RLock)
    _reaped: bool = False
    _due: list[Deadline] = field(default_factory=list)

    @property
    def adopted(self) -> bool:
        return isinstance(self.process, AdoptedProcess)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def keep_limits(self) -> None:
        """End the job when it exceeds its limits."""
        timeout_s, stall_s = self.limits.timeout_s, self.limits.stall_s
        if timeout_s is not None:
            reason = f"timed out after {timeout_s:g} s (hydra.launcher.timeout_s)"
            self.after(timeout_s, lambda: self.end(reason, Cause.TIMEOUT))
        if stall_s is not None:
            self._look_for_writing(stall_s)

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call it then, unless the job is over before."""
        with self._signalling:
            if not self._reaped:
                self._due.append(self.deadlines.after(delay_s, call))

    def _look_for_writing(self, stall_s: float) -> None:
        """End a job that has written nothing for `stall_s`; else look again when it may have."""
        quiet_s = self.writing.quiet_s()
        if quiet_s >= stall_s:
            reason = f"wrote nothing for {stall_s:g} s, neither to its log nor in its folder"
            self.end(f"{reason} (hydra.launcher.stall_s)", Cause.STALL)
        else:
            self.after(stall_s - quiet_s, lambda: self._look_for_writing(stall_s))

    def end(self, reason: str, cause: Cause) -> None:
        """SIGTERM to all of the job, SIGKILL `grace_s` later; its thread reports its end."""
        with self._signalling:
            if self._reaped:
                return
            self.ended_by = self.ended_by or (reason, cause)
            signal_group(self.process.pid, signal.SIGTERM)
            self.after(self.limits.grace_s, self.kill)

    def kill(self) -> None:
        with self._signalling:
            if not self._reaped:
                signal_group(self.process.pid, signal.SIGKILL)

    def reap(self) -> int | None:
        """Its exit status. From here on nothing signals the job, and no deadline comes."""
        with self._signalling:
            self._reaped = True
            for deadline in self._due:
                self.deadlines.cancel(deadline)
            self._due.clear()
            status = self.process.reap()
            if self.grant is not None:  # what is left of the job, if anything, holds its own copy
                self.grant.close()
            return status

    def announce(self, pool: Pool) -> None:
        """See to it that its devices are leased as long as it runs, whatever became of the lock files."""
        with self._signalling:
            if self._reaped:
                return
            if self.grant is not None:
                pool.announce(self.grant)
            elif self.adopted:
                self.grant = pool.take_over(self.devices)

    def abandon(self) -> bool:
        """Go on without a job that even SIGKILL does not end. False: it is dead after all."""
        with self._signalling:
            self.abandoned = not self._reaped
            return self.abandoned
