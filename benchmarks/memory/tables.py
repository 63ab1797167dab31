"""Tables of measured lines: what runs took, what they recomputed, and the published times beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.memory.discipline import RESULTS

Line = Mapping[str, Any]  # of results.jsonl


@dataclass(frozen=True)
class Published:
    """A row of the table of Mimose's authors."""

    task: str
    epochs: int
    model: str
    batch: int
    method: str
    time: str

    @property
    def seconds(self) -> int:
        parts = [int(part) for part in self.time.split(":")]
        return sum(n * 60**place for place, n in enumerate(reversed(parts)))


SOURCE = "published: Mimose's authors, V100 of 32 GB (arXiv 2209.02478)"
_SWAG = ("multiple-choice", 3, "bert-base-uncased", 16)
_SQUAD = ("question-answering", 2, "bert-base-uncased", 12)
_QQP = ("text-classification", 1, "bert-base-cased", 32)
PUBLISHED = (
    Published(*_SWAG, "None", "1:02:59"),
    Published(*_SWAG, "DC-6", "1:05:47"),
    Published(*_SWAG, "DCS-6", "1:18:03"),
    Published(*_SWAG, "PC-6", "1:17:59"),
    Published(*_SQUAD, "None", "1:20:01"),
    Published(*_SQUAD, "DC-8", "1:21:15"),
    Published(*_SQUAD, "DCS-8", "1:31:49"),
    Published(*_SQUAD, "GC", "1:45:03"),
    Published(*_QQP, "None", "38:48"),
    Published(*_QQP, "GC", "50:30"),
)
HALF_OF_STATIC = "multiple-choice"  # there most batches are much smaller than the largest
NAMES = {"none": "None", "gc": "GC", "prefix": "DC", "plan": "DC", "static": "DCS", "fixed": "PC"}


def show_table(folders: Sequence[Path]) -> str:
    """The tables of what lies in these folders."""
    if missing := [folder for folder in folders if not (folder / RESULTS).exists()]:
        raise SystemExit(
            f"{missing[0]}: has no {RESULTS}. Give a folder that `run --out` has written"
        )
    lines = [
        json.loads(line)
        for folder in folders
        for line in (folder / RESULTS).read_text(encoding="utf-8").splitlines()
    ]
    return report(lines)


def report(lines: Sequence[Line]) -> str:
    """Both tables, the bars, what does not count, and what all was measured on."""
    parts = [seed_table(lines)]
    if any(line.get("flops") for line in lines):
        parts += [recompute_table(lines), "\n".join(bars(lines))]
    elif any(line.get("step_s") for line in lines):
        parts.append(step_table(lines))
    keys = ("date", "command", "device", "card", "start", "model", "dtype", "attention")
    measured = dict.fromkeys(
        ", ".join(f"{key} {line[key]}" for key in (*keys, "torch", "transformers") if line.get(key))
        for line in lines
    )
    return "\n\n".join(filter(None, [*parts, "\n".join(notes(lines)), *measured])) + "\n"


