"""What a job's devices said of themselves while it ran: one CSV file per job."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from autocl_sweeper.device.probe import Device

NAME = "devices.csv"  # in the job's folder
COLUMNS = ("time", "device", "utilisation", "used_mib", "total_mib", "temperature_c")
SHARE = 1 / 250  # of a job's age goes by between two lines, so that a long job has no long file


@dataclass(frozen=True)
class Sample:
    """A device at one time, in seconds since 1970, as all that runs there has it."""

    time_s: float
    device: str
    utilisation: float | None  # per cent, the mean of the looks since the line before
    used_mib: int | None
    total_mib: int | None
    temperature_c: int | None


@dataclass
class SampleFile:
    """Adds a line for each of the job's devices, the more seldom the longer it runs."""

    path: Path
    began_s: float
    _written_s: float = 0.0
    _looks: dict[str, list[Device]] = field(default_factory=dict)

    def add(self, now_s: float, devices: Sequence[Device]) -> None:
        """Take in one look at the devices. What the disk does not take is lost."""
        for device in devices:
            self._looks.setdefault(device.id, []).append(device)
        if now_s - self._written_s < (now_s - self.began_s) * SHARE:
            return
        self._written_s = now_s
        rows = [_row(now_s, looks) for looks in self._looks.values()]
        self._looks.clear()
        with suppress(OSError):
            new = not self.path.exists()
            with open(self.path, "a", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *rows] if new else rows)


def _row(now_s: float, looks: Sequence[Device]) -> list[str]:
    last = looks[-1]
    loads = [one.utilisation for one in looks if one.utilisation is not None]
    used = None
    if last.total_mib is not None and last.free_mib is not None:
        used = last.total_mib - last.free_mib
    mean = round(fmean(loads), 1) if loads else None
    figures = (mean, used, last.total_mib, last.temperature_c)
    return [f"{now_s:.1f}", last.id, *("" if one is None else str(one) for one in figures)]


def samples(path: Path) -> list[Sample]:
    """The samples of a job in order; none where there is no file. Torn lines are left out."""
    found = []
    with suppress(OSError, csv.Error), open(path, newline="", errors="replace") as file:
        for row in csv.DictReader(file):
            if None in row.values():
                continue
            with suppress(ValueError, TypeError):
                found.append(
                    Sample(
                        float(row["time"]),
                        row["device"],
                        float(row["utilisation"]) if row["utilisation"] else None,
                        *(int(row[key]) if row[key] else None for key in COLUMNS[3:]),
                    )
                )
    return found
