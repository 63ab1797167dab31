"""The state of a running sweep or launch: live lines on a terminal, log lines everywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TypeGuard

from autocl_sweeper.display.panel import Glance, JobLine, Panel, Watched
from autocl_sweeper.plain import masked, plain
from autocl_sweeper.plan import Plan
from autocl_sweeper.results.early import early_texts
from autocl_sweeper.results.provenance import origin_text
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.types import History, Job, Outcome, State, Trial, Value, is_skipped, is_stopped

LONGEST = 100  # characters of a value; the whole is in trials.csv and `autocl show`
log = logging.getLogger(__name__)


def watch(executor: object) -> LogProgress:
    """A panel when stderr is a terminal and the executor can be watched; else log lines alone."""
    return LiveProgress(executor) if _panel_for(executor) else LogProgress()


def watch_launch(executor: object, jobs: int) -> LaunchProgress:
    """The same for the jobs of a launcher, under any sweeper."""
    return LiveLaunch(executor, jobs) if _panel_for(executor) else LaunchProgress(jobs)


def _panel_for(executor: object) -> TypeGuard[Watched]:
    return isinstance(executor, Watched) and sys.stderr.isatty()


class LogProgress:
    """One INFO line per change of state, trial first."""

    def begin(self, plan: Plan, history: History) -> None:
        self._plan = plan
        self._history = history
        self._since = time.monotonic()
        self._seconds = 0.0
        self._ended = 0
        self._parallel = 1
        self._best = self._best_of(history.stage(history.open_stage))
        over = len(history) - len(history.running())
        if history.open_stage > len(plan.stages):
            self.say(f"the sweep is over: {over} trials are finished, none is left to run")
        elif len(history):
            self.say(f"continuing: {over} trials are finished")

    def started(self, trial: Trial) -> None:
        self._parallel = max(self._parallel, len(self._history.running()))
        parent = "" if trial.parent is None else f" from {trial.parent}"
        if trial.extra:
            parent += f" and extra start {trial.extra}"
        origin = origin_text(trial.suggestion)
        told = f" ({origin})" if origin else ""
        self.say(f"{_name(trial)} started{parent}: {settings_text(trial)}{told}")

    def finished(self, trial: Trial) -> None:
        outcome = trial.outcome
        assert outcome is not None
        self._ended += 1
        self._seconds += outcome.seconds
        if trial.stage == self._history.open_stage:
            before = self._best
            rivals = [before] if before and before.stage == trial.stage else []
            self._best = self._best_of([*rivals, trial]) or before
        if is_stopped(trial):
            self.say(f"{_name(trial)} has left its device after {outcome.seconds:.1f} s")
        elif is_skipped(trial):
            self.say(f"{_name(trial)} skipped: {outcome.reason}")
        elif trial.state is State.FAIL:
            self.say(f"{_name(trial)} FAILED after {outcome.seconds:.0f} s: {outcome.reason}")
        else:
            score = "" if trial.score is None else f" score={trial.score:.4g}"
            self.say(f"{_name(trial)} complete{score} in {outcome.seconds:.1f} s")

    def again(self, trial: Trial, reason: str) -> None:
        self.say(f"{_name(trial)} runs again (attempt {trial.attempt + 1}): {reason}")

    def gave_up(self, trial: Trial) -> None:
        outcome = trial.outcome
        assert outcome is not None
        self.say(f"{_name(trial)} given up: {outcome.reason}")

    def stopped(self, trial: Trial) -> None:
        assert trial.outcome is not None
        step = self._history.reports(trial.number)[-1].step
        score = "not finite" if trial.score is None else f"{trial.score:.4g}"
        reason = trial.outcome.reason
        self.say(f"{_name(trial)} stopped early at step {step}, score={score}: {reason}")

    def selected(self, stage: Stage, beam: Sequence[Trial]) -> None:
        self._best = self._best_of(self._history.stage(stage.number + 1)) or next(iter(beam), None)
        if beam:
            kept = ", ".join(f"{trial.number} ({trial.score:.4g})" for trial in beam)
            self.say(f"stage {stage.number} ({stage.task}) over; the beam: {kept}")

    def end(self) -> None:
        for text in early_texts(self._history):
            self.say(text)

    def say(self, text: str) -> None:
        log.info("%s", plain(text))

    def _best_of(self, trials: Sequence[Trial]) -> Trial | None:
        return next(iter(self._plan.selection(trials)), None)

    def time_left_s(self) -> float | None:
        """Estimated from the mean duration of a trial and from how many ran side by side."""
        left = self._plan.size - len(self._history) + len(self._history.running())
        left += len(self._history.given_up)
        if not self._ended or left <= 0:
            return None
        return left * self._seconds / self._ended / self._parallel


class LiveProgress(LogProgress):
    """The same lines above a live panel of rich."""

    def __init__(self, executor: Watched) -> None:
        self._panel = Panel(executor, self._glance, lambda n: job_line(self._history, n))
        self._failed: Counter[tuple[str, str]] = Counter()  # by kind
        self._failure = ""
        self._command = ""

    def begin(self, plan: Plan, history: History) -> None:
        super().begin(plan, history)
        self._panel.start()

    def finished(self, trial: Trial) -> None:
        if trial.state is State.FAIL and trial.outcome is not None:
            kind = (trial.outcome.cause.value, masked(trial.outcome.reason))
            self._failed[kind] += 1
            many = self._failed[kind]
            alike = f" ({many} alike)" if many > 1 else ""
            self._failure = f"#{trial.number}: {trial.outcome.reason}{alike}"
            self._command = f"autocl show {trial.number}"
        super().finished(trial)

    def end(self) -> None:
        super().end()
        self._panel.stop()

    def _glance(self) -> Glance:
        history, plan = self._history, self._plan
        running = len(history.running())
        done = len(history) - running - len(history.given_up)
        stage = plan.stages[min(len(history.beams), len(plan.stages) - 1)]
        best = self._best
        return Glance(
            done,
            plan.size,
            running,
            history.failures,
            time.monotonic() - self._since,
            queued=max(0, plan.size - done - running),
            left_s=self.time_left_s(),
            stage=f"{stage.number}/{len(plan.stages)}",
            task=stage.task,
            best="" if best is None else f"{best.score:.4g}",
            lineage=() if best is None else [one.number for one in history.lineage(best)],
            given_up=len(history.given_up),
            stopped=len(history.stopped),
            failure=self._failure,
            command=self._command,
        )


def job_line(history: History, number: int) -> JobLine:
    """A running trial in the panel."""
    trial = history[number]
    parent = "" if trial.parent is None else f" from {trial.parent}"
    reports = history.reports(number)
    last = f"step {reports[-1].step} {reports[-1].score:.3f}" if reports else ""
    return JobLine(f"#{number}{parent}", settings_text(trial), last)


class LaunchProgress:
    """The jobs of one launch: an INFO line per change of state."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._running: dict[int, str] = {}
        self._done = 0
        self._failed = 0
        self._seconds = 0.0
        self._parallel = 1
        self._since = time.monotonic()

    def begin(self) -> None:
        """Nothing to show before a job runs."""

    def started(self, job: Job, settings: str) -> None:
        self._running[job.number] = settings
        self._parallel = max(self._parallel, len(self._running))
        self.say(f"#{job.number} : {settings}")

    def again(self, job: Job, reason: str, pause_s: float = 0.0) -> None:
        self._running.pop(job.number, None)
        when = f" in {pause_s:g} s" if pause_s else ""
        self.say(f"#{job.number} runs again{when}: {reason}")

    def finished(self, job: Job, outcome: Outcome) -> None:
        self._running.pop(job.number, None)
        self._done += 1
        self._failed += outcome.state is State.FAIL
        self._seconds += outcome.seconds
        told = f"#{job.number} {outcome.state.value} in {outcome.seconds:.1f} s {outcome.reason}"
        self.say(told.rstrip())

    def end(self) -> None:
        """Nothing to put away."""

    def say(self, text: str) -> None:
        log.info("%s", plain(text))

    def time_left_s(self) -> float | None:
        """At the pace so far, as of a sweep."""
        if not self._done:
            return None
        return (self._jobs - self._done) * self._seconds / self._done / self._parallel


class LiveLaunch(LaunchProgress):
    """The same lines above a live panel of rich."""

    def __init__(self, executor: Watched, jobs: int) -> None:
        super().__init__(jobs)
        self._panel = Panel(
            executor, self._glance, lambda n: JobLine(f"#{n}", self._running.get(n, ""))
        )

    def begin(self) -> None:
        self._panel.start()

    def end(self) -> None:
        self._panel.stop()

    def _glance(self) -> Glance:
        running = len(self._running)
        return Glance(
            self._done,
            self._jobs,
            running,
            self._failed,
            time.monotonic() - self._since,
            queued=self._jobs - self._done - running,
            left_s=self.time_left_s(),
        )


def settings_text(trial: Trial) -> str:
    """The suggestion in short."""
    params = trial.suggestion.params
    return " ".join(f"{short_key(key)}={value_text(value)}" for key, value in params.items())


def short_key(key: str) -> str:
    """The last part of an override key."""
    return key.rpartition(".")[2].lstrip("+")


def value_text(value: Value) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _name(trial: Trial) -> str:
    return trial.folder or f"trial {trial.number}"
