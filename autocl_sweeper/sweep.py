"""The control loop: strategy -> executor -> journal. The one module that knows everybody."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from autocl_sweeper import results
from autocl_sweeper.errors import (
    ChangedSweepError,
    ConfigurationError,
    JobContractError,
    NoSurvivorError,
    SweepFolderError,
    SweepStoppedError,
    TooManyFailuresError,
)
from autocl_sweeper.executor.process.groups import end_recorded_group
from autocl_sweeper.journal import (
    VERSION,
    Fold,
    Journal,
    fold,
    outcome_to_json,
    trial_to_json,
)
from autocl_sweeper.outcome import CHECKPOINT_NAME, LOG_NAME, JobFiles, finite, link_log
from autocl_sweeper.plan import Plan, changed
from autocl_sweeper.retries import Waiting, delay_s, may_help, rest_s
from autocl_sweeper.strategy.sequential import Decision, Done, GiveUp, Select, Stage, Start
from autocl_sweeper.types import Cause, Executor, History, Job, Outcome, State, Suggestion, Trial
from autocl_sweeper.yaml.snapshot import FOLDER as CONFIGURATION
from autocl_sweeper.yaml.snapshot import Snapshot, copy_of

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
        self._leaders = Leaders(plan)
        self._clock = clock
        self._restart: Waiting[Trial] = Waiting(clock.monotonic)
        self._submitted: set[int] = set()  # what the executor has not reported yet
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
                for job, outcome in self._executor.wait(0.0):
                    self._finish(job, outcome)
                decision = self._plan.strategy.next(history)
                if isinstance(decision, Done) and not history.ending:
                    break
                if isinstance(decision, GiveUp):
                    self._give_up(decision)
                elif isinstance(decision, Select) and not self._restarts(decision.stage):
                    self._select(decision)
                elif self._restart.due() and self._executor.free_slots():
                    self._start(self._restart.pop())
                elif isinstance(decision, Start) and self._executor.free_slots():
                    self._start(self._new(decision))
                else:
                    for job, outcome in self._executor.wait(self._restart.wait_s()):
                        self._finish(job, outcome)
            self._append("end")
        except (KeyboardInterrupt, SystemExit):  # a signal; another one ends this as well
            self._stop()
            raise
        finally:
            self._progress.end()
            self._write_results()
            self._journal.close()
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
        if (
            state.ended
            and not self._plan.ranked
            and all(trial.score is None for trial in state.history)
        ):
            # Nothing to continue and nothing to compare: run again, as Hydra's basic sweeper does.
            self._journal.set_aside()
            records, state = [], Fold()
        self.history = state.history
        self._overrides = state.overrides
        self._lost = state.lost
        self._over = state.over
        self._failed = state.failed
        self._alone = state.alone
        if state.setup is None:
            fingerprint = dict(self._plan.fingerprint)
            configuration = self._snapshot.record(fingerprint.get("configuration"))
            self._snapshot.keep(self._folder)
            self._append(
                "sweep", version=VERSION, fingerprint=fingerprint, configuration=configuration
            )
        else:
            self._refuse_changes(state.setup)
        self._journal.open_session()
        for unfinished in self._folder.glob(".*.tmp"):  # a file that was being written at a kill
            unfinished.unlink()
        self._result_file.rebuild(records, self.history)
        for trial in self.history:
            if trial.state is not State.RUNNING and trial.stage <= self.history.open_stage:
                self._drop_checkpoints(self._leaders.add(trial, self.history))
        for stage, beam in self.history.beams.items():
            self._drop_checkpoints(self._leaders.close(stage, beam, self.history))

    def _refuse_changes(self, setup: Any) -> None:
        if setup["version"] != VERSION:
            raise SweepFolderError(
                f"'{self._journal.path}' is a journal of version {setup['version']}; this package"
                f" writes version {VERSION}.\n"
                "  Finish the sweep with the version it was begun with, or start in a new folder."
            )
        changes = changed(setup["fingerprint"], self._plan.fingerprint)
        edited = self._snapshot.changes(setup.get("configuration", {}).get("files", {}))
        changes += edited
        if changes:
            listed = "\n".join(f"    {change}" for change in changes[:20])
            more = f"\n    and {len(changes) - 20} more" if len(changes) > 20 else ""
            if edited:
                more += f"\n  The files as they were: '{self._folder / CONFIGURATION}'."
            raise ChangedSweepError(
                f"'{self._folder}' holds a sweep with another configuration:\n{listed}{more}\n"
                "  Trials of both together could not be compared.\n"
                "  Undo the change to continue that sweep, or set another hydra.sweep.dir."
            )

    def _take_up_the_rest(self) -> None:
        for number in list(self.history.ending):
            self._end_alone(self.history[number])
        for trial in self.history.running():
            if trial.number not in self.history.given_up:  # by what one before it had become
                self._take_up(trial)
        for trial in self.history:
            open_stage = trial.stage not in self.history.beams
            if trial.state is State.FAIL and open_stage and self._may_retry(trial):
                self._restart.add(replace(trial, attempt=trial.attempt + 1, outcome=None))

    def _take_up(self, trial: Trial) -> None:
        """A dead controller left this trial running: adopt its job or outcome, or run it again."""
        if trial.number in self._over:
            self._wait_out(trial)
            return
        alone = trial.number in self._alone
        job = Job(trial.number, tuple(self._overrides[trial.number]), alone, trial.stage)
        if self._executor.adopt(job):
            self._submitted.add(trial.number)
            log.info("the job of trial %d outlived its controller and goes on", trial.number)
            self._progress.started(trial)
            return
        if end_recorded_group(self._files.group(trial.number)):
            log.info("ended the job of trial %d, left by a dead controller", trial.number)
        outcome = self._files.read_outcome(trial.number)
        if outcome is None:
            self._again(trial, "its controller ended", lost=True)
            return
        try:
            self._finish(Job(trial.number, ()), outcome)
        except (ConfigurationError, JobContractError) as error:
            # It may be what stopped the sweep, and mended since: the next job will tell.
            self._again(trial, str(error).partition("\n")[0], lost=True)

    def _wait_out(self, trial: Trial) -> None:
        """An attempt had failed and the next one had not begun: it still waits for its time."""
        left_s = 0.0
        if trial.number in self._failed:
            gone_s = self._clock.time() - self._failed[trial.number]
            left_s = rest_s(self._pause_s(trial), gone_s)
        if left_s:
            self._progress.again(trial, f"the rest of its pause goes by first (in {left_s:.0f} s)")
        self._restart.add(replace(trial, attempt=trial.attempt + 1), left_s)

    # -- the steps of a trial --

    def _new(self, decision: Decision) -> Trial:
        assert isinstance(decision, Start)
        stage = decision.stage
        number = len(self.history)
        suggestion = Suggestion(decision.suggestion.index, dict(decision.suggestion.params))
        folder = self._plan.folder(number, stage)
        return Trial(number, stage.number, stage.task, suggestion, decision.parent, folder)

    def _start(self, trial: Trial) -> None:
        if trial.attempt > 1:
            self._move_aside(trial)
        checkpoint = None
        if trial.parent is not None:
            parent = self.history[trial.parent].outcome
            assert parent is not None
            checkpoint = parent.checkpoint and str(self._folder / parent.checkpoint)
        overrides = self._plan.overrides(trial, checkpoint)
        self._overrides[trial.number] = overrides
        self.history.start(trial)
        self._append("start", **trial_to_json(trial), overrides=list(overrides))
        alone = trial.number in self._alone
        self._executor.submit(Job(trial.number, overrides, alone, trial.stage))
        self._submitted.add(trial.number)
        self._progress.started(trial)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        trial = self.history[job.number]
        self._submitted.discard(job.number)
        if job.number in self.history.ending:
            self._end_given_up(trial, outcome.seconds)
            return
        if outcome.lost:
            if outcome.cause is Cause.DEVICE_MEMORY:
                self._alone.add(trial.number)
            self._again(trial, outcome.reason, outcome.cause, lost=True)
            return
        if trial.folder:
            link_log(self._files.log(trial.number), self._folder / trial.folder / LOG_NAME)
        outcome = self._in_folder(judge(outcome, self._plan), trial)
        self._refuse_broken_contract(trial, outcome)
        if may_help(outcome) and self._may_retry(trial):
            self._again(trial, outcome.reason, outcome.cause)
            return
        if not self._plan.ranked:
            self.outcomes[trial.number] = outcome
        trial = self.history.finish(trial.number, outcome)
        self._append("finish", trial=trial.number, **outcome_to_json(outcome))
        self._files.forget(trial.number)
        self._progress.finished(trial)
        if trial.stage == self.history.open_stage:
            # Who starts from one that is out now must not find its checkpoint gone.
            self._give_up_orphans()
            self._drop_checkpoints(self._leaders.add(trial, self.history))
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
            self._executor.cancel(Job(trial.number, self._overrides[trial.number]))
        elif trial.number in self.history.ending:
            self._end_alone(trial)
        else:
            self._drop_checkpoints([trial])

    def _end_alone(self, trial: Trial) -> None:
        """End what is left of a given-up trial that this controller did not start."""
        end_recorded_group(self._files.group(trial.number))
        outcome = self._files.read_outcome(trial.number)
        self._end_given_up(trial, 0.0 if outcome is None else outcome.seconds)

    def _end_given_up(self, trial: Trial, seconds: float) -> None:
        assert trial.outcome is not None
        if trial.folder:
            link_log(self._files.log(trial.number), self._folder / trial.folder / LOG_NAME)
        outcome = replace(trial.outcome, seconds=seconds)
        trial = self.history.finish(trial.number, outcome)
        self._append("finish", trial=trial.number, **outcome_to_json(outcome))
        self._files.forget(trial.number)
        self._drop_checkpoints([trial])

    def _refuse_too_many_failures(self) -> None:
        limit = self._plan.settings.max_failures
        if limit is not None and self.history.failures > limit:
            counted = [t for t in self.history if t.stage <= self.history.open_stage]
            raise TooManyFailuresError(
                f"{self.history.failures} trials failed (hydra.sweeper.max_failures={limit}).\n"
                f"{self._failures(counted)}\n"
                "  What finished is kept. Mend the cause, then rerun the same command; with a higher"
                "\n  hydra.sweeper.retries the failed ones run again too."
            )

    def _again(
        self, trial: Trial, reason: str, cause: Cause = Cause.NONE, lost: bool = False
    ) -> None:
        """Run a trial again. A lost attempt says nothing about the trial and is no retry.

        A retry comes after a while, in which other trials run: what broke may mend by itself.
        """
        event = {"trial": trial.number, "attempt": trial.attempt, "reason": reason, "lost": lost}
        self._append("attempt_failed", **event, cause=cause.value)
        self._lost[trial.number] += lost
        self._files.forget(trial.number)
        pause_s = 0.0 if lost else self._pause_s(trial)
        self._progress.again(trial, f"{reason} (in {pause_s:g} s)" if pause_s else reason)
        self._restart.add(replace(trial, attempt=trial.attempt + 1), pause_s)

    def _pause_s(self, trial: Trial) -> float:
        """What goes by between the attempt of `trial` that failed and the next one."""
        retry = trial.attempt - self._lost[trial.number]
        return delay_s(self._plan.settings.retry_delay_s, retry)

    def _stop(self) -> None:
        """Journal what ends in good order; the rest stays open and runs again on resume."""
        self._executor.stop()
        while ended := self._executor.wait(None):
            for job, outcome in ended:
                # What would stop the sweep does so when it is resumed: it is stopping already.
                with suppress(ConfigurationError, SweepStoppedError):
                    if not outcome.lost or job.number in self.history.ending:
                        self._finish(job, outcome)

    def _restarts(self, stage: Stage) -> bool:
        return any(trial.stage == stage.number for trial in self._restart)

    def _may_retry(self, trial: Trial) -> bool:
        return trial.attempt - self._lost[trial.number] <= self._plan.settings.retries

    def _select(self, decision: Select) -> None:
        stage = decision.stage
        if self._plan.ranked and not decision.beam:
            raise NoSurvivorError(
                f"No trial of task '{stage.task}' survived, so there is nothing to go on from.\n"
                f"{self._failures(self.history.stage(stage.number))}\n"
                "  What finished is kept. Mend the cause, then rerun the same command with\n"
                f"  hydra.sweeper.retries={self._plan.settings.retries + 1} to run them again."
            )
        self.history.select(stage.number, decision.beam)
        self._append("select", stage=stage.number, beam=list(decision.beam))
        self._give_up_orphans()
        self._drop_checkpoints(self._leaders.close(stage.number, decision.beam, self.history))
        for trial in self.history.stage(stage.number + 1):  # those that began early, and stay
            if trial.state is not State.RUNNING:
                self._drop_checkpoints(self._leaders.add(trial, self.history))
        self._write_results()
        self._progress.selected(stage, [self.history[number] for number in decision.beam])
        self._refuse_too_many_failures()

    # -- rules --

    def _refuse_broken_contract(self, trial: Trial, outcome: Outcome) -> None:
        """Stop for what every further job would do too. The trial stays open, to run again."""
        name = f"Trial {trial.number} (task '{trial.task}')"
        where = self._where(trial)
        if outcome.cause is Cause.CONFIGURATION:
            tail = "\n".join(f"    {line}" for line in outcome.log_tail)
            raise ConfigurationError(f"{name} could not be composed: {outcome.reason}\n{tail}")
        # nan is a number: one diverged job says nothing about the others.
        has_none = outcome.returned != "" and self._plan.metric not in outcome.numbers
        if outcome.state is State.FAIL and has_none and not self._leaders.anybody:
            raise JobContractError(
                f"{name} cannot be ranked: {outcome.reason}.\n"
                "  With a sequence, trials compete to be parents: a job returns a number, or a\n"
                f"  mapping with 'score' (or the key that hydra.sweeper.metric names).{where}"
            )
        last = trial.stage == len(self._plan.stages)
        if outcome.state is not State.COMPLETE or last or not self._plan.needs_checkpoints:
            return
        found = outcome.checkpoint
        if found is None or not (self._folder / found).exists():
            told = (
                "saved no checkpoint" if found is None else f"named '{found}', which is not there"
            )
            key = next(k for k, v in self._plan.settings.handover.items() if v == "checkpoint")
            raise JobContractError(
                f"{name} {told}, but the next stage starts from it ({key}=<checkpoint>).\n"
                f"  A job saves its model in '{CHECKPOINT_NAME}/' in its output folder, or returns a"
                "\n  mapping whose 'checkpoint' names the folder. If tasks do not build on each"
                f" other,\n  set hydra.sweeper.handover.{key}=null.{where}"
            )

    def _in_folder(self, outcome: Outcome, trial: Trial) -> Outcome:
        """Checkpoints inside the sweep folder are named relative to it, so that it can be moved."""
        if outcome.checkpoint is None:
            return outcome
        path = os.path.relpath(outcome.checkpoint, self._folder)
        return outcome if path.startswith("..") else replace(outcome, checkpoint=path)

    def _drop_checkpoints(self, trials: Sequence[Trial]) -> None:
        """Remove checkpoints that nobody will start from. Only ever below the trial's own folder."""
        if self._plan.settings.keep_checkpoints == "all" or not self._plan.ranked:
            return
        for trial in trials:
            named = trial.outcome.checkpoint if trial.outcome else None
            home = (self._folder / trial.folder).resolve()
            path = (self._folder / (named or f"{trial.folder}/{CHECKPOINT_NAME}")).resolve()
            if trial.folder and home in path.parents and path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _move_aside(self, trial: Trial) -> None:
        """Keep what an earlier attempt left, beside the folder that the next one fills.

        Not its checkpoint: nobody will ever start from it.
        """
        folder = self._folder / trial.folder
        if trial.folder and folder.exists():
            if self._plan.settings.keep_checkpoints != "all":
                shutil.rmtree(folder / CHECKPOINT_NAME, ignore_errors=True)
            folder.rename(folder.with_name(f"{folder.name}.attempt{trial.attempt - 1}"))

    def _failures(self, trials: Any) -> str:
        failed = [trial for trial in trials if trial.state is State.FAIL]
        lines = []
        for trial in failed[-3:]:
            outcome = trial.outcome
            assert outcome is not None
            lines.append(f"  trial {trial.number}: {outcome.reason}")
            lines += [f"    | {line}" for line in outcome.log_tail[-5:]]
            lines.append(self._where(trial).removeprefix("\n"))
        if len(failed) > 3:
            lines.append(f"  and {len(failed) - 3} more, in {self._folder / results.RESULT_FILE}")
        return "\n".join(lines)

    def _where(self, trial: Trial) -> str:
        """A line that says where to look; not every launcher keeps a job's log."""
        folder = self._folder / trial.folder
        path = folder / LOG_NAME
        return f"\n  full log: {path}" if path.exists() else f"\n  its folder: {folder}"

    # -- files --

    def _append(self, event: str, **fields: Any) -> None:
        for path in self._snapshot.edits():
            log.warning(
                "'%s' changed while the sweep runs. Its jobs go on with the copy from its start, in"
                " '%s'; the change takes a new hydra.sweep.dir",
                path,
                copy_of(self._folder, path),
            )
        self._journal.append(event, **fields)
        self._result_file.append(event, fields, self.history)

    def _write_results(self) -> None:
        results.write_best(self._folder, self._plan, self.history, self._overrides)
        results.write_table(self._folder, self.history)


