"""The control loop: strategy -> executor -> journal. The one module that knows everybody."""

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

from autocl_sweeper import results
from autocl_sweeper.budget import Budget, Meter, device_seconds, spent
from autocl_sweeper.device import samples
from autocl_sweeper.display.panel import Packing, Watched
from autocl_sweeper.errors import (
    ConfigurationError,
    DiskError,
    JobContractError,
    SweepFolderError,
    SweepStoppedError,
)
from autocl_sweeper.executor.process.groups import end_recorded_group
from autocl_sweeper.executor.reports import ReportFiles
from autocl_sweeper.export.exporter import Exporter
from autocl_sweeper.folder import folder_errors, make_way, refuse_lost_journal, tidy
from autocl_sweeper.journal import VERSION, Fold, Journal, fold, outcome_to_json, trial_to_json
from autocl_sweeper.made_with import command, versions
from autocl_sweeper.notices import Notices
from autocl_sweeper.outcome import LOG_NAME, JobFiles, link_log
from autocl_sweeper.plan import Plan, refuse_changes, refuse_lower, refuse_moved
from autocl_sweeper.plan.rounds import INIT
from autocl_sweeper.protocols import Executor
from autocl_sweeper.prune.watch import EarlyStopping
from autocl_sweeper.retention import Retention
from autocl_sweeper.retries import Retries, is_infeasible, rest_s
from autocl_sweeper.strategy.decisions import Again, Done, GiveUp, Select, Stage, Start
from autocl_sweeper.types import Cause, History, Job, Outcome, Report, State, Trial, is_stopped
from autocl_sweeper.verdict import Verdict
from autocl_sweeper.yaml.snapshot import Snapshot, copy_of

