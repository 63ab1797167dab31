"""What a sweep cost: device time by what it was spent on, and what each device did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from autocl_sweeper.budget import device_seconds
from autocl_sweeper.overview import Overview
from autocl_sweeper.page.story import lanes_text
from autocl_sweeper.page.timeline import lane_name
from autocl_sweeper.page.words import NOTHING, duration, share
from autocl_sweeper.types import DeviceUse, State


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
    failed_s: float
    given_up_s: float
    parts: Sequence[tuple[str, float]]
    devices: Sequence[DeviceRow]  # empty unless what jobs used was measured


def cost(sweep: Overview) -> Cost:
    history = sweep.history
    best = {trial.number for trial in sweep.chain}
    total = sweep.spent.device_s
    by_kind = {"the best chain": 0.0, "trials given up": 0.0, "failed trials": 0.0}
    stopped = 0.0
    for trial in history:
        if trial.outcome is None:
            continue
        seconds = device_seconds(trial.outcome)
        if trial.number in history.given_up:
            by_kind["trials given up"] += seconds
        elif trial.state is State.FAIL:
            by_kind["failed trials"] += seconds
        elif trial.state is State.PRUNED:
            stopped += seconds
        elif trial.number in best:
            by_kind["the best chain"] += seconds
    again = sum(
        r.get("device_seconds", 0.0) for r in sweep.records if r["event"] == "attempt_failed"
    )
    by_kind |= {"trials stopped early": stopped, "attempts that ran again": again}
    rest = total - sum(by_kind.values())
    first = {"the best chain": by_kind.pop("the best chain"), "other trials": max(0.0, rest)}
    parts = [(label, seconds) for label, seconds in (first | by_kind).items() if seconds > 1e-6]
    given_up, failed = by_kind["trials given up"], by_kind["failed trials"] + again
    return Cost(_sentence(sweep), total, failed, given_up, parts, _devices(sweep))


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
