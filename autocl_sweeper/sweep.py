"""The control loop: strategy -> executor -> journal. The one module that knows everybody."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from autocl_sweeper import results
from autocl_sweeper.budget import Budget, Meter, device_seconds, spent
from autocl_sweeper.errors import (
    ConfigurationError,
    JobContractError,
    SweepFolderError,
    SweepStoppedError,
)
from autocl_sweeper.executor.process.groups import end_recorded_group
from autocl_sweeper.executor.reports import ReportFiles
from autocl_sweeper.journal import VERSION, Fold, Journal, fold, outcome_to_json, trial_to_json
from autocl_sweeper.outcome import LOG_NAME, JobFiles, link_log
from autocl_sweeper.plan import Plan, refuse_changes, refuse_lower
from autocl_sweeper.protocols import Executor
from autocl_sweeper.retention import Retention
from autocl_sweeper.retries import Retries, rest_s
from autocl_sweeper.strategy.decisions import Done, GiveUp, Select, Stage, Start
from autocl_sweeper.types import History, Job, Outcome, Report, State, Trial
from autocl_sweeper.verdict import Verdict
from autocl_sweeper.yaml.snapshot import Snapshot, copy_of

REPORTS_S = 1.0  # how long a report may lie before it is read, while jobs run

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Who watches a sweep. Called from the control loop, so it must be quick."""

    def begin(self, plan: Plan, history: History) -> None: ...
    def started(self, trial: Trial) -> None: ...
    def finished(self, trial: Trial) -> None: ...
    def again(self, trial: Trial, reason: str) -> None: ...
    def gave_up(self, trial: Trial) -> None: ...
    def selected(self, stage: Stage, beam: Sequence[Trial]) -> None: ...
    def end(self) -> None: ...


class Clock(Protocol):
    """As the module `time`; tests have one that jumps."""

    def time(self) -> float: ...
    def monotonic(self) -> float: ...


