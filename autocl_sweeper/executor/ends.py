"""The outcome of a job that ended on this machine: what it wrote, or what its end says."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace

from autocl_sweeper.device.pool import Pool
from autocl_sweeper.device.probe import short
from autocl_sweeper.executor.process.forked import ForkedProcess
from autocl_sweeper.executor.process.groups import OomKills, exit_reason
from autocl_sweeper.executor.running import Running
from autocl_sweeper.job.returned import failed_return, unpacked
from autocl_sweeper.outcome import UNWRITTEN, JobFiles, cause_in_log, failure, last_lines
from autocl_sweeper.private import read_private
from autocl_sweeper.types import OUT_OF_DEVICE_MEMORY, Cause, Job, Outcome, State

FORKSERVER_DIED = "the process it was forked from died"
STATUS_LOST = "it ended without a result after its controller had died"
BAD_FORK = "Cannot re-initialize CUDA in forked subprocess"


@dataclass(frozen=True)
class Ends:
    """Reads the ends of one executor's jobs. With `returns`, outcomes carry Hydra's JobReturn."""

    files: JobFiles
    pool: Pool
    returns: bool
    stop_forking: Callable[[str], None]  # called with a reason when forked jobs cannot work

    def outcome(self, running: Running, status: int | None) -> Outcome:
        """`status`: None when it was lost."""
        number = running.job.number
        outcome = self.files.read_outcome(number)
        if outcome is None:
            outcome = _without_result(running, status)
        elif self.returns and not running.adopted:  # only what a job of ours wrote is unpickled
            returned = unpacked(read_private(self.files.job_return(number)))
            outcome = replace(outcome, job_return=returned)
        if outcome.state is not State.FAIL:
            return outcome
        tail = last_lines(self.files.log(number))
        outcome = self._explained(running, replace(outcome, log_tail=tail or outcome.log_tail))
        if outcome.lost:  # else whoever resumes the sweep would take it for a result
            self.files.outcome(number).unlink(missing_ok=True)
        return outcome

    def _explained(self, running: Running, failed: Outcome) -> Outcome:
        """What a failure is due to, and whether it says anything about the job."""
        if running.ended_by is not None:  # whatever it answered to that
            reason, cause = running.ended_by
            lost = cause in (Cause.STOPPED, Cause.DEVICE)
            return replace(failed, reason=reason, cause=cause, lost=lost)
        if isinstance(running.process, ForkedProcess) and BAD_FORK in failed.reason:
            self.stop_forking(f"job {running.job.number} could not use CUDA in a forked process")
            return replace(failed, lost=True)
        if failed.cause is Cause.CONFIGURATION:
            return failed
        if sick := self.pool.failed_on(running.devices):
            reason = f"{failed.reason} [{sick}]"
            return replace(failed, reason=reason, cause=Cause.DEVICE, lost=True)
        if failed.cause is Cause.EXIT:
            failed = replace(failed, cause=cause_in_log(failed.log_tail))
        # What it failed of may stand nowhere: its log was on the full disk, too.
        by_itself = failed.cause in (Cause.EXIT, Cause.SIGNAL, Cause.EXCEPTION)
        if by_itself and self.files.is_full(running.job.number):
            failed = replace(failed, cause=Cause.DISK, reason=f"{failed.reason} [the disk is full]")
        if failed.cause is Cause.DISK:
            return replace(failed, lost=True)
        if failed.cause not in OUT_OF_DEVICE_MEMORY:
            return failed
        # Worth another attempt where others had a part of that memory, and only there.
        names = " ".join(short(device) for device in running.devices)
        if not running.alone:
            return replace(failed, lost=True, reason=f"{failed.reason} [shared {names}]")
        once = f"[alone on {names}: another attempt would end the same way]"
        # The second time the setting is to blame, and not what it shared its device with.
        cause = Cause.INFEASIBLE if running.job.alone else failed.cause
        return replace(failed, reason=f"{failed.reason} {once}", cause=cause)


def _without_result(running: Running, status: int | None) -> Outcome:
    lost = status is None and running.ended_by is None
    if status == UNWRITTEN:
        reason, cause = "its outcome could not be written to the disk", Cause.DISK
    elif status is None:
        reason, cause = (STATUS_LOST if running.adopted else FORKSERVER_DIED), Cause.SIGNAL
    elif status == -signal.SIGKILL and running.ended_by is None:
        blame, cause = running.oom_kills.blame(OomKills.now())
        reason = f"{exit_reason(status)} ({blame})"
    else:
        reason, cause = exit_reason(status), Cause.SIGNAL if status < 0 else Cause.EXIT
    return Outcome(State.FAIL, reason, seconds=running.seconds, cause=cause, lost=lost)


def not_composed(job: Job, error: Exception, returns: bool) -> tuple[Job, Outcome]:
    """A job whose configuration raised an error of Hydra's, or of an app's resolver."""
    outcome = failure(error, 0.0, Cause.CONFIGURATION)
    return job, replace(
        outcome, job_return=failed_return(job.overrides, error) if returns else None
    )