def counted(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    """(task, method) -> lines of runs that count: neither void nor left out."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if not line.get("void") and not line.get("left_out"):
            found.setdefault((line["task"], line["method"]), []).append(line)
    return found


def notes(lines: Sequence[Line]) -> list[str]:
    """A sentence for each run that does not count."""
    return [
        f"- {line['task']}, {line['method']}, run {line['repeat']}: "
        + (f"void, {line['void']}" if line.get("void") else f"left out, {line['left_out']}")
        for line in lines
        if line.get("void") or line.get("left_out")
    ]


def middle(lines: Sequence[Line], key: str) -> float | None:
    values = [line[key] for line in lines if line.get(key) is not None]
    return median(values) if values else None


def above(lines: Sequence[Line], plain: Sequence[Line], key: str) -> float | None:
    """Per cent more of a number than the method that recomputes nothing, median over runs."""
    own, base = middle(lines, key), middle(plain, key)
    return None if own is None or not base else 100 * (own / base - 1)


def seed_table(lines: Sequence[Line]) -> str:
    """Method x budget x time: what was measured here, with the published rows of a task beside it."""
    head = ("task", "method", "budget, GiB", "time", "runs", "above None, %", "peak, GiB", "where")
    rows: list[tuple[str, ...]] = []
    found = counted(lines)
    for task in dict.fromkeys([*(one.task for one in PUBLISHED), *(task for task, _ in found)]):
        plain = next(
            (one.seconds for one in PUBLISHED if one.task == task and one.method == "None"), None
        )
        for one in PUBLISHED:
            if one.task == task:
                assert plain is not None
                rows.append(
                    (
                        f"{task}, {one.epochs} epochs",
                        one.method,
                        one.method.partition("-")[2],
                        one.time,
                        "",
                        f"{100 * (one.seconds / plain - 1):+.2f}",
                        "",
                        SOURCE,
                    )
                )
        base = found.get((task, "none"), ())
        for (own_task, method), own in found.items():
            if own_task != task:
                continue
            times = [line["training_s"] for line in own if line.get("training_s") is not None]
            spread = f" ({min(times):.1f}-{max(times):.1f})" if len(times) > 1 else ""
            rows.append(
                (
                    f"{task}, {own[-1]['steps']} steps" if own[-1].get("steps") else task,
                    named(method),
                    _number(middle(own, "budget_gib"), ".3g"),
                    f"{median(times):.1f} s{spread}" if times else own[-1]["ended"][:60] or "-",
                    str(len(own)),
                    _number(above(own, base, "training_s"), "+.1f"),
                    _number(
                        max(line.get("peak_allocated_gib") or 0 for line in own) or None, ".3g"
                    ),
                    f"here: {own[-1]['device']}, {own[-1]['model']} model",
                )
            )
    return markdown(head, rows)


def step_table(lines: Sequence[Line]) -> str:
    """Per method: step time without collection, peaks against the budget, planning."""
    head = (
        *("task", "method", "step, ms", "above None, %", "tokens/s", "allocated, GiB"),
        *(
            "reserved, GiB",
            "steps above",
            "infeasible",
            "largest miss, %",
            "planning, us",
            "collection, s",
        ),
        "ended",
    )
    rows = []
    found = counted(lines)
    for (task, method), own in found.items():
        if "steps_s" not in own[-1]:
            continue
        base = found.get((task, "none"), ())
        rows.append(
            (
                task,
                named(method),
                _number(middle(own, "step_s"), ".1f", 1000),
                _number(above(own, base, "steps_s"), "+.2f"),
                _number(middle(own, "tokens_per_s"), ".0f"),
                _number(middle(own, "peak_allocated_gib"), ".2f"),
                _number(middle(own, "peak_reserved_gib"), ".2f"),
                _number(middle(own, "over_budget"), ".0f"),
                _number(middle(own, "infeasible"), ".0f"),
                _number(middle(own, "error"), ".2f", 100),
                _number(middle(own, "plan_us"), ".0f"),
                _number(middle(own, "collect_s"), ".1f"),
                own[-1]["ended"][:60],
            )
        )
    return markdown(head, rows)


def recompute_table(lines: Sequence[Line]) -> str:
    """A row per budget; per method its peak and the share of what full checkpointing recomputes."""
    found = counted(lines)
    measured = {key: own[-1] for key, own in found.items() if own[-1].get("flops")}
    budgets = dict.fromkeys((t, m.partition("@")[2]) for t, m in measured if "@" in m)
    kinds = dict.fromkeys(m.partition("@")[0] for _, m in measured if "@" in m)
    head = [
        *("task", "None, MiB", "GC, MiB", "budget, MiB", *map(named, kinds)),
        *("blocks by DC : bucket_greedy where it keeps its margin", "largest miss, %"),
    ]
    rows = []
    for task, budget in budgets:
        levels = [
            measured.get((task, name), {}).get("peak_allocated_gib") for name in ("none", "gc")
        ]
        own = {kind: measured.get((task, f"{kind}@{budget}")) for kind in kinds}
        share = shares(lines, task)
        limit = next(line["budget_gib"] for line in own.values() if line)
        cells = [
            f"{1024 * line['peak_allocated_gib']:.2f}, {100 * share[f'{kind}@{budget}']:.1f} %"
            + (f", {_steps(line['over_budget'])} above" if line["over_budget"] else "")
            if line
            else "-"
            for kind, line in own.items()
        ]
        error = (own.get("prefix") or {}).get("error")
        first = [task, *(_number(level, ".2f", 1024) for level in levels)]
        ours, theirs = own.get("prefix"), own.get("bucket_greedy")
        fair = "-"
        if ours and theirs:
            one = fair_steps(ours, theirs)
            fair = (
                f"{one.ours} : {one.theirs} in {one.steps} of {len(theirs['above'])} steps, more in "
                f"{one.more}"
            )
        cells += [fair, _number(error, ".2f", 100)]
        rows.append([*first, f"{1024 * limit:.2f} ({budget})", *cells])
    return markdown(head, rows)


def shares(lines: Sequence[Line], task: str) -> dict[str, float]:
    """Method -> its additional FLOPs as a share of those of full checkpointing."""
    found = {method: own for (one, method), own in counted(lines).items() if one == task}
    plain, full = (middle(found.get(name, ()), "flops") for name in ("none", "gc"))
    if plain is None or full is None or full == plain:
        return {}
    flops = {method: middle(own, "flops") for method, own in found.items()}
    return {m: (n - plain) / (full - plain) for m, n in flops.items() if n is not None}


@dataclass(frozen=True)
class Fair:
    """Blocks recomputed by two methods in the steps in which they can be compared."""

    ours: int
    theirs: int
    steps: int
    more: int  # steps in which ours are more


def fair_steps(ours: Line, reference: Line) -> Fair:
    """The steps in which the reference keeps its margin; in the others it recomputes too little."""
    both = zip(ours["blocks"], reference["blocks"], reference["above"], strict=True)
    fair = [(own, theirs) for own, theirs, above in both if not above]
    return Fair(
        sum(own for own, _ in fair),
        sum(theirs for _, theirs in fair),
        len(fair),
        sum(own > theirs for own, theirs in fair),
    )


def bars(lines: Sequence[Line]) -> list[str]:
    """Whether the prefix planner recomputes at most what the reference does, and half of static's."""
    said = []
    found = counted(lines)
    for (task, method), (own, *_) in found.items():
        kind, _, budget = method.partition("@")
        if kind != "prefix":
            continue
        if reference := found.get((task, f"bucket_greedy@{budget}")):
            fair = fair_steps(own, reference[0])
            said.append(
                f"- {task}, {budget}: more blocks recomputed than by bucket_greedy in {fair.more} of the "
                f"{fair.steps} steps in which it keeps its margin: {'FAILS' if fair.more else 'holds'}"
            )
        share = shares(lines, task)
        theirs = share.get(f"static@{budget}")
        if task == HALF_OF_STATIC and theirs is not None:
            holds = share[method] <= theirs / 2
            said.append(
                f"- {task}, {budget}: {100 * share[method]:.1f} % of full checkpointing, static "
                f"{100 * theirs:.1f} %; at most half of it: {'holds' if holds else 'FAILS'}"
            )
    return said


def named(method: str) -> str:
    """Mimose's name of a method, with the budget's behind it."""
    kind, _, budget = method.partition("@")
    return "-".join(filter(None, (NAMES.get(kind, kind), budget)))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _steps(n: int) -> str:
    return f"{n} step" if n == 1 else f"{n} steps"


def _number(value: float | None, form: str, times: float = 1) -> str:
    return "-" if value is None else format(value if form == "d" else value * times, form)
