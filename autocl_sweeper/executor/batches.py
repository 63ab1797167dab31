"""Any Hydra launcher as an executor: it runs batches and blocks until each is over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autocl_sweeper.executor.reports import ReportFiles
from autocl_sweeper.outcome import JobFiles, failure
from autocl_sweeper.types import Cause, Job, Outcome, Report, State


class BatchExecutor:
    """Collects jobs and launches them when asked to wait.

    The launcher must run `job.task.ReportingTask`: what a job wrote counts, so jobs that finished
    are kept when their launcher loses the batch (a killed joblib worker).
    """

    def __init__(self, launcher: Any, files: JobFiles, batch_size: int | None) -> None:
        self._launcher = launcher
        self._files = files
        self._batch_size = batch_size
        self._queued: list[Job] = []
        self._cancelled: list[Job] = []
        self._suspects: set[int] = set()  # each runs in a batch of its own
        self._reports = ReportFiles(files)

    def free_slots(self) -> int:
        return 1 if self._batch_size is None else self._batch_size - len(self._queued)

    def submit(self, job: Job) -> None:
        self._files.forget(job.number)
        self._reports.begin(job.number)
        self._queued.append(job)

    def wait(self, timeout_s: float | None) -> list[tuple[Job, Outcome]]:
        """Runs what is queued, to the end: launchers cannot be interrupted. With 0: nothing yet."""
        if self._cancelled:
            ended, self._cancelled = self._cancelled, []
            return [(job, Outcome(State.FAIL, "cancelled", cause=Cause.CANCELLED)) for job in ended]
        batch = self._take_batch() if timeout_s != 0.0 else []
        if not batch:
            time.sleep(timeout_s or 0.0)  # nothing runs; a trial waits for its next attempt
            return []
        try:
            returns = self._launcher.launch([job.overrides for job in batch], batch[0].number)
        except Exception as error:
            return self._after(error, batch)
        finally:
            for job in batch:
                self._reports.end(job.number)
        return [(job, self._outcome(job, ret)) for job, ret in zip(batch, returns, strict=True)]

    def reports(self) -> list[Report]:
        """What jobs reported is read when their batch is over."""
        return self._reports.new()

    def cancel(self, job: Job) -> None:
        """Only a job that still waits for its batch."""
        self._cancelled += [queued for queued in self._queued if queued.number == job.number]
        self._queued = [queued for queued in self._queued if queued.number != job.number]

    def adopt(self, job: Job) -> bool:
        return False

    def stop(self) -> None:
        """What its launcher runs ends with the exception that stops the sweep."""
        self._queued.clear()

    close = stop

    def _take_batch(self) -> list[Job]:
        """Queued jobs up to the first gap in their numbers: a launcher numbers from the first on."""
        batch: list[Job] = []
        for job in self._queued:
            if batch:
                last = batch[-1].number
                if job.number != last + 1 or {last, job.number} & self._suspects:
                    break
            batch.append(job)
        del self._queued[: len(batch)]
        return batch

    def _outcome(self, job: Job, job_return: Any) -> Outcome:
        outcome = self._files.read_outcome(job.number)
        if outcome is None:  # it did not get as far as the task function
            value = getattr(job_return, "_return_value", None)
            if not isinstance(value, BaseException):
                value = RuntimeError("the launcher gave no result for this job")
            outcome = failure(value, 0.0)
        return replace(outcome, job_return=job_return)

    def _after(self, error: Exception, batch: Sequence[Job]) -> list[tuple[Job, Outcome]]:
        """The outcomes of a batch that its launcher lost.

        Only a job that had begun can have brought that about. Each of those runs again alone, where
        it can harm no other, and those that had not begun run again as before.
        """
        ended = {job.number: self._files.read_outcome(job.number) for job in batch}
        unfinished = [number for number, outcome in ended.items() if outcome is None]
        begun = [number for number in unfinished if self._files.begun(number).exists()]
        lost = failure(error, 0.0)
        if len(batch) > 1 and begun:
            self._suspects.update(begun)
            lost = replace(lost, lost=True, reason=f"the launcher lost its batch: {lost.reason}")
        return [(job, ended[job.number] or lost) for job in batch]
