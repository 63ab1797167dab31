"""What devices said of themselves while jobs ran, thinned for a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from autocl_sweeper.device.samples import NAME, Sample, samples
from autocl_sweeper.device.sampling import PERIOD_S
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.overview import Overview
from autocl_sweeper.types import State

POINTS = 500  # of a device


@dataclass(frozen=True)
class Stretch:
    """A device between two looks; times in seconds since 1970, shares of 1."""

    begin: float
    end: float
    utilisation: float | None
    memory: float | None


def load(sweep: Overview) -> Mapping[str, Sequence[Stretch]]:
    """By device, in order; at most `POINTS` of each. Empty: nothing was sampled."""
    files = JobFiles.of(sweep.folder)
    on_gpus = [one for one in sweep.attempts if any(d[:4] != "cpu-" for d in one.devices)]
    found: dict[str, list[Sample]] = {}
    for number in dict.fromkeys(one.trial for one in on_gpus):
        trial = sweep.history[number]
        runs = trial.state is State.RUNNING
        for one in samples(files.samples(number) if runs else sweep.folder / trial.folder / NAME):
            found.setdefault(one.device, []).append(one)
    # One less than POINTS: the sweep begins and ends within a width.
    width_s = max(1e-3, sweep.open_s(sweep.as_of) / (POINTS - 1))
    return {device: _stretches(every, width_s) for device, every in sorted(found.items())}


def _stretches(every: list[Sample], width_s: float) -> list[Stretch]:
    """Samples that fall together are one: the mean of utilisations, the most of memory."""
    together: dict[int, list[Sample]] = {}
    for one in sorted(every, key=lambda one: one.time_s):
        together.setdefault(int(one.time_s // width_s), []).append(one)
    found: list[Stretch] = []
    apart_s = 3 * max(width_s, PERIOD_S)  # looks farther apart are of two jobs
    for group in together.values():
        end = group[-1].time_s
        begin = group[0].time_s - PERIOD_S
        if found and end - found[-1].end <= apart_s:
            begin = found[-1].end
        loads = [one.utilisation / 100 for one in group if one.utilisation is not None]
        used = [
            one.used_mib / one.total_mib
            for one in group
            if one.used_mib is not None and one.total_mib
        ]
        mean = round(fmean(loads), 3) if loads else None
        found.append(Stretch(begin, end, mean, round(max(used), 3) if used else None))
    return found
