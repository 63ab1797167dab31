"""Sweeps side by side: as a table, or as JSON for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from autocl_sweeper.compare import Figures, Mean, Row
from autocl_sweeper.display.screen import table

if TYPE_CHECKING:
    from rich.console import Console

NUMBERS = ("dev", "test", "dev_forgetting", "test_forgetting", "jobs", "device_hours")
DIGITS = {"jobs": 0}


def as_json(rows: Sequence[Row]) -> str:
    def of_sweep(sweep: Figures) -> dict[str, Any]:
        told = {**asdict(sweep), "folder": str(sweep.folder)}
        return {name: value for name, value in told.items() if name not in ("key", "kind")}

    told = []
    for row in rows:
        means = {name: row.mean(name) for name in NUMBERS}
        told.append(
            {
                **row.sweeps[0].kind,
                **{name: mean and asdict(mean) for name, mean in means.items()},
                "sweeps": [of_sweep(sweep) for sweep in row.sweeps],
            }
        )
    return json.dumps(told, indent=2)


def print_comparison(rows: Sequence[Row], console: Console) -> None:
    if not console.is_terminal:  # a file has no edge to break lines at
        console.width = 200
    drawn = table()
    shown = [name for name in NUMBERS if any(row.mean(name) for row in rows)]
    drawn.add_column("sweep", overflow="fold")
    for column in ("protocol", "search"):
        drawn.add_column(column, no_wrap=True)
    for column in ("k", "jobs a stage", "seeds", *(name.replace("_", " ") for name in shown)):
        drawn.add_column(column, justify="right")
    for row, name in zip(rows, _names(rows), strict=True):
        kind = row.sweeps[0].kind
        drawn.add_row(
            name,
            str(kind["protocol"]),
            str(kind["search"]),
            str(kind["top_k"]),
            _per_stage(row.sweeps[0]),
            str(len(row.finished)),
            *(_text(row.mean(name), DIGITS.get(name, 3)) for name in shown),
        )
    console.print(drawn)
    for line in _notes(rows):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _names(rows: Sequence[Row]) -> list[str]:
    """The folder of a row, or what its folders have in common, without what all rows have."""
    home = os.path.commonpath([s.folder.absolute().parent for row in rows for s in row.sweeps])
    found = []
    for row in rows:
        names = [str(s.folder.absolute().relative_to(home)) for s in row.sweeps]
        same = os.path.commonprefix(names)  # noqa: RUF071  # of letters, not of folders
        found.append(same + "*" * (len(names) > 1))
    return found


def _per_stage(sweep: Figures) -> str:
    if "jobs" in sweep.kind:
        return str(sweep.kind["jobs"])
    if "popsize" in sweep.kind:
        return f"{sweep.kind.get('rounds', 1)} x {sweep.kind['popsize']}"
    return "all"


def _text(mean: Mean | None, digits: int) -> str:
    if mean is None:
        return "-"
    shown = mean.half is not None and (digits or mean.half)  # jobs mostly are the same number
    half = f" ± {mean.half:.{digits}f}" if shown else ""
    return f"{mean.mean:.{digits}f}{half}"


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "dev, test: average accuracy of the best chain after the last task. ±: 95 % t-interval over"
        " sweeps that differ in their seeds only."
    )
    for row in rows:
        for sweep in row.sweeps:
            if not sweep.finished:
                so_far = "" if sweep.dev is None else f" (dev {sweep.dev:.4f} so far)"
                yield (
                    f"'{sweep.folder}' is not finished, so no mean includes it: its best chain has"
                    f" {sweep.tasks_reached} of {sweep.tasks} tasks{so_far}, {sweep.jobs} jobs,"
                    f" {sweep.device_hours:.3f} device-hours."
                )