class Sweep:
    """One sweep in one folder. `run` continues whatever the folder's journal says was begun.

    Raises SweepFolderError and its kin, ChangedSweepError, ConfigurationError for a job that
    cannot be composed, and SweepStoppedError and its kin. Whatever it raises, finished trials are
    in the journal and the executor is the caller's to close.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        executor: Executor,
        files: JobFiles,
        progress: Progress,
        snapshot: Snapshot | None = None,
        clock: Clock = time,
    ) -> None:
        """`snapshot`: the files the jobs are configured from; a sweep that has none needs none."""
        self._folder = folder
        self._plan = plan
        self._executor = executor
        self._files = files
        self._progress = progress
        self._snapshot = snapshot or Snapshot()
        self._journal = Journal(folder)
        self._result_file = results.ResultFile(folder, plan)
        self._keeps = plan.settings.keep_checkpoints == "all"
        self._retention = Retention(folder, plan.selection, plan.ranked and not self._keeps)
        last, key = len(plan.stages), plan.checkpoint_key
        self._verdict = Verdict(folder, plan.objective, plan.ranked, last, key, results.RESULT_FILE)
        self._clock = clock
        self._restart: Retries[Trial] = Retries(
            plan.settings.retries, plan.settings.retry_delay_s, clock.monotonic
        )
        self._submitted: set[int] = set()  # what the executor has not reported yet
        self.stopped: str | None = None  # which part of its budget was used up
        self.outcomes: dict[int, Outcome] = {}  # of this run; with Hydra's JobReturn, unless ranked
        try:
            self._open()
        except BaseException:
            self._journal.close()
            raise

    def run(self) -> History:
        history = self.history
        self._progress.begin(self._plan, history)
        try:
            self._take_up_the_rest()
            while True:
                # First what has ended: jobs shorter than a start must not pile up unseen.
                self._wait(0.0)
                decision = self._plan.strategy.next(history)
                if isinstance(decision, Done) and not history.ending:
                    self._append("end")
                    break
                no_retry = self._meter.time_used_up()
                no_trial = no_retry or self._meter.jobs_used_up(len(history))
                if isinstance(decision, GiveUp):
                    self._give_up(decision)
                elif isinstance(decision, Select) and not self._restarts(decision.stage):
                    self._select(decision)
                elif self._restart.due() and not no_retry and self._executor.free_slots():
                    self._start(self._restart.pop())
                elif isinstance(decision, Start) and not no_trial and self._executor.free_slots():
                    self._start(self._new(decision))
                elif (no_retry if self._restart else no_trial) and not self._submitted:
                    self.stopped = no_retry or no_trial
                    break
                else:
                    self._wait(self._bounded(self._restart.wait_s()))
        except (KeyboardInterrupt, SystemExit):  # a signal; another one ends this as well
            self._stop()
            raise
        finally:
            self._progress.end()
            self._write_results()
            self._journal.close()
        if self.stopped is None:
            shutil.rmtree(self._files.folder, ignore_errors=True)
        return history

    def best_chain(self) -> list[dict[str, Any]]:
        """One entry per stage, as in optimization_results.yaml."""
        return results.best_chain(self._plan, self.history, self._overrides)

    # -- opening and resuming --

    def _open(self) -> None:
        records = self._journal.records
        try:
            state = fold(records)
        except (KeyError, ValueError, TypeError) as error:
            raise SweepFolderError(
                f"'{self._journal.path}' cannot be continued: {error!r}.\n"
                "  It is not a journal of this version. Set another hydra.sweep.dir."
            ) from error
        scored = any(trial.score is not None for trial in state.history)
        if state.ended and not self._plan.ranked and not scored:
            # Nothing to continue and nothing to compare: run again, as Hydra's basic sweeper does.
            self._journal.set_aside()
            records, state = [], Fold()
        self.history = state.history
        self._overrides = state.overrides
        self._over = state.over
        self._failed_at = state.failed_at
        self._restart.failed.update(state.failures)
        self._restart.alone.update(state.alone)
        if state.setup is None:
            fingerprint = dict(self._plan.fingerprint)
            files = self._snapshot.record(fingerprint.get("configuration"))
            self._snapshot.keep(self._folder)
            self._append("sweep", version=VERSION, fingerprint=fingerprint, configuration=files)
        else:
            self._journal.refuse_other_version(state.setup["version"])
            edited = self._snapshot.changes(state.setup.get("configuration", {}).get("files", {}))
            refuse_changes(self._folder, state.setup["fingerprint"], self._plan.fingerprint, edited)
            raised = refuse_lower(self._folder, state.bounds, self._plan.bounds)
            if raised:
                told = "every stage is over" if state.ended else "for the stages still open"
                log.info("%s (%s)", "; ".join(raised), told)
        self._journal.open_session(self._plan.bounds)
        for unfinished in self._folder.glob(".*.tmp"):  # a file that was being written at a kill
            unfinished.unlink()
        self._result_file.rebuild(records, self.history)
        self._retention.resume(self.history)
        budget = Budget.of(self._plan.settings.budget)
        self._meter = Meter(budget, spent(records), self._clock.monotonic)

    def _take_up_the_rest(self) -> None:
        for number in list(self.history.ending):
            self._end_alone(self.history[number])
        for trial in self.history.running():
            if trial.number not in self.history.given_up:  # by what one before it had become
                self._take_up(trial)
        for trial in self.history:
            open_stage = trial.stage not in self.history.beams
            if trial.state is State.FAIL and open_stage and self._restart.left(trial.number):
                self._restart.failed[trial.number] += 1
                self._restart.add(replace(trial, attempt=trial.attempt + 1, outcome=None))

    def _take_up(self, trial: Trial) -> None:
        """A dead controller left this trial running: adopt its job or outcome, or run it again."""
        if trial.number in self._over:
            self._wait_out(trial)
            return
        known = len(self.history.reports(trial.number))
        if self._executor.adopt(replace(self._job(trial), reported=known)):
            self._submitted.add(trial.number)
            self._meter.started(trial.number)
            log.info("the job of trial %d outlived its controller and goes on", trial.number)
            self._progress.started(trial)
            return
        if end_recorded_group(self._files.group(trial.number)):
            log.info("ended the job of trial %d, left by a dead controller", trial.number)
        reports = ReportFiles(self._files)
        reports.begin(trial.number, known)
        self._record(reports.new())
        outcome = self._files.read_outcome(trial.number)
        if outcome is None:
            self._again(trial, Outcome(State.FAIL, "its controller ended", lost=True))
            return
        try:
            self._finish(Job(trial.number, ()), outcome)
        except (ConfigurationError, JobContractError) as error:
            # It may be what stopped the sweep, and mended since: the next job will tell.
            self._again(trial, Outcome(State.FAIL, str(error).partition("\n")[0], lost=True))

    def _wait_out(self, trial: Trial) -> None:
        """An attempt had failed and the next one had not begun: it still waits for its time."""
        gone_s = self._clock.time() - self._failed_at.get(trial.number, -math.inf)
        left_s = rest_s(self._restart.pause_s(trial.number), gone_s)
        if left_s:
            self._progress.again(trial, f"the rest of its pause goes by first (in {left_s:.0f} s)")
        self._restart.add(replace(trial, attempt=trial.attempt + 1), left_s)

    # -- the steps of a trial --

    def _new(self, decision: Start) -> Trial:
        stage = decision.stage
        number = len(self.history)
        asked = decision.suggestion  # which parent it named, the trial itself says
        suggestion = replace(asked, params=dict(asked.params), parent=None)
        folder = self._plan.folder(number, stage)
        return Trial(
            number, stage.number, stage.task, suggestion, decision.parent, folder,
            repeat=decision.repeat,
        )  # fmt: skip

    def _start(self, trial: Trial) -> None:
        if trial.attempt > 1:
            self._retention.move_aside(trial, self._keeps)
        checkpoint = None
        if trial.parent is not None:
            parent = self.history[trial.parent].outcome
            assert parent is not None
            checkpoint = parent.checkpoint and str(self._folder / parent.checkpoint)
        overrides = self._plan.overrides(trial, checkpoint)
        self._overrides[trial.number] = overrides
        self.history.start(trial)
        self._append("start", **trial_to_json(trial), overrides=list(overrides))
        self._executor.submit(self._job(trial))
        self._submitted.add(trial.number)
        self._meter.started(trial.number)
        self._progress.started(trial)

    def _job(self, trial: Trial) -> Job:
        number = trial.number
        overrides = tuple(self._overrides[number])
        return Job(number, overrides, number in self._restart.alone, trial.stage)

    def _bounded(self, timeout_s: float | None) -> float | None:
        if not self._submitted:
            return timeout_s
        return REPORTS_S if timeout_s is None else min(timeout_s, REPORTS_S)

    def _wait(self, timeout_s: float | None) -> None:
        """Journal what jobs reported and how they ended."""
        ended = self._executor.wait(timeout_s)
        self._record(self._executor.reports())
        for job, outcome in ended:
            self._finish(job, outcome)

    def _record(self, reports: Sequence[Report]) -> None:
        events = []
        for report in reports:
            self.history.report(report)
            attempt = self.history[report.number].attempt
            score = report.score if math.isfinite(report.score) else None
            fields = {"trial": report.number, "attempt": attempt, "step": report.step}
            events.append(("report", {**fields, "score": score}))
        self._journal.extend(events)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        trial = self.history[job.number]
        self._submitted.discard(job.number)
        if job.number in self.history.ending:
            self._end_given_up(trial, outcome.seconds)
            return
        if not outcome.lost:
            self._link_log(trial)
            outcome = self._retention.in_folder(self._verdict.judge(trial, outcome))
            self._verdict.refuse_broken_contract(trial, outcome, self._retention.any_ranked)
        pause_s = self._restart.after(trial.number, outcome)
        if pause_s is not None:
            self._again(trial, outcome, pause_s)
            return
        if not self._plan.ranked:
            self.outcomes[trial.number] = outcome
        trial = self._close_trial(trial, outcome)
        self._progress.finished(trial)
        if trial.stage == self.history.open_stage:
            # Who starts from one that is out now must not find its checkpoint gone.
            self._give_up_orphans()
            self._retention.ended(trial, self.history)
        self._refuse_too_many_failures()

    def _give_up_orphans(self) -> None:
        while isinstance(decision := self._plan.strategy.next(self.history), GiveUp):
            self._give_up(decision)

    def _give_up(self, decision: GiveUp) -> None:
        """A trial lost its parent: its job ends if it runs, and whatever it did counts no more."""
        trial = self.history.give_up(decision.trial, decision.reason)
        self._append("give_up", trial=trial.number, reason=decision.reason)
        self._progress.gave_up(trial)
        self._restart.drop(lambda again: again.number == trial.number)
        if trial.number in self._submitted:
            self._executor.cancel(self._job(trial))
        elif trial.number in self.history.ending:
            self._end_alone(trial)
        else:
            self._retention.drop([trial])

    def _end_alone(self, trial: Trial) -> None:
        """End what is left of a given-up trial that this controller did not start."""
        end_recorded_group(self._files.group(trial.number))
        outcome = self._files.read_outcome(trial.number)
        self._end_given_up(trial, 0.0 if outcome is None else outcome.seconds)

    def _end_given_up(self, trial: Trial, seconds: float) -> None:
        assert trial.outcome is not None
        self._link_log(trial)
        self._retention.drop([self._close_trial(trial, replace(trial.outcome, seconds=seconds))])

    def _close_trial(self, trial: Trial, outcome: Outcome) -> Trial:
        self._meter.ended(trial.number, outcome)
        trial = self.history.finish(trial.number, outcome)
        self._append("finish", trial=trial.number, **outcome_to_json(outcome))
        self._files.forget(trial.number)
        return trial

    def _link_log(self, trial: Trial) -> None:
        if trial.folder:
            link_log(self._files.log(trial.number), self._folder / trial.folder / LOG_NAME)

    def _refuse_too_many_failures(self) -> None:
        limit = self._plan.settings.max_failures
        if limit is not None and self.history.failures > limit:
            counted = [t for t in self.history if t.stage <= self.history.open_stage]
            raise self._verdict.too_many(self.history.failures, limit, counted)

    def _again(self, trial: Trial, outcome: Outcome, pause_s: float = 0.0) -> None:
        """Run a trial again, after a pause in which other trials run."""
        attempt = {"trial": trial.number, "attempt": trial.attempt}
        why = {"reason": outcome.reason, "lost": outcome.lost, "cause": outcome.cause.value}
        used_s = round(device_seconds(outcome), 3)
        self._meter.ended(trial.number, outcome)
        self._append("attempt_failed", **attempt, **why, device_seconds=used_s)
        self._files.forget(trial.number)
        when = f" (in {pause_s:g} s)" if pause_s else ""
        self._progress.again(trial, outcome.reason + when)
        self._restart.add(replace(trial, attempt=trial.attempt + 1), pause_s)

    def _stop(self) -> None:
        """Journal what ends in good order; the rest stays open and runs again on resume."""
        self._executor.stop()
        while ended := self._executor.wait(None):
            self._record(self._executor.reports())
            for job, outcome in ended:
                # What would stop the sweep does so when it is resumed: it is stopping already.
                with suppress(ConfigurationError, SweepStoppedError):
                    if not outcome.lost or job.number in self.history.ending:
                        self._finish(job, outcome)

    def _restarts(self, stage: Stage) -> bool:
        return any(trial.stage == stage.number for trial in self._restart)

    def _select(self, decision: Select) -> None:
        stage = decision.stage
        if self._plan.ranked and not decision.beam:
            trials = self.history.stage(stage.number)
            raise self._verdict.no_survivor(stage.task, self._plan.settings.retries, trials)
        self.history.select(stage.number, decision.beam)
        self._append("select", stage=stage.number, beam=list(decision.beam))
        self._give_up_orphans()
        self._retention.closed(stage.number, decision.beam, self.history)
        self._write_results()
        self._progress.selected(stage, [self.history[number] for number in decision.beam])
        self._refuse_too_many_failures()

    # -- files --

    def _append(self, event: str, **fields: Any) -> None:
        for path in self._snapshot.edits():
            log.warning(
                f"'{path}' changed while the sweep runs. Its jobs go on with the copy from its"
                f" start, in '{copy_of(self._folder, path)}'; the change takes a new hydra.sweep.dir"
            )
        self._journal.append(event, **fields)
        self._result_file.append(event, fields, self.history)

    def _write_results(self) -> None:
        results.write_best(self._folder, self._plan, self.history, self._overrides, self.stopped)
        results.write_table(self._folder, self.history)
