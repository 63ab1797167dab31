"""Tables and pictures of trainings under a memory budget, from job folders and logs."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

from train.memory.logs import Measured
from train.memory.pictures import Chart

GIB = 2.0**30


@dataclass(frozen=True)
class Row:
    """One training in the table; None: not measured, or not in the log."""

    run: str
    method: str | None
    budget_gib: float | None
    batches: int
    sizes: str
    peak_gib: float | None  # allocated
    reserved_gib: float | None
    over_budget: int | None  # micro-batches with a higher peak
    recomputed: float | None  # blocks, mean over micro-batches
    blocks: int | None
    error_percent: float | None  # largest miss of a prediction, of the measured peak
    seconds: float | None
    overhead_percent: float | None  # of the time, against method None


def overhead(runs: Mapping[str, Measured], seconds: float | None) -> float | None:
    """Per cent more time than the median of the runs that recompute nothing."""
    plain = [one.seconds for one in runs.values() if one.method == "None" and one.seconds]
    if not plain or seconds is None:
        return None
    return 100.0 * (seconds / median(plain) - 1.0)


def rows(runs: Mapping[str, Measured]) -> list[Row]:
    made = []
    for name, one in runs.items():
        peaks = [peak for own in one.memory_count.values() for peak in own]
        budget, counts, sizes = one.budget_gib, one.recomputed, sorted(one.shape_count)
        errors = [abs(wanted / found - 1.0) for wanted, found in one.predictions if found]
        if one.method == "DCS":  # it predicts the largest batch alone
            errors = []
        made.append(
            Row(
                run=name,
                method=one.method,
                budget_gib=budget,
                batches=sum(one.shape_count.values()),
                sizes="-".join(map(str, dict.fromkeys(sizes[:1] + sizes[-1:]))),
                peak_gib=max(peaks) / GIB if peaks else None,
                reserved_gib=None if one.max_memory_used is None else one.max_memory_used / GIB,
                over_budget=None if budget is None else sum(p > budget * GIB for p in peaks),
                recomputed=sum(counts) / len(counts) if counts else None,
                blocks=one.blocks,
                error_percent=100.0 * max(errors) if errors else None,
                seconds=one.seconds,
                overhead_percent=overhead(runs, one.seconds),
            )
        )
    return made


NAMES = [one.name for one in fields(Row)]


def as_text(table: Sequence[Row]) -> str:
    cells = [NAMES, *([*map(_shown, asdict(row).values())] for row in table)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def charts(runs: Mapping[str, Measured]) -> dict[str, Chart]:
    """File name without its end -> picture. Left out is what there are no numbers for."""
    made: dict[str, Chart | None] = {}
    for name, one in runs.items():
        part = re.sub(r"[^\w.-]+", "_", name)
        made[f"memory_{part}"] = _memory_chart(name, one)
        made[f"sizes_{part}"] = _sizes_chart(name, one)
        made[f"predicted_{part}"] = _predicted_chart(name, one)
        made[f"share_{part}"] = _share_chart(name, one)
    made["overhead"] = _overhead_chart(runs)
    return {name: chart for name, chart in made.items() if chart is not None}


def _unit(largest: float) -> tuple[str, float]:
    """The unit in which bytes up to `largest` are read best, and its bytes."""
    return ("GiB", GIB) if largest >= GIB else ("MiB", GIB / 1024)


def _memory_chart(name: str, one: Measured) -> Chart | None:
    if not one.memory_count:
        return None
    each = {size: iter(own) for size, own in one.memory_count.items()}
    in_order = [(size, next(each[size])) for size in one.shape_order[: one.collected]]
    planned = [(size, peak) for size, own in each.items() for peak in own]  # what is left of them
    unit, scale = _unit(max(peak for own in one.memory_count.values() for peak in own))
    chart = Chart(f"{name}: memory against size", "size of the input", f"peak, {unit}")
    for label, pairs in (("planned", planned), ("collecting", in_order)):
        if pairs:
            label = label if in_order else "micro-batch"
            chart.add(label, [x for x, _ in pairs], [y / scale for _, y in pairs])
    if one.budget_gib is not None:
        chart.level("cap", one.budget_gib * GIB / scale)
        if one.margin_gib:
            chart.level("budget of plans", (one.budget_gib - one.margin_gib) * GIB / scale)
    return chart


def _sizes_chart(name: str, one: Measured) -> Chart | None:
    if not one.shape_count:
        return None
    chart = Chart(f"{name}: how often each size comes", "size of the input", "micro-batches")
    chart.add("micro-batches", [*one.shape_count], [*one.shape_count.values()], "bars")
    return chart


def _predicted_chart(name: str, one: Measured) -> Chart | None:
    if not one.predictions or one.method == "DCS":  # it predicts the largest batch alone
        return None
    both = [n for pair in one.predictions for n in pair]
    unit, scale = _unit(max(both))
    chart = Chart(
        f"{name}: predicted against measured",
        f"measured peak, {unit}",
        f"predicted, {unit}",
        square=True,
    )
    ends = [min(both) / scale, max(both) / scale]
    chart.add("equal", ends, ends, "line")
    measured = [real / scale for _, real in one.predictions]
    chart.add("micro-batch", measured, [wanted / scale for wanted, _ in one.predictions])
    return chart


def _share_chart(name: str, one: Measured) -> Chart | None:
    if not one.recomputed:
        return None
    whole = one.blocks
    y_name = "blocks recomputed" if whole is None else f"recomputed, % of {whole} blocks"
    scale = 1.0 if whole is None else 100.0 / whole
    shares = [n * scale for n in one.recomputed]
    chart = Chart(f"{name}: share checkpointed", "micro-batch", y_name)
    places = range(1, len(shares) + 1)
    if one.collected < len(shares):
        label = "planned" if one.collected else "micro-batch"
        chart.add(label, places[one.collected :], shares[one.collected :])
    if one.collected:
        chart.add("collecting", places[: one.collected], shares[: one.collected])
    if any(one.partly):
        chart.add("in part", places, [n * scale for n in one.partly])
    return chart


def _overhead_chart(runs: Mapping[str, Measured]) -> Chart | None:
    """Time against budget, a line per method; None and GC as levels. None: too few numbers."""
    times: dict[str, dict[float, list[float]]] = {}
    full: list[float] = []
    for one in runs.values():
        more = overhead(runs, one.seconds)
        if more is None or one.method is None:
            continue
        if one.method == "GC":
            full.append(more)
        elif one.budget_gib is not None and one.method != "None":
            times.setdefault(one.method, {}).setdefault(one.budget_gib, []).append(more)
    if not times:
        return None
    chart = Chart("overhead against budget", "budget, GiB", "time above None, %")
    for method, by_budget in times.items():
        chart.add(
            method, sorted(by_budget), [median(by_budget[b]) for b in sorted(by_budget)], "line"
        )
    chart.level("None", 0.0)
    if full:
        chart.level("GC", median(full))
    return chart


def write(runs: Mapping[str, Measured], folder: Path) -> list[Path]:
    """table.txt, table.csv and the pictures; what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    table = rows(runs)
    written = [folder / "table.txt", folder / "table.csv"]
    written[0].write_text(as_text(table), encoding="utf-8")
    with written[1].open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, NAMES, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, table))
    for name, chart in charts(runs).items():
        chart.save(folder / f"{name}.png")
        written.append(folder / f"{name}.png")
    return written
