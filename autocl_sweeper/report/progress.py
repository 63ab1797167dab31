"""The state of a running sweep: a live line on a terminal, log lines everywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autocl_sweeper.devices import short
from autocl_sweeper.plan import Plan
from autocl_sweeper.results import waste
from autocl_sweeper.strategy import Stage
from autocl_sweeper.types import History, State, Trial, Value

log = logging.getLogger(__name__)

Devices = Callable[[], Mapping[int, tuple[str, ...]]]


def watch(devices: Devices | None) -> LogProgress:
    """A live display when stderr is a terminal and jobs keep their output to themselves.

    `devices` tells which trial runs where; None means that jobs print into this process's output,
    where a live line would be torn.
    """
    if devices is not None and sys.stderr.isatty():
        return LiveProgress(devices)
    return LogProgress()


class LogProgress:
    """One INFO line per change of state, trial first."""

    def begin(self, plan: Plan, history: History) -> None:
        self._plan = plan
        self._history = history
        self._since = time.monotonic()
        self._seconds = 0.0
        self._ended = 0
        self._parallel = 1
        if len(history):
            self.say(f"continuing: {len(history) - len(history.running())} trials are finished")

    def started(self, trial: Trial) -> None:
        self._parallel = max(self._parallel, len(self._history.running()))
        parent = "" if trial.parent is None else f" from {trial.parent}"
        self.say(f"{_name(trial)} started{parent}: {settings_text(trial)}")

    def finished(self, trial: Trial) -> None:
        outcome = trial.outcome
        assert outcome is not None
        self._ended += 1
        self._seconds += outcome.seconds
        if trial.state is State.FAIL:
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

    def selected(self, stage: Stage, beam: Sequence[Trial]) -> None:
        if beam:
            kept = ", ".join(f"{trial.number} ({trial.score:.4g})" for trial in beam)
            self.say(f"stage {stage.number} ({stage.task}) over; the beam: {kept}")

    def end(self) -> None:
        if self._history.given_up:
            self.say(str(waste(self._history)))

    def say(self, text: str) -> None:
        log.info(text)

    def time_left_s(self) -> float | None:
        """What is left at the pace so far: mean duration of a trial, trials that ran side by side."""
        left = self._plan.size - len(self._history) + len(self._history.running())
        left += len(self._history.given_up)
        if not self._ended or left <= 0:
            return None
        return left * self._seconds / self._ended / self._parallel


class LiveProgress(LogProgress):
    """The same lines above a live panel of rich."""

    def __init__(self, devices: Devices) -> None:
        from rich.console import Console
        from rich.live import Live

        self._devices = devices
        self._live = Live(
            console=Console(stderr=True), get_renderable=self._panel, refresh_per_second=4
        )

    def begin(self, plan: Plan, history: History) -> None:
        self._live.start()
        super().begin(plan, history)

    def end(self) -> None:
        super().end()
        self._live.stop()

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False)

    def _panel(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if not hasattr(self, "_plan"):
            return ""
        history, plan = self._history, self._plan
        running = history.running()
        done = len(history) - len(running) - len(history.given_up)
        stage = plan.stages[min(len(history.beams), len(plan.stages) - 1)]
        best = plan.selection([t for t in history.stage(stage.number) if t.score is not None])
        left = self.time_left_s()
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            Text.assemble(f"stage {stage.number}/{len(plan.stages)} ", (stage.task, "bold")),
            ProgressBar(total=plan.size, completed=done, width=30),
            f"{done}/{plan.size} done",
            f"{len(running)} running",
            Text(f"{history.failures} failed", "red" if history.failures else ""),
            f"best {best[0].score:.4g} (#{best[0].number})" if best else "best -",
            f"{clock(time.monotonic() - self._since)} gone",
            f"about {clock(left)} left" if left is not None else "",
        )
        rows = Table.grid()
        rows.add_row(grid)
        for number, ids in sorted(self._devices().items()):
            trial = history[number]
            where = " ".join(short(device_id) for device_id in ids)
            rows.add_row(Text(f"  {where}  {_name(trial)}  {settings_text(trial)}", "dim"))
        return rows


def settings_text(trial: Trial) -> str:
    """The suggestion in short."""
    params = trial.suggestion.params
    return " ".join(f"{short_key(key)}={value_text(value)}" for key, value in params.items())


def short_key(key: str) -> str:
    """The last part of an override key."""
    return key.rpartition(".")[2].lstrip("+")


def value_text(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _name(trial: Trial) -> str:
    return trial.folder or f"trial {trial.number}"
