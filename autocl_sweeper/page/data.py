"""What the page's script needs: all trials by column, charts, and strict JSON of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from autocl_sweeper.overview import Overview
from autocl_sweeper.page.curves import curves
from autocl_sweeper.page.failures import TAIL_LINES, tail_of
from autocl_sweeper.page.parallel import parallel
from autocl_sweeper.page.timeline import lane_name, timeline
from autocl_sweeper.page.tree import KINDS, kind_of, layout, scale_of, tree
from autocl_sweeper.page.words import bare_key, clean, setting, shown
from autocl_sweeper.types import Trial

TAILS_BYTES = 150_000


def data(sweep: Overview) -> dict[str, Any]:
    """Trials and charts. Columns are lists by trial number, which counts from 0 without gaps."""
    trials = list(sweep.history)
    drawn = layout(sweep) if trials else None
    scale = scale_of(sweep)
    tasks = list(dict.fromkeys(trial.task for trial in trials))
    devices = _devices(sweep)
    names = [*dict.fromkeys(device for device in devices if device)]
    reasons = [shown(t.outcome.reason) if t.outcome else "" for t in trials]
    said = list(dict.fromkeys(reasons))
    charts = {
        "tree": tree(sweep) if trials else None,
        "timeline": timeline(sweep),
        "parallel": parallel(sweep),
        "curves": curves(sweep),
    }
    return {
        "maximize": sweep.maximize,
        "tasks": [clean(task) for task in tasks],
        "kinds": KINDS,
        "devices": names,
        "reasons": said,
        "chain": [trial.number for trial in sweep.chain],
        "beams": {str(stage): list(beam) for stage, beam in sweep.history.beams.items()},
        "ranks": [] if drawn is None else [[t.number for t in column] for column in drawn.columns],
        "trials": {
            "stage": [t.stage for t in trials],
            "task": [tasks.index(t.task) for t in trials],
            "kind": [KINDS.index(kind_of(sweep, t)) for t in trials],
            "score": [_number(t.score) for t in trials],
            "step": [scale.step(t.score) for t in trials],
            "parent": [t.parent for t in trials],
            "seconds": [_number(t.outcome.seconds if t.outcome else None, 4) for t in trials],
            "device": [names.index(device) if device else None for device in devices],
            "reason": [said.index(reason) for reason in reasons],
            "origin": [t.suggestion.origin for t in trials],
            "source": [t.suggestion.source for t in trials],
            "attempt": [t.attempt for t in trials],
            "folder": [
                None if t.folder == f"{t.stage}_{t.task}/{t.number}" else shown(t.folder)
                for t in trials
            ],
        },
        "params": _params(trials),
        "evals": _scores(trials, tasks, "evaluations"),
        "tests": _scores(trials, tasks, "tests"),
        "tails": _tails(sweep, trials),
        "charts": {name: by_column(spec) for name, spec in charts.items() if spec is not None},
    }


def _number(value: float | None, digits: int = 6) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def _devices(sweep: Overview) -> list[str]:
    """Where the last attempt of each trial ran, and what it reserved there."""
    found = [""] * len(sweep.history)
    for one in sweep.attempts:
        share = f", {one.reservation}" if one.reservation and one.devices else ""
        found[one.trial] = " ".join(map(lane_name, one.devices)) + share
    return found


def _params(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A column a parameter; values as they are read, null where a trial does not have it."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.suggestion.params))
    columns = []
    for key in keys:
        values = [t.suggestion.params.get(key) for t in trials]
        kept = [
            v if isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**53
            else _number(v, 4) if isinstance(v, float) and math.isfinite(v)
            else setting(v) if key in t.suggestion.params else None
            for t, v in zip(trials, values, strict=True)
        ]  # fmt: skip
        columns.append({"key": shown(key), "name": bare_key(key), "values": _packed(kept)})
    return columns


def _packed(values: list[Any]) -> Any:
    """Few different values as a list of them and places in it."""
    distinct: dict[str, int] = {}
    places = [distinct.setdefault(json.dumps(value), len(distinct)) for value in values]
    if len(distinct) * 4 > len(values):
        return values
    return {"of": [json.loads(text) for text in distinct], "at": places}


def _scores(trials: Sequence[Trial], tasks: Sequence[str], split: str) -> list[list[float | None]]:
    """By trial, in the order of the tasks, without the empty end."""
    rows = []
    for trial in trials:
        scores: Mapping[str, float] = getattr(trial.outcome, split) if trial.outcome else {}
        row = [_number(scores.get(task), 4) for task in tasks]
        while row and row[-1] is None:
            row.pop()
        rows.append(row)
    return rows


def _tails(sweep: Overview, trials: Sequence[Trial]) -> dict[str, str]:
    """Last lines of logs, three of each cause at least, more while they are small."""
    found: dict[str, str] = {}
    size = 0
    seen: dict[tuple[str, str], int] = {}
    for trial in trials:
        outcome = trial.outcome
        if outcome is None or not outcome.log_tail:
            continue
        key = (outcome.cause.value, outcome.reason)
        seen[key] = seen.get(key, 0) + 1
        tail = "\n".join(tail_of(outcome.log_tail[-TAIL_LINES:]))
        if size + len(tail) < TAILS_BYTES and (seen[key] <= 3 or len(trials) <= 1000):
            found[str(trial.number)] = tail
            size += len(tail)
    return found


def by_column(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A chart whose rows are lists by field, a third of the size; the script turns them back."""
    tables = []
    for table in spec["data"]:
        rows = table["values"]
        columns = {key: [row[key] for row in rows] for key in (rows[0] if rows else ())}
        tables.append({**table, "values": {"columns": columns}})
    return {**spec, "data": tables}


def as_json(value: Any) -> str:
    """Strict JSON that can stand in a script element: no `</script>`, no line ends of JavaScript."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
