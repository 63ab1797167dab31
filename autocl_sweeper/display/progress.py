"""The state of a running sweep or launch: live lines on a terminal, log lines everywhere else."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

from autocl_sweeper.device.probe import Device, short
from autocl_sweeper.display.screen import screen
from autocl_sweeper.plain import plain
from autocl_sweeper.plan import Plan
from autocl_sweeper.results import origin_text, savings, waste
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.types import History, Job, Outcome, State, Trial, Value, is_skipped, is_stopped

log = logging.getLogger(__name__)

READ_AGAIN_S = 2.0  # a look at all devices costs milliseconds
MOST_DEVICES = 16  # lines of a panel


@runtime_checkable
class Watched(Protocol):
    """An executor whose jobs keep their output to themselves, so that nothing tears a panel."""

    def devices(self) -> Mapping[int, tuple[str, ...]]:
        """Job number -> the devices it runs on. May be called from any thread, as `readings`."""
        ...


@runtime_checkable
class Packing(Protocol):
    """An executor whose jobs may share devices."""

    def reserved(self) -> Mapping[int, tuple[int | None, str]]:
        """Number of a job that may share -> MiB it reserves on each device, and by which source."""
        ...


@runtime_checkable
class Measured(Watched, Protocol):
    """One that can also look at its devices."""

    def readings(self) -> Mapping[str, Device]:
        """What the devices say of themselves now, by id."""
        ...


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
        if len(history):
            self.say(f"continuing: {len(history) - len(history.running())} trials are finished")

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
            self._best = self._best_of([*filter(None, [self._best]), trial])
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
        self._best = self._best_of(self._history.stage(stage.number + 1))
        if beam:
            kept = ", ".join(f"{trial.number} ({trial.score:.4g})" for trial in beam)
            self.say(f"stage {stage.number} ({stage.task}) over; the beam: {kept}")

    def end(self) -> None:
        if (saved := savings(self._history)).trials:
            self.say(str(saved))
        if self._history.given_up:
            self.say(str(waste(self._history)))

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
        self._panel = Panel(executor, self._figures, self._told)

    def begin(self, plan: Plan, history: History) -> None:
        super().begin(plan, history)
        self._panel.start()

    def end(self) -> None:
        super().end()
        self._panel.stop()

    def say(self, text: str) -> None:
        self._panel.say(text)

    def _figures(self) -> list[Any]:
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        history, plan = self._history, self._plan
        running = len(history.running())
        done = len(history) - running - len(history.given_up)
        stage = plan.stages[min(len(history.beams), len(plan.stages) - 1)]
        return [
            Text.assemble(f"stage {stage.number}/{len(plan.stages)} ", (plain(stage.task), "bold")),
            ProgressBar(total=plan.size, completed=done, width=20),
            *_counts(running, max(0, plan.size - done - running), done, history.failures),
            *([f"{len(history.stopped)} stopped"] if history.stopped else []),
            *([f"{len(history.given_up)} given up"] if history.given_up else []),
            f"best {self._best.score:.4g} (#{self._best.number})" if self._best else "best -",
            *_times(time.monotonic() - self._since, self.time_left_s()),
        ]

    def _told(self, number: int) -> str:
        trial = self._history[number]
        return f"{_name(trial)} {settings_text(trial)}"


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
        self._panel = Panel(executor, self._figures, self._told)

    def begin(self) -> None:
        self._panel.start()

    def end(self) -> None:
        self._panel.stop()

    def say(self, text: str) -> None:
        self._panel.say(text)

    def _figures(self) -> list[Any]:
        from rich.progress_bar import ProgressBar

        running = len(self._running)
        queued = self._jobs - self._done - running
        return [
            ProgressBar(total=self._jobs, completed=self._done, width=20),
            *_counts(running, queued, self._done, self._failed),
            *_times(time.monotonic() - self._since, self.time_left_s()),
        ]

    def _told(self, number: int) -> str:
        return f"#{number} {self._running.get(number, '')}"


class Panel:
    """Lines that stay below what is said: one of figures, one per device with memory and job."""

    def __init__(
        self, executor: Watched, figures: Callable[[], Sequence[Any]], told: Callable[[int], str]
    ) -> None:
        """`told`: a job in short, by its number."""
        self._executor = executor
        self._figures = figures
        self._told = told
        self._readings: Mapping[str, Device] = {}
        self._read_at = -math.inf
        self._console = screen(stderr=True)
        self._live: Any = None

    def start(self) -> None:
        from rich.live import Live

        self._live = Live(console=self._console, get_renderable=self.lines, refresh_per_second=4)
        self._live.start()

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def lines(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        head = Table.grid(padding=(0, 2))
        head.add_row(*self._figures())
        lines = Table.grid()
        lines.add_row(head)
        rows = list(self._device_rows())
        for row in rows[:MOST_DEVICES]:
            lines.add_row(Text(plain(f"  {row}"), "dim", no_wrap=True, overflow="ellipsis"))
        if len(rows) > MOST_DEVICES:
            lines.add_row(Text(f"  and {len(rows) - MOST_DEVICES} more devices", "dim"))
        return lines

    def _device_rows(self) -> Iterator[str]:
        where = sorted(self._executor.devices().items())
        if not isinstance(self._executor, Measured):
            for number, ids in where:
                yield f"{' '.join(map(short, ids))}  {self._told(number)}"
            return
        jobs: dict[str, list[int]] = {}
        for number, ids in where:
            for device_id in ids:
                jobs.setdefault(device_id, []).append(number)
        if time.monotonic() - self._read_at >= READ_AGAIN_S:
            self._read_at, self._readings = time.monotonic(), self._executor.readings()
        # A CPU slot is worth a line only while a job has it.
        known = [name for name, device in self._readings.items() if device.total_mib is not None]
        for device_id in dict.fromkeys([*known, *jobs]):
            memory = memory_text(self._readings.get(device_id))
            told = ", ".join(self._told(number) for number in jobs.get(device_id, ())) or "-"
            yield "  ".join(filter(None, (short(device_id), memory, told)))


def memory_text(device: Device | None) -> str:
    """Used and total; empty where NVML tells neither."""
    if device is None or device.total_mib is None or device.free_mib is None:
        return ""
    used = device.total_mib - device.free_mib
    return f"{used / 1024:.1f}/{device.total_mib / 1024:.1f} GiB"


def _counts(running: int, queued: int, done: int, failed: int) -> list[Any]:
    from rich.text import Text

    counts: list[Any] = [f"{running} running", f"{queued} queued", f"{done} done"]
    return [*counts, Text(f"{failed} failed", "red" if failed else "")]


def _times(elapsed_s: float, left_s: float | None) -> list[str]:
    return [
        f"{clock(elapsed_s)} elapsed",
        f"about {clock(left_s)} left" if left_s is not None else "",
    ]


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
