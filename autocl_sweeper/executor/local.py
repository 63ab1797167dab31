"""Jobs on this machine's devices: each a process of its own with its own lease, refilled at once."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from autocl_sweeper.device.needs import Siblings
from autocl_sweeper.device.pool import Grant, Pool
from autocl_sweeper.device.probe import Device
from autocl_sweeper.device.reservations import used_by
from autocl_sweeper.device.sampling import Sampler
from autocl_sweeper.errors import DeviceError, InfeasibleBudgetError
from autocl_sweeper.executor.ends import Ends, not_composed
from autocl_sweeper.executor.process.adopted import AdoptedProcess
from autocl_sweeper.executor.process.deadlines import Deadlines
from autocl_sweeper.executor.process.forked import ForkServer
from autocl_sweeper.executor.process.groups import STRAGGLER_S, end_group
from autocl_sweeper.executor.process.guard import Guard
from autocl_sweeper.executor.process.last_write import LastWrite
from autocl_sweeper.executor.reports import ReportFiles
from autocl_sweeper.executor.running import Limits, Process, Running
from autocl_sweeper.executor.starting import Commands, Starter
from autocl_sweeper.executor.waiting import Waiting, WaitingRoom
from autocl_sweeper.job.package import NOT_IMPORTED
from autocl_sweeper.outcome import JobFiles, failure
from autocl_sweeper.private import private_folder
from autocl_sweeper.types import OUT_OF_DEVICE_MEMORY, Cause, Job, Need, Outcome, Report, State

log = logging.getLogger(__name__)

POLL_S = 1.0  # how often devices that others hold are looked at again
UNKILLABLE_S = 30.0  # after SIGKILL; a process that waits for a lost device may never die


class LocalExecutor:
    """An Executor of processes. One thread waits for each job, so an end is seen at once.

    With `returns`, outcomes carry Hydra's JobReturn. Every job leads its own session: ending it
    ends what it started. The creator calls `close`. If it dies before, its jobs end with it, or with
    `jobs_outlive` run to their end.
    """

    def __init__(
        self,
        commands: Commands,
        files: JobFiles,
        pool: Pool,
        limits: Limits | None = None,
        returns: bool = False,
        forkserver: Callable[[], ForkServer] | None = None,
        jobs_outlive: bool = False,
        needs: Siblings | None = None,
    ) -> None:
        self._commands = commands
        self._guard = Guard(jobs_outlive)
        self._starter = Starter(commands, files, self._guard, forkserver, jobs_outlive)
        self._needs = needs or Siblings()
        self._files = files
        self.pool = pool
        self._limits = limits or Limits()
        self._returns = returns
        self._jobs_outlive = jobs_outlive
        self._ends = Ends(files, pool, returns, self._starter.stop_forking)
        self._running: dict[int, Running] = {}
        # No SimpleQueue: a deadline that passes while its `get(timeout=0)` looks is none to CPython.
        self._ended: queue.Queue[tuple[Job, Outcome]] = queue.Queue()
        self._deadlines = Deadlines()
        self._reports = ReportFiles(files)
        self._waiting = WaitingRoom()
        self._sampler = Sampler(pool, self._device_lost)
        self._ready: Grant | None = None
        self._refused = ""
        self._warned = False  # of a main file that jobs cannot import
        self._stopping = False
        self._stopped = "stopping"  # what is said of it
        self.on_end: Callable[[], None] = lambda: None  # called when `wait` has something to give
        self._announce_again()

    def free_slots(self) -> int:
        """1 when a device is leased and waits for a job, else 0. The lease is kept for `submit`.

        The first call waits for the forkserver. Raises ConfigurationError when a module that it
        should import does not exist, before a device is touched.
        """
        self._starter.get_ready()
        if self._ready is None and not self._start_waiting():
            return 0
        if self._ready is None:
            self._ready = self._acquire()
            refused = self.pool.refusal
            if refused != self._refused and refused and not self._running:
                log.info("waiting for a device: %s", refused)
            self._refused = refused
        return int(self._ready is not None)

    def _acquire(self, one: Waiting | None = None) -> Grant | None:
        """As the pool's, but an error of devices waits until the jobs on others have ended."""
        self._announce()
        try:
            if one is None:
                return self.pool.acquire()
            stage, need = one.job.stage, one.need
            return self.pool.acquire(alone=one.alone, stage=stage, need=need, insist=one.is_next)
        except DeviceError as error:
            if not self._running:
                raise
            self.pool.refusal = str(error)
            return None

    def devices(self) -> dict[int, tuple[str, ...]]:
        """Trial number -> the devices it runs on."""
        return {number: running.devices for number, running in list(self._running.items())}

    def readings(self) -> dict[str, Device]:
        """What the devices say of themselves now, by id."""
        return {device.id: device for device in self.pool.probe.devices(load=True)}

    def doing(self) -> str:
        """What everything waits for, in a line; mostly empty."""
        if self._stopping:
            return self._stopped
        return self._starter.doing()

    def reserved(self) -> dict[int, tuple[int | None, str]]:
        """Trial number -> MiB it reserves on each of its devices, and where the figure is from."""
        found = {n: running.grant for n, running in list(self._running.items())}
        if not (self.pool.shares and self.pool.probe.measured):
            return {}
        return {n: grant.reserved for n, grant in found.items() if grant is not None}

    def submit(self, job: Job) -> None:
        """Start it now, or as soon as it fits on a device: alone, where it has to be."""
        if not self.free_slots():
            raise RuntimeError(f"job {job.number} submitted without a free slot")
        grant, self._ready = self._ready, None
        assert grant is not None
        try:
            need = self._needs.of(job) if self.pool.shares else Need()
            self.pool.refuse_budget(need)
        except Exception as error:
            self._refuse(job, grant, error)
            return
        alone = job.alone or self.pool.must_be_alone(need)
        if (grant.alone or not alone) and self.pool.suits(grant, job.stage, need):
            self._run(job, need, grant)
            self._waiting.pass_all()
        else:
            grant.close()
            self._waiting.append(Waiting(job, need, alone))
            self._start_waiting()

    def adopt(self, job: Job) -> bool:
        """Take over a job that outlived the controller that started it. False: it is dead.

        Without `jobs_outlive` no job is taken over.
        """
        process = AdoptedProcess.find(self._files.group(job.number))
        if process is None or not self._jobs_outlive:
            return False
        self._guard.tell("+", process.pid, self._files.mark(job.number))
        self._reports.begin(job.number, job.reported)
        running = self._running_of(job, process.devices, job.alone, process)
        running.announce(self.pool)
        running.started -= process.age_s
        self._watch(running)
        return True

    def wait(self, timeout_s: float | None) -> list[tuple[Job, Outcome]]:
        """Jobs that ended; at the latest after `POLL_S` while devices are held by others."""
        self._release()
        self._start_waiting()
        if self._refused or self._waiting:
            timeout_s = POLL_S if timeout_s is None else min(timeout_s, POLL_S)
        elif timeout_s is None and all(running.over for running in self._running.values()):
            timeout_s = 0.0
        ended = []
        with suppress(queue.Empty):
            ended.append(self._ended.get(timeout=timeout_s))
            ended += [self._ended.get_nowait() for _ in range(self._ended.qsize())]
        if ended and not self._warned and self._files.flaw().exists():
            self._warned = True
            log.warning(NOT_IMPORTED, self._files.flaw().read_text("utf-8", "replace"))
        for job, outcome in ended:
            self._running.pop(job.number, None)
            self._reports.end(job.number)
            self.learn(job, outcome)
        return ended

    def reports(self) -> list[Report]:
        return self._reports.new()

    def learn(self, job: Job, outcome: Outcome) -> None:
        """Let what an ended job used decide what the next ones reserve."""
        need = self._needs.known(job)
        if outcome.lost and outcome.cause in OUT_OF_DEVICE_MEMORY:
            self.pool.reservations.ran_out(job.number, need)
        folder = Path(job.folder) if job.folder else self._files.output_folder(job.number)
        if used := used_by(job.number, job.stage, need, outcome, folder):
            self.pool.learn(used)

    def cancel(self, job: Job) -> None:
        if (running := self._running.get(job.number)) is not None:
            running.end("cancelled", Cause.CANCELLED)
        if (waiting := self._waiting.take(job.number)) is not None:
            cancelled = Outcome(State.FAIL, "cancelled", cause=Cause.CANCELLED)
            self._ended.put((waiting, cancelled))

    def stop(self) -> None:
        """SIGTERM to all jobs, `grace_s` later SIGKILL; `wait` gives what they made of it.

        Those that have no result by then are lost. `close` from here on waits for nobody.
        """
        self._stopping = True
        self._release()
        self._waiting.clear()
        self._refused = ""
        running = [one for one in self._running.values() if not one.over]
        if running:
            jobs = "1 job gets" if len(running) == 1 else f"{len(running)} jobs get"
            self._stopped = (
                f"stopping: {jobs} {self._limits.grace_s:g} s to save; Ctrl-C again kills"
                f" {'it' if len(running) == 1 else 'them'}.  Same command continues."
            )
            log.info(self._stopped)
        for one in running:
            one.end("the sweep was stopped", Cause.STOPPED)

    def close(self) -> None:
        try:
            if not self._stopping:
                self.stop()
                while self.wait(None):
                    pass
        finally:  # also when a signal comes in between
            for running in list(self._running.values()):
                running.kill()
            deadline = time.monotonic() + UNKILLABLE_S
            for running in self._running.values():
                if running.thread.is_alive():
                    running.thread.join(max(0.0, deadline - time.monotonic()))
                if running.thread.is_alive():  # it hangs in the kernel; its end frees its lease
                    number, pid = running.job.number, running.process.pid
                    log.warning("job %d cannot be killed (pid %d)", number, pid)
            self._running.clear()
            self._deadlines.close()
            self._sampler.close()
            self._starter.close()
            self._guard.close()

    def _release(self) -> None:
        """Give back a device that was asked for and not used: others may want it."""
        if self._ready is not None:
            self._ready.close()
            self._ready = None

    def _start_waiting(self) -> bool:
        """Start those that waited for room; whether others may start too."""
        return self._waiting.serve(
            self._acquire, lambda one, grant: self._run(one.job, one.need, grant)
        )

    def _run(self, job: Job, need: Need, grant: Grant) -> None:
        try:
            order = self._commands.order(job, self._returns)
        except Exception as error:
            self._refuse(job, grant, error)
        else:
            self._watch(self._start(job, need, grant, order))

    def _refuse(self, job: Job, grant: Grant, error: Exception) -> None:
        grant.close()
        refused = isinstance(error, InfeasibleBudgetError)
        ended = (job, failure(error, 0.0)) if refused else not_composed(job, error, self._returns)
        self._ended.put(ended)
        self.on_end()

    def _watch(self, running: Running) -> None:
        number = running.job.number
        running.thread = threading.Thread(
            target=self._await, args=(running,), name=f"job-{number}", daemon=True
        )
        self._running[number] = running
        pid, path = running.process.pid, self._files.samples(number)
        base_mib = {} if running.grant is None else running.grant.base_mib
        self._sampler.add(number, pid, running.devices, base_mib, path, running.need)
        running.thread.start()
        running.keep_limits()

    def _running_of(
        self, job: Job, devices: tuple[str, ...], alone: bool, process: Process
    ) -> Running:
        writing = LastWrite(self._files, job.number, self._deadlines.now)
        return Running(job, devices, alone, process, writing, self._limits, self._deadlines)

    def _start(self, job: Job, need: Need, grant: Grant, order: bytes) -> Running:
        private_folder(self._files.folder)
        with ExitStack() as given_back:
            given_back.callback(grant.close)
            self._files.forget(job.number)
            self._files.reserve(job.number)
            self._reports.begin(job.number)
            share = self.pool.environment(grant, need, job.stage)
            with self._starter.start(job.number, order, grant, share) as process:
                self.pool.began(grant, process.pid, job.stage, need)
                running = self._running_of(job, grant.ids, grant.alone, process)
                running.need, running.grant = need, grant
            given_back.pop_all()  # until it is reaped: a job may close its own copy
        return running

    def _announce(self) -> None:
        """Hold what running jobs were given, also where they or a cleaner of /tmp dropped its locks."""
        for running in list(self._running.values()):
            running.announce(self.pool)

    def _announce_again(self) -> None:
        self._announce()
        self._deadlines.after(POLL_S, self._announce_again)

    def _await(self, running: Running) -> None:
        """Runs in the job's thread: from here on nobody else reaps the process."""
        pid = running.process.pid
        running.process.wait()
        end_group(
            pid, STRAGGLER_S, reaped=running.adopted, mark=self._files.mark(running.job.number)
        )
        status = running.reap()
        self._guard.tell("-", pid)
        if running.abandoned:
            return
        try:
            outcome = self._ends.outcome(running, status)
        except Exception as error:  # a result that can be read in the job's process alone
            outcome = failure(error, running.seconds)
        self._over(running, outcome)

    def _over(self, running: Running, outcome: Outcome) -> None:
        outcome = replace(outcome, device=self._sampler.remove(running.job.number))
        self._ended.put((running.job, outcome))
        running.over = True
        self.on_end()

    def _device_lost(self, number: int, reason: str) -> None:
        """Runs in the sampler's thread: a job whose device is gone may hang for ever."""
        if (running := self._running.get(number)) is not None:
            reason = f"its device is lost: {reason}"
            running.end(reason, Cause.DEVICE)
            patience_s = self._limits.grace_s + UNKILLABLE_S
            running.after(patience_s, lambda: self._abandon(running, reason))

    def _abandon(self, running: Running, reason: str) -> None:
        """Go on without a job that even SIGKILL does not end. What is left of it keeps its lease."""
        if running.abandon():
            log.warning("job %d cannot be killed (pid %d)", running.job.number, running.process.pid)
            lost = Outcome(State.FAIL, reason, cause=Cause.DEVICE, lost=True)
            self._over(running, replace(lost, seconds=running.seconds))