RESULTS = (results.RESULT_FILE, results.BEST_FILE, results.TABLE_FILE)
REPORTS_S = 1.0  # how long a report may lie before it is read, while jobs run

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Who watches a sweep. Called from the control loop, so it must be quick."""

    def begin(self, plan: Plan, history: History) -> None: ...
    def started(self, trial: Trial) -> None: ...
    def finished(self, trial: Trial) -> None: ...
    def again(self, trial: Trial, reason: str) -> None: ...
    def gave_up(self, trial: Trial) -> None: ...
    def stopped(self, trial: Trial) -> None: ...
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
        self._snapshot = snapshot or Snapshot()
        self._exporter = exporter or Exporter({})
        self._journal = Journal(folder)
        self._result_file = results.ResultFile(folder, plan)
        self._keeps = plan.settings.keep_checkpoints == "all"
        drops, chained = plan.ranked and not self._keeps, plan.settings.parents != INIT
        self._retention = Retention(folder, plan.selection, drops, chained)
        last, key = len(plan.stages), plan.checkpoint_key
        self._verdict = Verdict(folder, plan.objective, plan.ranked, last, key, results.RESULT_FILE)
        self._clock = clock
        self._restart: Retries[Trial] = Retries(
            plan.settings.retries, plan.settings.retry_delay_s, clock.monotonic
        )
        self._submitted: set[int] = set()  # what the executor has not reported yet
        self._placed: set[int] = set()  # those of them whose devices are in the journal
        self.stopped: str | None = None  # which part of its budget was used up
        self.outcomes: dict[int, Outcome] = {}  # of this run; with Hydra's JobReturn, unless ranked
        try:
            with folder_errors(folder):
                self._open()
        except BaseException:
            self._journal.close()
            raise

    def run(self) -> History:
        with folder_errors(self._folder):
            return self._run()

    def _run(self) -> History:
        history = self.history
        over = False
        self._progress.begin(self._plan, history)
        self._exporter.begin(self._journal.records, history)
        try:
            self._notices.refuse_rungs_beyond(history.open_stage)
            self._take_up_the_rest()
            while True:
                # First what has ended: jobs shorter than a start must not pile up unseen.
                self._wait(0.0)
                decision = self._plan.strategy.next(history)
                if isinstance(decision, Done) and not history.ending:
                    self._append("end")
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
                self._write_results()
            except (OSError, DiskError) as error:
                if over:
                    raise
                why = str(error).partition("\n")[0]
                log.warning("the result files are not up to date (%s): a rerun writes them", why)
            finally:
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
        self._stopping: EarlyStopping | None = None
        if (pruning := self._plan.pruning) is not None:
            found = {stage.number: pruning.of(stage) for stage in self._plan.stages}
            rules = {number: rule for number, rule in found.items() if rule is not None}
            loss = self._plan.selection.loss
            self._stopping = EarlyStopping(rules, pruning.max_steps, self.history, loss)
        self._notices = Notices(self._stopping, self._plan.stages, self.history, self._verdict)
        self._overrides = state.overrides
        self._over = state.over
        self._failed_at = state.failed_at
        self._restart.failed.update(state.failures)
        self._restart.alone.update(state.alone)
        if state.setup is None:
            self._refuse_traces()
            fingerprint = dict(self._plan.fingerprint)
            files = self._snapshot.record(fingerprint.get("configuration"))
            self._snapshot.keep(self._folder)
            made = {"command": command(), "versions": versions()}
            same = {"fingerprint": fingerprint, "configuration": files}
            self._append("sweep", version=VERSION, **same, **made)
        else:
            self._journal.refuse_other_version(state.setup["version"])
            edited = self._snapshot.changes(state.setup.get("configuration", {}).get("files", {}))
            refuse_changes(self._folder, state.setup["fingerprint"], self._plan.fingerprint, edited)
            raised = refuse_lower(self._folder, state.bounds, self._plan.bounds)
            refuse_moved(self._folder, self.history, self._plan.stages)
            if raised:
                over = len(self.history.beams) >= len(self._plan.stages)
                told = "every stage is over" if over else "for the stages still open"
                log.info("%s (%s)", "; ".join(raised), told)
        self._journal.open_session(self._plan.bounds, self._plan.size)
        tidy(self._folder, RESULTS)
        self._result_file.rebuild(records, self.history)
        self._retention.resume(self.history)
        budget = Budget.of(self._plan.settings.budget)
        self._meter = Meter(budget, spent(records), self._clock.monotonic)

    def _refuse_traces(self) -> None:
        if not self._plan.ranked and any(self._folder.glob("journal.[0-9]*.jsonl")):
            return  # a sweep that was over, begun again just now
        traces = list(RESULTS)
        if self._plan.ranked and (first := self._plan.folder(0, self._plan.stages[0])):
            traces.append(first)
        refuse_lost_journal(self._folder, traces)

    def _take_up_the_rest(self) -> None:
        for number in list(self.history.ending):
            self._end_alone(self.history[number])
        for trial in self.history.running():
            if trial.number not in self.history.given_up:  # by what one before it had become
                self._take_up(trial)
        for trial in self.history:
            left = self._restart.left(trial.number) and not is_infeasible(trial)
            if trial.state is State.FAIL and not left:
                self._refuse_failed_round(trial)
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
        self._overrides[trial.number] = overrides
        self.history.start(trial)
        self._append("start", **trial_to_json(trial), overrides=list(overrides))
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
        """Journal where jobs run, once for each attempt. It is for readers alone: nothing hangs on it."""
        waiting = self._submitted - self._placed
        if not waiting or not isinstance(self._executor, Watched):
            return
        where = self._executor.devices()
        shares = self._executor.reserved() if isinstance(self._executor, Packing) else {}
        self._placed |= (found := waiting & where.keys())

        def placed(number: int) -> dict[str, Any]:
            fields = {"trial": number, "attempt": self.history[number].attempt}
            mib, source = shares.get(number, (None, ""))
            share = {"reserved_mib": mib, "reserved_by": source} if source else {}
            return {**fields, "device": list(where[number]), **share}

        self._journal.extend(("running", placed(number)) for number in sorted(found))

    def _job(self, trial: Trial) -> Job:
        number = trial.number
        overrides = tuple(self._overrides[number])
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
        """Journal reports, and with each of them whether it was the last one of its trial.

        A decision stands in the line of its report, so no kill comes between the two. Jobs that
        are `over` are not stopped any more: what they found out is worth more than what is saved.
        """
        events: list[tuple[str, dict[str, Any]]] = []
        stopped = []
        for report in reports:
            trial = self.history[report.number]
            if trial.number in self.history.ending and is_stopped(trial):
                continue  # made before the job was ended: the one before it decided
            kept = self.history.report(report)
            self._notices.of_report(trial, report, kept)
            score = report.score if math.isfinite(report.score) else None
            where = {"trial": report.number, "attempt": trial.attempt, "step": report.step}
            fields: dict[str, Any] = {**where, "score": score}
            judged = kept and trial.state is State.RUNNING and trial.number not in over
            reason = self._stopping.judge(trial) if judged and self._stopping else None
            if reason is not None:
                fields["stopped"] = reason
                stopped.append(self.history.stop(trial.number, reason))
            events.append(("report", fields))
        self._journal.extend(events)
        for event in events:
            self._exporter.note(*event)
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
        self._placed.discard(job.number)
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
        self._refuse_too_many_failures()
        self._refuse_failed_round(trial)
        if trial.state is State.COMPLETE:
            self._notices.refuse_rungs_beyond(trial.stage)
            self._notices.whether_reports_decide(trial.stage)

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
        self._append("finish", trial=trial.number, **outcome_to_json(outcome))
        self._files.forget(trial.number)
        return trial

    def _link_log(self, trial: Trial) -> None:
        if trial.folder:
            folder = self._folder / trial.folder
            link_log(self._files.log(trial.number), folder / LOG_NAME)
            link_log(self._files.samples(trial.number), folder / samples.NAME)

    def _refuse_too_many_failures(self) -> None:
        limit = self._plan.settings.max_failures
        if limit is not None and self.history.failures > limit:
            counted = [t for t in self.history if t.stage <= self.history.open_stage]
            raise self._verdict.too_many(self.history.failures, limit, counted)

    def _refuse_failed_round(self, trial: Trial) -> None:
        """Stop when all of a round failed, unless `max_failures` says how many may."""
        settings = self._plan.settings
        if settings.parents != INIT or settings.max_failures is not None:
            return
        if trial.state is not State.FAIL or settings.popsize is None:
            return
        stage = self._plan.stages[trial.stage - 1]
        number, _ = self._plan.round_of(stage, trial.suggestion.index)
        of_round = [
            one
            for one in self.history.stage(trial.stage)
            if self._plan.round_of(stage, one.suggestion.index)[0] == number
        ]
        failed = [one for one in of_round if one.state is State.FAIL]
        if len(failed) == min(settings.popsize, stage.jobs(1) or settings.popsize):
            raise self._verdict.failed_round(number, settings.retries, failed)

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
                f"'{path}' was edited during the sweep. No job sees the edit: jobs read the copy"
                f" '{copy_of(self._folder, path)}'. To use the edit, set another hydra.sweep.dir"
            )
        self._journal.append(event, **fields)
        self._result_file.append(event, fields, self.history)
        self._exporter.note(event, fields)

    def _write_results(self) -> None:
        if not self._journal.is_there():  # nor is the folder ours any more
            return
        results.write_best(self._folder, self._plan, self.history, self._overrides, self.stopped)
        results.write_table(self._folder, self.history)
