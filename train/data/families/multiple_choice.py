"""Multiple choice as SWAG: a context, a beginning, and endings of which one goes on from it.

A record has sent1, sent2, ending0, ending1, ... and label, the number of the right ending.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.config.task import Task
from train.config.typed import SettingsError
from train.data.families.made import BAD, GOOD, Lengths, one_of, words
from train.data.families.records import read_records
from train.data.specs import Column
from train.data.tables import Row

COLUMNS = ("context", "choices", "label", "place", "dataset", "instance")
TEMPLATE = "[TEXT:context] [TEXT:choices] -> [TEXT:label]"
METRIC = "accuracy"
LENGTHS = Lengths(median=27, spread=0.4, least=10, most=138)  # of a context and an ending


def read(path: Path, task: Task, renamed: Sequence[Column]) -> list[Row]:
    """Raises SettingsError with file and line."""
    rows: list[Row] = []
    for record in read_records(path, renamed):
        count = next(i for i in range(1000) if record.values.get(f"ending{i}") is None)
        if count < 2:
            record.text(f"ending{count}")
        endings = [record.text(f"ending{i}") for i in range(count)]
        start = str(record.values.get("sent2") or "").strip()
        label = str(record.value("label"))
        if label not in map(str, range(count)):
            raise SettingsError(
                f"{record.where}: label {label} is no ending; they are 0 to {count - 1}"
                + (" (-1 marks rows without an answer)" if label == "-1" else "")
            )
        if rows and len(rows[0]["choices"]) != count:
            raise SettingsError(
                f"{record.where}: has {count} endings, and {rows[0]['place']} has "
                f"{len(rows[0]['choices'])}; all rows of a task must have as many"
            )
        choices = tuple(f"{start} {ending.strip()}".strip() for ending in endings)
        rows.append(_row(record.text("sent1"), choices, label, record.where, task, len(rows)))
    return rows


def made(n: int, task: Task, rng: np.random.Generator) -> list[Row]:
    """The right ending has a friendly word, the others unfriendly ones."""
    rows: list[Row] = []
    for number, length in enumerate(LENGTHS.draw(n, rng)):
        inside = length // 2
        right = int(rng.integers(4))
        choices = []
        for i in range(4):
            own = words(max(1, length - inside - 1 + int(rng.integers(-3, 4))), rng)
            own.insert(int(rng.integers(len(own))), one_of(GOOD if i == right else BAD, rng))
            choices.append(" ".join(own))
        context = " ".join(words(inside, rng))
        rows.append(_row(context, tuple(choices), str(right), f"row {number + 1}", task, number))
    return rows


def _row(
    context: str, choices: tuple[str, ...], label: str, place: str, task: Task, number: int
) -> dict[str, Any]:
    values = (context, choices, label, place, task.name, number)
    return dict(zip(COLUMNS, values, strict=True))
