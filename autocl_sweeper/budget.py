"""What a sweep may use in all, what it has used, and which bound it reached."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.journal import Record, outcome_from_json
from autocl_sweeper.types import Outcome

HOUR_S = 3600.0
UNITS_S = {"d": 24 * HOUR_S, "h": HOUR_S, "m": 60.0, "s": 1.0}
DURATION = re.compile(r"(?:\d+(?:\.\d+)?\s*[dhms]\s*)+")
PART = re.compile(r"(\d+(?:\.\d+)?)\s*([dhms])")


@dataclass(frozen=True)
class Budget:
    """Bounds of a whole sweep; None: no bound. `wall_clock_s` counts while a controller runs."""

    jobs: int | None = None
    device_hours: float | None = None
    wall_clock_s: float | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Budget:
        """From `hydra.sweeper.budget`. Raises ConfigurationError."""
        known = ("jobs", "device_hours", "wall_clock")
        if unknown := sorted(set(given) - set(known)):
            raise ConfigurationError(
                f"hydra.sweeper.budget has no key {unknown[0]!r}; it has: {', '.join(known)}.\n"
                "  jobs counts jobs of the whole sweep, device_hours their hours times devices,"
                " wall_clock is\n  in seconds or a text as 2h30m."
            )
        wall_clock = given.get("wall_clock")
        if isinstance(wall_clock, str):
            wall_clock = _seconds(wall_clock)
        jobs = _positive("jobs", given.get("jobs"))
        if jobs is not None and jobs != int(jobs):
            raise ConfigurationError(
                f"hydra.sweeper.budget.jobs={jobs}, but it must be a whole number."
            )
        return cls(
            None if jobs is None else int(jobs),
            _positive("device_hours", given.get("device_hours")),
            _positive("wall_clock", wall_clock),
        )


def _positive(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigurationError(
            f"hydra.sweeper.budget.{name}={value!r}, but it must be a number above 0."
        )
    return value


def _seconds(text: str) -> float:
    if not DURATION.fullmatch(text.strip()):
        raise ConfigurationError(
            f"hydra.sweeper.budget.wall_clock={text!r} is no duration.\n"
            "  Give seconds, or numbers with d, h, m or s: 90m, 2h30m, 1d."
        )
    return sum(float(number) * UNITS_S[unit] for number, unit in PART.findall(text))


@dataclass(frozen=True)
class Spent:
    """What a journal says of earlier sessions."""

    wall_clock_s: float = 0.0
    device_s: float = 0.0  # seconds of jobs times their devices, failed attempts included


def spent(records: Iterable[Record]) -> Spent:
    """From the first event of each session to its last; jobs with what they took."""
    wall_s = device_s = 0.0
    last: float | None = None
    for record in records:
        if record["event"] == "session":
            last = None  # what lies between two sessions counts for neither
        elif record["event"] == "finish":
            device_s += device_seconds(outcome_from_json(record))
        elif record["event"] == "attempt_failed":
            device_s += record.get("device_seconds", 0.0)
        # A clock that was set back takes nothing away from what was used.
        wall_s += max(0.0, record["time"] - last) if last is not None else 0.0
        last = record["time"]
    return Spent(wall_s, device_s)


def device_seconds(outcome: Outcome) -> float:
    """Seconds of a job times its devices; a job without GPUs has one slot."""
    return outcome.seconds * (len(outcome.device.ids) if outcome.device else 1)


class Meter:
    """What a sweep has used of its budget. `clock` gives seconds."""

    def __init__(self, budget: Budget, before: Spent, clock: Callable[[], float]) -> None:
        self._budget = budget
        self._clock = clock
        self._begin_s = clock() - before.wall_clock_s
        self._device_s = before.device_s
        self._since: dict[int, float] = {}  # running jobs

    def started(self, number: int) -> None:
        self._since[number] = self._clock()

    def ended(self, number: int, outcome: Outcome) -> None:
        self._since.pop(number, None)
        self._device_s += device_seconds(outcome)

    def jobs_used_up(self, jobs: int) -> str | None:
        """Why no new trial may start after so many; trials that failed may still run again."""
        most = self._budget.jobs
        return self.time_used_up() or (
            f"{jobs} of {most} jobs (hydra.sweeper.budget.jobs)"
            if most is not None and jobs >= most
            else None
        )

    def time_used_up(self) -> str | None:
        """Why nothing may start at all. Running jobs count with what they took so far."""
        hours, wall_s = self._budget.device_hours, self._budget.wall_clock_s
        now = self._clock()
        if hours is not None:
            used = (self._device_s + sum(now - since for since in self._since.values())) / HOUR_S
            if used >= hours:
                return f"{used:.4g} of {hours:g} device-hours (hydra.sweeper.budget.device_hours)"
        if wall_s is not None and now - self._begin_s >= wall_s:
            gone = now - self._begin_s
            return f"{gone:.0f} of {wall_s:g} seconds (hydra.sweeper.budget.wall_clock)"
        return None
