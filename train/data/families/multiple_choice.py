"""Multiple choice as SWAG: a context, a beginning, and endings of which one goes on from it.

A record has sent1, sent2, ending0, ending1, ... and label, the number of the right ending.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from train.config.task import Task
from train.config.typed import SettingsError
from train.data.families.made import BAD, GOOD, Lengths, one_of, words
from train.data.families.records import Found, read_records
from train.data.specs import Column

COLUMNS = ("context", "choices", "label")
TEMPLATE = "[TEXT:context] [TEXT:choices] -> [TEXT:label]"
METRIC = "accuracy"
LENGTHS = Lengths(median=27, spread=0.4, least=10, most=138)  # of a context and an ending


def read(path: Path, task: Task, renamed: Sequence[Column]) -> Iterator[Found]:
    """Raises SettingsError with file and line."""
    first = None
    for number, record in enumerate(read_records(path, renamed)):
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
        first = first or (count, record.where)
        if count != first[0]:
            raise SettingsError(
                f"{record.where}: has {count} endings, and {first[1]} has {first[0]}; all rows of a "
                "task must have as many"
            )
        choices = tuple(f"{start} {ending.strip()}".strip() for ending in endings)
        yield (record.text("sent1"), choices, label), record.where, number


def made(n: int, rng: np.random.Generator) -> Iterator[Found]:
    """The right ending has a friendly word, the others unfriendly ones."""
    for number, length in enumerate(LENGTHS.draw(n, rng)):
        inside = length // 2
        right = int(rng.integers(4))
        choices = []
        for i in range(4):
            own = words(max(1, length - inside - 1 + int(rng.integers(-3, 4))), rng)
            own.insert(int(rng.integers(len(own))), one_of(GOOD if i == right else BAD, rng))
            choices.append(" ".join(own))
        context = " ".join(words(inside, rng))
        yield (context, tuple(choices), str(right)), f"row {number + 1}", number
