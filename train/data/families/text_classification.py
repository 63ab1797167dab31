"""Text classification as GLUE: one text or a pair of them, and a label.

A record has sentence, sentence1 and sentence2, question1 and question2, premise and hypothesis, question and
sentence, or text and pair; and label (or is_duplicate).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.config.task import Task
from train.config.typed import SettingsError
from train.data.families.made import BAD, GOOD, Lengths, one_of, words
from train.data.families.records import Found, Record, read_records
from train.data.specs import Column

COLUMNS = ("text", "pair", "label")
TEMPLATE = "[TEXT:text] [TEXT:pair] -> [TEXT:label]"
METRIC = "accuracy"
LENGTHS = Lengths(median=28, spread=0.5, least=8, most=328)  # of both texts
TEXTS = (
    ("text", "pair"), ("text",), ("sentence1", "sentence2"), ("question1", "question2"),
    ("premise", "hypothesis"), ("question", "sentence"), ("sentence",),
)  # fmt: skip


def read(path: Path, task: Task, renamed: Sequence[Column]) -> Iterator[Found]:
    """Raises SettingsError with file and line."""
    records = read_records(path, renamed)
    first = records[0].values
    names = next((some for some in TEXTS if all(n in first for n in some)), None)
    if names is None:
        raise SettingsError(
            f"{records[0].where}: has the columns {', '.join(map(str, first))}, and none of "
            f"{'; '.join(' and '.join(some) for some in TEXTS)}. "
            "dataset.selected_cols='<column>:text,<column>:pair' names those to read"
        )
    key = "is_duplicate" if "label" not in first and "is_duplicate" in first else "label"
    for number, record in enumerate(records):
        text, *pair = (record.text(name) for name in names)
        yield (text, pair[0] if pair else "", _label(record, key)), record.where, number


def _label(record: Record, key: str) -> str:
    label: Any = record.value(key)
    if isinstance(label, float) or not isinstance(label, (str, int)) or not str(label).strip():
        raise SettingsError(
            f"{record.where}: {key} {label!r} must be a text or a whole number: this class chooses one "
            "of several labels (a score, as STS-B has, is none)"
        )
    if str(label) == "-1":
        raise SettingsError(
            f"{record.where}: {key} -1 marks rows without an answer; leave them out"
        )
    return str(label)


def made(n: int, rng: np.random.Generator) -> Iterator[Found]:
    """A pair of texts; every fifth word of the second is friendly (label 1) or unfriendly (0)."""
    for number, length in enumerate(LENGTHS.draw(n, rng)):
        label = int(rng.integers(2))
        own = words(length - length // 2, rng)
        own[::5] = [one_of(GOOD if label else BAD, rng) for _ in own[::5]]
        text = " ".join(words(length // 2, rng))
        yield (text, " ".join(own), str(label)), f"row {number + 1}", number
