"""trials.csv: a row per trial."""

from __future__ import annotations

import csv
import io
import json
from collections import ChainMap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autocl_sweeper.outcome import write_whole
from autocl_sweeper.plain import plain
from autocl_sweeper.results.provenance import provenance
from autocl_sweeper.types import History

TABLE_FILE = "trials.csv"


def write_table(folder: Path, history: History) -> None:
    """Every trial as a row; parameters, scores by task and other numbers as columns of their own."""
    fixed = ["trial", "stage", "task", "state", "score", "step", "parent"]
    fixed += ["selected", "attempt"]
    fixed += ["seconds", "folder", "cause", "reason"]
    repeated = any(trial.repeat for trial in history)
    has_extras = any(trial.extra for trial in history)
    fixed += ["repeat"] * repeated + ["extra"] * has_extras
    fixed += ["merged_from"] * any(t.outcome and t.outcome.merged_from for t in history)
    rows: list[tuple[dict[str, Any], ...]] = []
    selected = {number for beam in history.beams.values() for number in beam}
    for trial in history:
        outcome = trial.outcome
        row: dict[str, Any] = {
            "trial": trial.number,
            "stage": trial.stage,
            "task": trial.task,
            "state": trial.state.value,
            "score": trial.score,
            "step": reports[-1].step if (reports := history.reports(trial.number)) else None,
            "parent": trial.parent,
            "selected": int(trial.number in selected),
            "attempt": trial.attempt,
            "folder": trial.folder,
        }
        if repeated:
            row["repeat"] = trial.repeat
        if has_extras:
            row["extra"] = trial.extra
        if outcome is not None and outcome.merged_from:
            row["merged_from"] = json.dumps(dict(outcome.merged_from))
        params = {
            f"param/{key}": value if isinstance(value, str) else json.dumps(value)
            for key, value in trial.suggestion.params.items()
        }
        numbers: dict[str, float] = {}
        device: dict[str, Any] = {}
        if outcome is not None:
            row["seconds"] = round(outcome.seconds, 3)
            row |= {"cause": outcome.cause.value, "reason": outcome.reason}
            numbers |= {f"eval/{key}": n for key, n in outcome.evaluations.items()}
            numbers |= {f"test/{key}": n for key, n in outcome.tests.items()}
            numbers |= {key: n for key, n in outcome.numbers.items() if key not in fixed}
            if outcome.device is not None:
                device = {f"device/{k}": figure for k, figure in asdict(outcome.device).items()}
                device["device/ids"] = " ".join(outcome.device.ids)
        rows.append((row, provenance(trial.suggestion), params, numbers, device))
    columns = dict.fromkeys(fixed)
    for group in (1, 2, 3, 4):
        columns |= dict.fromkeys(key for row in rows for key in row[group])
    write_whole(folder / TABLE_FILE, _csv(list(columns), rows).encode("utf-8", "backslashreplace"))


def _csv(columns: Sequence[str], rows: Iterable[tuple[dict[str, Any], ...]]) -> str:
    """A table that Python's csv, pandas and spreadsheets read alike, whatever its texts hold."""
    text = io.StringIO(newline="")
    # The writer quotes what is in its line end, with this one a carriage return as well.
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    lines = []
    for row in ({key: key for key in columns}, *(dict(ChainMap(*groups)) for groups in rows)):
        writer.writerow({k: plain(v) if k == "reason" else v for k, v in row.items()})
        lines.append(text.getvalue().removesuffix("\r\n") + "\n")
        text.seek(0)
        text.truncate()
    return "".join(lines)
