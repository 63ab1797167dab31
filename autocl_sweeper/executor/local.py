"""Jobs on this machine's devices: each a fresh process with its own lease, refilled at once."""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from autocl_sweeper import hydra_job
from autocl_sweeper.devices import Lease, LeaseFolder, Probe, Refusal, lease_free
from autocl_sweeper.executor import guardian
from autocl_sweeper.hydra_job import GO, JobFiles
from autocl_sweeper.types import Job, Outcome, State

log = logging.getLogger(__name__)

GRACE_S = 10.0  # from SIGTERM to SIGKILL: long enough for a handler that saves a checkpoint
STRAGGLER_S = 1.0  # what a dead job's own helpers (resource trackers) get to finish
POLL_S = 1.0  # how often devices that others hold are looked at again


@dataclass(frozen=True)
class Grant:
    """Devices leased for one job. `close` gives back our copy; the job's own keeps them leased."""

    leases: Sequence[Lease]
    environment: Mapping[str, str]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(lease.device_id for lease in self.leases)

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple(lease.fileno() for lease in self.leases)

    def close(self) -> None:
        for lease in self.leases:
            lease.close()


@dataclass
class Pool:
    """The devices that jobs of one executor may get, and the rule by which they get them."""

    probe: Probe
    leases: LeaseFolder
    count: int = 1  # per job
    free_memory: float = 0.8
    max_devices: int | None = None
    holder: str = ""
    refusal: str = ""  # why the last `acquire` gave nothing; empty when it gave

    def acquire(self) -> Grant | None:
        """Devices for one job, or None while none is free. Raises DeviceError if none can ever be."""
        found = lease_free(
            self.probe, self.leases, self.count, self.free_memory, self.max_devices, self.holder
        )
        if isinstance(found, Refusal):
            self.refusal = str(found)
            return None
        self.refusal = ""
        return Grant(found, self.probe.environment([lease.device_id for lease in found]))


class Commands(Protocol):
    """What to run for a job; `hydra_job.Package` in real life."""

    def argv(self, job: Job, returns: bool) -> list[str]: ...


@dataclass
class _Running:
    job: Job
    grant: Grant
    process: subprocess.Popen[bytes]
    started: float
    ended_by: str = ""  # why we ended it: the reason of its outcome
    timers: list[threading.Timer] = field(default_factory=list)


class LocalExecutor:
    """An Executor of processes. One thread waits for each job, so an end is seen at once.

    With `returns`, outcomes carry Hydra's JobReturn. Every job leads its own session: ending it
    ends what it started. The creator calls `close`.
    """

    def __init__(
        self,
        commands: Commands,
        files: JobFiles,
        pool: Pool,
        timeout_s: float | None = None,
        returns: bool = False,
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

    def free_slots(self) -> int:
        """1 when a device is leased and waits for a job, else 0. The lease is kept for `submit`."""
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
        if self._guardian is not None:
            assert self._guardian.stdin is not None
            self._guardian.stdin.close()
            self._guardian.wait()
            self._guardian = None

    def _start(self, job: Job, grant: Grant) -> _Running:
        self._files.folder.mkdir(parents=True, exist_ok=True)
        self._files.forget(job.number)
        log_path = self._files.log(job.number)
        try:
            with open(log_path, "wb") as output:
                self._start_guardian()
                process = subprocess.Popen(
                    self._commands.argv(job, self._returns),
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **grant.environment},
                    pass_fds=grant.fds,
                    start_new_session=True,
                )
        finally:
            # The job holds its own copy: the lease ends when the last of its processes does.
            grant.close()
        self._tell_guardian("+", process.pid)
        write_group(self._files.group(job.number), process.pid)
        assert process.stdin is not None
        # A job starts with this word, so a controller killed before it leaves no job unknown.
        with suppress(BrokenPipeError):  # it is dead already, which `_await` will find
            process.stdin.write(GO)
            process.stdin.close()
        return _Running(job, grant, process, time.monotonic())

    def _await(self, running: _Running) -> None:
        """Runs in the job's thread: from here on nobody else reaps the process."""
        pid = running.process.pid
        # WNOWAIT leaves a zombie, so the group's number cannot be given to anyone else meanwhile.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        end_group(pid, STRAGGLER_S)
        status = running.process.wait()
        for timer in running.timers:
            timer.cancel()
        self._tell_guardian("-", pid)
        try:
            outcome = self._outcome(running, status)
        except Exception as error:  # a result that can be read in the job's process alone
            outcome = hydra_job.failure(error, time.monotonic() - running.started)
        self._ended.put((running, outcome))

    def _outcome(self, running: _Running, status: int) -> Outcome:
        number = running.job.number
        outcome = self._files.read_outcome(number)
        if outcome is None:
            outcome = Outcome(
                state=State.FAIL,
                reason=running.ended_by or exit_reason(status),
                seconds=time.monotonic() - running.started,
            )
        elif self._returns:
            returned = hydra_job.read_return(self._files.job_return(number))
            outcome = replace(outcome, job_return=returned)
        if outcome.state is State.FAIL:
            tail = hydra_job.last_lines(self._files.log(number))
            outcome = replace(outcome, log_tail=tail or outcome.log_tail)
        return outcome

    def _end(self, running: _Running, reason: str) -> None:
        """SIGTERM to all of a job, SIGKILL after `GRACE_S`; the job's thread reports its end."""
        running.ended_by = running.ended_by or reason
        _signal_group(running.process.pid, signal.SIGTERM)
        timer = threading.Timer(GRACE_S, _signal_group, (running.process.pid, signal.SIGKILL))
        timer.daemon = True
        timer.start()
        running.timers.append(timer)

    def _start_guardian(self) -> None:
        if self._guardian is None:
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(guardian.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                bufsize=0,
            )

    def _tell_guardian(self, change: str, group: int) -> None:
        assert self._guardian is not None and self._guardian.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed it; resuming still ends what is left
            self._guardian.stdin.write(f"{change}{group}\n".encode())


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
        _signal_group(int(group), signal.SIGKILL)
        while _start_time(int(group)) == start_time:
            time.sleep(0.01)
    return alive


def end_group(group: int, patience_s: float) -> None:
    """Kill what is left of a group whose leader is dead and not yet reaped."""
    deadline = time.monotonic() + patience_s
    while _members(group) and time.monotonic() < deadline:
        time.sleep(0.02)
    _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: int) -> None:
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