class Leaders:
    """The trials that may still become parents, so that the others' checkpoints can go at once.

    Once k better ones are finished a trial is out for good: more can only come above it.
    """

    def __init__(self, plan: Plan) -> None:
        self._selection = plan.selection
        self._stages: dict[int, list[Trial]] = {}
        self._kept: dict[int, Trial] = {}

    @property
    def anybody(self) -> bool:
        """Whether any trial of the sweep was ever ranked."""
        return bool(self._stages)

    def add(self, trial: Trial, history: History) -> list[Trial]:
        """A trial ended whose parents are in the beam for good: those that are out now."""
        if trial.score is None:
            return [trial]
        leaders = self._stages.setdefault(trial.stage, [])
        leaders.append(trial)
        leaders.sort(key=lambda one: (self._selection.rank(one), history.place(one)))
        out = leaders[self._selection.k :]
        del leaders[self._selection.k :]
        self._kept[trial.number] = trial
        for other in out:
            del self._kept[other.number]
        return out

    def close(self, stage: int, beam: Sequence[int], history: History) -> list[Trial]:
        """A stage is over: those of it and of earlier ones that no survivor descends from."""
        needed = {t.number for number in beam for t in history.lineage(history[number])}
        out = [t for t in self._kept.values() if t.stage <= stage and t.number not in needed]
        for trial in out:
            del self._kept[trial.number]
        return out


def judge(outcome: Outcome, plan: Plan) -> Outcome:
    """Give a complete outcome its score; where trials are ranked, one without a score is a FAIL."""
    if outcome.state is not State.COMPLETE:
        return outcome
    metric = plan.metric
    score = outcome.numbers.get(metric)
    if score is not None and finite(score):
        return replace(outcome, score=score)
    if not plan.ranked:
        return outcome
    if score is not None:
        reason = f"its {metric} is {score}"
    elif outcome.returned == "NoneType":
        reason = "it returned nothing"
    elif outcome.numbers or outcome.evaluations:
        has = ", ".join(outcome.numbers) or "no number"
        reason = f"what it returned has no number '{metric}' (it has: {has})"
    else:
        reason = f"it returned a {outcome.returned}, not a number"
    return replace(outcome, state=State.FAIL, reason=reason, cause=Cause.RESULT)
