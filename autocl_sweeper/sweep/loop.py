"""The control loop: strategy -> executor -> journal."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from autocl_sweeper.budget import Budget, Meter, device_seconds, spent
from autocl_sweeper.device import samples
from autocl_sweeper.errors import (
    ConfigurationError,
    DiskError,
    JobContractError,
    SweepStoppedError,
)
from autocl_sweeper.executor.process.adopted import end_recorded_group
from autocl_sweeper.executor.reports import ReportFiles
from autocl_sweeper.export.exporter import Exporter
from autocl_sweeper.folder import folder_errors, make_way
from autocl_sweeper.journal import outcome_to_json, trial_to_json
from autocl_sweeper.notices import Notices
from autocl_sweeper.outcome import LOG_NAME, JobFiles, link_log
from autocl_sweeper.plan import Plan
from autocl_sweeper.plan.rounds import INIT
from autocl_sweeper.protocols import Executor
from autocl_sweeper.results.result_file import RESULT_FILE
from autocl_sweeper.retention import Retention
from autocl_sweeper.retries import Retries, is_infeasible, rest_s
from autocl_sweeper.strategy.decisions import Again, Done, GiveUp, Select, Stage, Start
from autocl_sweeper.sweep.books import Books
from autocl_sweeper.sweep.failures import Failures
from autocl_sweeper.sweep.places import Places
from autocl_sweeper.sweep.progress import Progress
from autocl_sweeper.sweep.reports import Reports
from autocl_sweeper.types import Cause, History, Job, Outcome, Report, State, Trial, is_stopped
from autocl_sweeper.verdict import Verdict
from autocl_sweeper.yaml.snapshot import Snapshot

REPORTS_S = 1.0  # how long a report may lie before it is read, while jobs run

log = logging.getLogger(__name__)


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
        exporter: Exporter | None = None,
    ) -> None:
        """`snapshot`: the files the jobs are configured from; a sweep that has none needs none.

        `exporter`: the caller's to close, as the executor is.
        """
        self._folder = folder
        self._plan = plan
        self._executor = executor
        self._files = files
        self._progress = progress
        self._books = Books(folder, plan, snapshot or Snapshot(), exporter or Exporter({}))
        self._keeps = plan.settings.keep_checkpoints == "all"
        drops, chained = plan.ranked and not self._keeps, plan.settings.parents != INIT
        self._retention = Retention(folder, plan.selection, drops, chained)
        last, key = len(plan.stages), plan.checkpoint_key
        self._verdict = Verdict(folder, plan.objective, plan.ranked, last, key, RESULT_FILE)
        self._clock = clock
        self._restart: Retries[Trial] = Retries(
            plan.settings.retries, plan.settings.retry_delay_s, clock.monotonic
        )
        self._submitted: set[int] = set()  # what the executor has not reported yet
        self.stopped: str | None = None  # which part of its budget was used up
        self.outcomes: dict[int, Outcome] = {}  # of this run; with Hydra's JobReturn, unless ranked
        try:
            with folder_errors(folder):
                self._open()
        except BaseException:
            self._books.close()
            raise

    def run(self) -> History:
        with folder_errors(self._folder):
            return self._run()

    def _run(self) -> History:
        history = self.history
        over = False
        self._progress.begin(self._plan, history)
        self._books.begin()
        try:
            self._notices.refuse_rungs_beyond(history.open_stage)
            self._take_up_the_rest()
            while True:
                # First what has ended: jobs shorter than a start must not pile up unseen.
                self._wait(0.0)
                decision = self._plan.strategy.next(history)
                if isinstance(decision, Done) and not history.ending:
                    self._books.append("end")
                    break
                begun = isinstance(decision, Again)  # what it starts is no new trial
                no_retry = self._meter.time_used_up()
                no_trial = no_retry or self._meter.jobs_used_up(len(history))
                if isinstance(decision, GiveUp):
                    self._give_up(decision)
                elif isinstance(decision, Select) and not self._restarts(decision.stage):
                    self._select(decision)
                elif self._restart.due() and not no_retry and self._executor.free_slots():
                    self._start(self._restart.pop())
                elif isinstance(decision, Again) and not no_retry and self._may_run_again(decision):
                    self._run_to_its_end(history[decision.trial])
                elif isinstance(decision, Start) and not no_trial and self._executor.free_slots():
                    self._start(self._new(decision))
                elif (no_retry if begun or self._restart else no_trial) and not self._submitted:
                    self.stopped = no_retry or no_trial
                    break
                else:
                    self._wait(self._bounded(self._restart.wait_s()))
            over = True
        except (KeyboardInterrupt, SystemExit):  # a signal; another one ends this as well
            self._stop()
            raise
        finally:
            self._progress.end()
            try:
                self._books.write_results(self.stopped)
            except (OSError, DiskError) as error:
                if over:
                    raise
                why = str(error).partition("\n")[0]
                log.warning("the result files are not up to date (%s): a rerun writes them", why)
            finally:
                self._books.close()
        if self.stopped is None:
            shutil.rmtree(self._files.folder, ignore_errors=True)
        return history

    def best_chain(self) -> list[dict[str, Any]]:
        """One entry per stage, as in optimization_results.yaml."""
        return self._books.best_chain()

    # -- opening and resuming --

    def _open(self) -> None:
        plan = self._plan
        state = self._books.open()
        self.history = state.history
        self._over = state.over
        self._failed_at = state.failed_at
        self._restart.failed.update(state.failures)
        self._restart.alone.update(state.alone)
        stopping = None
        if plan.pruning is not None:
            stopping = plan.pruning.watch(plan.stages, self.history, plan.selection.loss)
        self._notices = Notices(stopping, plan.stages, self.history, self._verdict)
        self._reports = Reports(self.history, stopping, self._notices)
        self._failures = Failures(plan, self.history, self._verdict)
        self._places = Places(self._executor, self.history)
        self._retention.resume(self.history)
        budget = Budget.of(plan.settings.budget)
        self._meter = Meter(budget, spent(self._books.records), self._clock.monotonic)

    def _take_up_the_rest(self) -> None:
        for number in list(self.history.ending):
            self._end_alone(self.history[number])
        for trial in self.history.running():
            if trial.number not in self.history.given_up:  # by what one before it had become
                self._take_up(trial)
        for trial in self.history:
            left = self._restart.left(trial.number) and not is_infeasible(trial)
            if trial.state is State.FAIL and not left:
                self._failures.refuse_round(trial)
            open_stage = trial.stage not in self.history.beams
            if trial.state is State.FAIL and open_stage and left:
                self._restart.failed[trial.number] += 1
                self._restart.add(replace(trial, attempt=trial.attempt + 1, outcome=None))

    def _take_up(self, trial: Trial) -> None:
        """A dead controller left this trial running: adopt its job or outcome, or run it again."""
        if trial.number in self._over:
            self._wait_out(trial)
            return
        known = self.history.reported(trial.number)
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
        outcome = self._files.read_outcome(trial.number)
        self._record(reports.new(), over=set() if outcome is None else {trial.number})
        if trial.number in self.history.ending:
            self._end_alone(self.history[trial.number])
            return
        if outcome is None:
            self._again(trial, Outcome(State.FAIL, "its controller ended", lost=True))
            return
        if outcome.cause is Cause.DISK:  # there may be room by now
            self._again(trial, replace(outcome, lost=True))
            return
        try:
            self._finish(Job(trial.number, ()), outcome)
        except (ConfigurationError, JobContractError) as error:
            # It may be what stopped the sweep, and be fixed since: the next job shows it.
            self._again(trial, Outcome(State.FAIL, str(error).partition("\n")[0], lost=True))

    def _wait_out(self, trial: Trial) -> None:
        """An attempt had failed and the next one had not begun: it still waits for its time."""
        gone_s = self._clock.time() - self._failed_at.get(trial.number, -math.inf)
        left_s = rest_s(self._restart.pause_s(trial.number), gone_s)
        if left_s:
            self._progress.again(trial, f"the rest of its pause comes first ({left_s:.0f} s)")
        self._restart.add(replace(trial, attempt=trial.attempt + 1), left_s)

    # -- the steps of a trial --

    def _new(self, decision: Start) -> Trial:
        stage = decision.stage
        number = len(self.history)
        asked = decision.suggestion  # which parent it named, the trial itself says
        suggestion = replace(asked, params=dict(asked.params), parent=None)
        folder = self._plan.folder(number, stage, suggestion.index)
        return Trial(
            number, stage.number, stage.task, suggestion, decision.parent, folder,
            repeat=decision.repeat, extra=decision.extra,
        )  # fmt: skip

    def _start(self, trial: Trial) -> None:
        if trial.attempt > 1:
            self._retention.move_aside(trial, self._keeps)
        elif trial.folder:
            make_way(self._folder / trial.folder, also_folders=self._plan.ranked)
        checkpoint = None
        if trial.parent is not None:
            checkpoint = self._checkpoint_of(trial.parent, trial)
        beam = self.history.beams.get(trial.stage - 1, ()) if self._plan.hands_sources else ()
        sources = [path for one in beam if (path := self._checkpoint_of(one, trial))]
        overrides = self._plan.overrides(trial, checkpoint, sources)
        self._books.overrides[trial.number] = overrides
        self.history.start(trial)
        self._books.append("start", **trial_to_json(trial), overrides=list(overrides))
        self._executor.submit(self._job(trial))
        self._submitted.add(trial.number)
        self._note_devices()
        self._meter.started(trial.number)
        self._progress.started(trial)

    def _checkpoint_of(self, number: int, heir: Trial) -> str | None:
        """That of a trial, absolute, which `heir` is given. Raises SweepFolderError if it is gone."""
        outcome = self.history[number].outcome
        assert outcome is not None
        checkpoint = outcome.checkpoint and str(self._folder / outcome.checkpoint)
        if checkpoint and self._plan.checkpoint_key:
            self._verdict.refuse_gone(heir, number, checkpoint)
        return checkpoint

    def _note_devices(self) -> None:
        self._books.extend(self._places.events(self._submitted))

    def _job(self, trial: Trial) -> Job:
        number = trial.number
        overrides = tuple(self._books.overrides[number])
        folder = str(self._folder / trial.folder) if trial.folder else ""
        params = trial.suggestion.params
        alone = number in self._restart.alone
        return Job(number, overrides, alone, trial.stage, params=params, folder=folder)

    def known_jobs(self) -> Iterator[tuple[Job, Outcome]]:
        """Jobs of earlier sessions that say what memory such jobs need, with their outcomes."""
        shortage = Outcome(State.FAIL, lost=True, cause=Cause.DEVICE_MEMORY)
        for trial in self.history:
            if trial.number in self._restart.alone:
                yield self._job(trial), shortage
            if trial.outcome is not None:
                yield self._job(trial), trial.outcome

    def _bounded(self, timeout_s: float | None) -> float | None:
        if not self._submitted:
            return timeout_s
        return REPORTS_S if timeout_s is None else min(timeout_s, REPORTS_S)

    def _wait(self, timeout_s: float | None) -> None:
        """Journal what jobs reported and how they ended."""
        ended = self._executor.wait(timeout_s)
        self._note_devices()
        self._record(self._executor.reports(), over={job.number for job, _ in ended})
        for job, outcome in ended:
            self._finish(job, outcome)

    def _record(self, reports: Sequence[Report], over: Collection[int]) -> None:
        """Journal reports, and end the jobs of trials that they stop."""
        events, stopped = self._reports.note(reports, over)
        self._books.extend(events)
        for trial in stopped:
            self._progress.stopped(trial)
            if trial.number in self._submitted:
                self._executor.cancel(self._job(trial))

    def _may_run_again(self, decision: Again) -> bool:
        stage = self._plan.stages[self.history[decision.trial].stage - 1]
        return not self._restarts(stage) and self._executor.free_slots() > 0

    def _run_to_its_end(self, trial: Trial) -> None:
        self._progress.again(trial, "its stage has no other result, so it is not stopped this time")
        self._start(replace(trial, attempt=trial.attempt + 1, outcome=None))

    def _finish(self, job: Job, outcome: Outcome) -> None:
        trial = self.history[job.number]
        self._submitted.discard(job.number)
        self._places.forget(job.number)
        if job.number in self.history.ending:
            self._end_given_up(trial, outcome)
            return
        if outcome.cause is Cause.DISK and trial.state is State.RUNNING:
            self._again(trial, replace(outcome, lost=True))
            raise self._verdict.full_disk(trial, outcome)
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
        self._failures.refuse_too_many()
        self._failures.refuse_round(trial)
        if trial.state is State.COMPLETE:
            self._notices.refuse_rungs_beyond(trial.stage)
            self._notices.whether_reports_decide(trial.stage)

    def _give_up_orphans(self) -> None:
        while isinstance(decision := self._plan.strategy.next(self.history), GiveUp):
            self._give_up(decision)

    def _give_up(self, decision: GiveUp) -> None:
        """A trial lost its parent: its job ends if it runs, and whatever it did counts no more."""
        trial = self.history.give_up(decision.trial, decision.reason)
        self._books.append("give_up", trial=trial.number, reason=decision.reason)
        self._progress.gave_up(trial)
        self._restart.drop(lambda again: again.number == trial.number)
        if trial.number in self._submitted:
            self._executor.cancel(self._job(trial))
        elif trial.number in self.history.ending:
            self._end_alone(trial)
        else:
            self._retention.drop([trial])

    def _end_alone(self, trial: Trial) -> None:
        """End what is left of a given-up or stopped trial that this controller did not start."""
        end_recorded_group(self._files.group(trial.number))
        self._end_given_up(trial, self._files.read_outcome(trial.number) or Outcome(State.FAIL))

    def _end_given_up(self, trial: Trial, ended: Outcome) -> None:
        """The job of a given-up or stopped trial is over: what it cost is all that counts of it."""
        assert trial.outcome is not None
        self._link_log(trial)
        cost = replace(trial.outcome, seconds=ended.seconds, device=ended.device)
        trial = self._close_trial(trial, cost)
        self._retention.drop([trial])
        if is_stopped(trial):
            self._progress.finished(trial)

    def _close_trial(self, trial: Trial, outcome: Outcome) -> Trial:
        self._meter.ended(trial.number, outcome)
        trial = self.history.finish(trial.number, outcome)
        self._books.append("finish", trial=trial.number, **outcome_to_json(outcome))
        self._files.forget(trial.number)
        return trial

    def _link_log(self, trial: Trial) -> None:
        if trial.folder:
            folder = self._folder / trial.folder
            link_log(self._files.log(trial.number), folder / LOG_NAME)
            link_log(self._files.samples(trial.number), folder / samples.NAME)

    def _again(self, trial: Trial, outcome: Outcome, pause_s: float = 0.0) -> None:
        """Run a trial again, after a pause in which other trials run."""
        attempt = {"trial": trial.number, "attempt": trial.attempt}
        why = {"reason": outcome.reason, "lost": outcome.lost, "cause": outcome.cause.value}
        used_s = round(device_seconds(outcome), 3)
        self._meter.ended(trial.number, outcome)
        self._books.append("attempt_failed", **attempt, **why, device_seconds=used_s)
        self._files.forget(trial.number)
        when = f" (in {pause_s:g} s)" if pause_s else ""
        self._progress.again(trial, outcome.reason + when)
        self._restart.add(replace(trial, attempt=trial.attempt + 1), pause_s)

    def _stop(self) -> None:
        """Journal what ends in good order; the rest stays open and runs again on resume."""
        self._executor.stop()
        while ended := self._executor.wait(None):
            self._record(self._executor.reports(), over=set(self._submitted))
            for job, outcome in ended:
                # What would stop the sweep does so when it is resumed: it is stopping already.
                with suppress(ConfigurationError, SweepStoppedError):
                    if not outcome.lost or job.number in self.history.ending:
                        self._finish(job, outcome)

    def _restarts(self, stage: Stage) -> bool:
        return any(trial.stage == stage.number for trial in self._restart)

    def _select(self, decision: Select) -> None:
        stage = decision.stage
        self._failures.refuse_stage(stage, decision.beam)
        self.history.select(stage.number, decision.beam)
        self._books.append("select", stage=stage.number, beam=list(decision.beam))
        self._give_up_orphans()
        self._retention.closed(stage.number, decision.beam, self.history)
        self._books.write_results(self.stopped)
        self._progress.selected(stage, [self.history[number] for number in decision.beam])
        self._failures.refuse_too_many()
