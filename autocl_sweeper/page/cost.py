"""What a sweep cost: device time by what it was spent on, and what each device did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from autocl_sweeper.budget import device_seconds
from autocl_sweeper.overview import Overview
from autocl_sweeper.page.story import lanes_text
from autocl_sweeper.page.timeline import lane_name
from autocl_sweeper.page.words import NOTHING, duration, share
from autocl_sweeper.types import DeviceUse, State, Trial

BEST, OTHERS = "the best chain", "other trials"
GIVEN_UP, FAILED = "trials given up", "failed trials"
STOPPED, AGAIN = "trials stopped early", "attempts that ran again"


@dataclass(frozen=True)
class DeviceRow:
    name: str
    jobs: int
    busy: float | None
    utilisation: str
    memory: str
    temperature: str


@dataclass(frozen=True)
class Cost:
    """Device time in seconds. `parts`: what it was spent on; their sum is `total_s`."""

    sentence: str
    total_s: float
    parts: Mapping[str, float]
    devices: Sequence[DeviceRow]  # empty unless what jobs used was measured


def cost(sweep: Overview) -> Cost:
    total = sweep.spent.device_s
    parts = dict.fromkeys((BEST, OTHERS, GIVEN_UP, FAILED, STOPPED, AGAIN), 0.0)
    for trial in sweep.history:
        if trial.outcome is not None:
            parts[_part(sweep, trial)] += device_seconds(trial.outcome)
    for record in sweep.records:
        if record["event"] == "attempt_failed":
            parts[AGAIN] += record.get("device_seconds", 0.0)
    # The rest, and not the sum of them: a trial that finished may have run again.
    parts[OTHERS] = max(0.0, total - sum(parts.values()) + parts[OTHERS])
    spent = {label: seconds for label, seconds in parts.items() if seconds > 1e-6}
    return Cost(_sentence(sweep), total, spent, _devices(sweep))


def _part(sweep: Overview, trial: Trial) -> str:
    if trial.number in sweep.history.given_up:
        return GIVEN_UP
    if trial.state is State.COMPLETE:
        return BEST if trial.number in sweep.best else OTHERS
    return FAILED if trial.state is State.FAIL else STOPPED


def _sentence(sweep: Overview) -> str:
    if not sweep.attempts:
        return ""
    waited = min(one.began for one in sweep.attempts) - sweep.begun
    words = lanes_text(sweep)
    were = "was" if words.startswith("1 ") else "were"
    until = "the end" if sweep.status == "finished" else "the last event"
    told = (
        f"{words} {were} busy {share(sweep.busy)} of the time between the first start and {until};"
    )
    told += f" the first job started after {duration(waited)}."
    queued = [one.began - one.asked for one in sweep.attempts if one.began - one.asked > 1]
    if len(queued) > max(1, 0.1 * len(sweep.attempts)):
        told += f" {len(queued)} jobs waited {duration(fmean(queued))} on average for a device."
    if (gap := _longest_gap(sweep)) is not None and gap[0] > max(1.0, 0.02 * sweep.window_s):
        told += f" The longest gap between two jobs was {duration(gap[0])}, on {gap[1]}."
    return told


def _longest_gap(sweep: Overview) -> tuple[float, str] | None:
    """Seconds in which a device had no job between two that it had, in one session, and its name."""
    begun = [record["time"] for record in sweep.records if record["event"] == "session"]
    found = []
    for lane, attempts in sweep.lanes.items():
        until = attempts[0].began
        for one in attempts:
            if one.began > until and not any(until < time_s <= one.began for time_s in begun):
                found.append((one.began - until, lane_name(lane)))
            until = max(until, sweep.as_of if one.end is None else one.end)
    return max(found, default=None)


def _devices(sweep: Overview) -> list[DeviceRow]:
    used: dict[str, list[tuple[float, DeviceUse]]] = {}
    for trial in sweep.history:
        if trial.outcome is not None and (use := trial.outcome.device) is not None:
            for device in use.ids:
                used.setdefault(device, []).append((trial.outcome.seconds, use))
    rows = []
    for device, jobs in sorted(used.items()):
        known = [(s, u.mean_utilisation) for s, u in jobs if u.mean_utilisation is not None]
        seconds = sum(s for s, _ in known)
        mean = sum(s * n for s, n in known) / seconds if seconds else None
        peaks = [u.peak_mib for _, u in jobs if u.peak_mib is not None]
        warm = [u.max_temperature_c for _, u in jobs if u.max_temperature_c is not None]
        rows.append(
            DeviceRow(
                lane_name(device),
                len(jobs),
                sweep.busy_of(device),
                NOTHING if mean is None else f"{mean:.0f} %",
                f"{max(peaks) / 1024:.1f} GiB" if peaks else NOTHING,
                f"{max(warm)} °C" if warm else NOTHING,
            )
        )
    return rows
