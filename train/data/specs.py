r"""Data strings: which files a task reads in which epoch, which columns, how much of each.

    train_data: "a_[1-3].tsv ||| b.tsv,c.tsv"      two sources that are mixed; files of one take turns
    selected_cols: "0:uid,image,2:label"           column index or header name : slot name
    sample_ratios: [1, 0.5]                        rows of a source = int(rows * ratio); 0: none

Paths are local; nothing is evaluated, only read. Standard library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from train.data.instruction import SEPARATOR

Source = tuple[str, ...]  # files of one source, in turn one per epoch


class DataSpecError(ValueError):
    """A data string that cannot be read; the message says the value, the rule and the repair."""


@dataclass(frozen=True)
class Column:
    """One column to read: by index (counted from 0) or header name, under the slot name."""

    column: str
    name: str


@dataclass(frozen=True)
class DataPlan:
    """Files a task is read from; without any its class generates the rows."""

    train: tuple[Source, ...] = ()
    dev: tuple[Source, ...] = ()
    test: tuple[Source, ...] = ()
    columns: tuple[Column, ...] = ()
    ratios: tuple[float, ...] = ()  # of the sources of train


def sources(text: str | Sequence[str] | None) -> tuple[Source, ...]:
    """The sources of a data string: ` ||| ` or a list divides them, `,` the files of one source.

    `x_[1-3]` stands for three files; leading zeros are kept (`[08-10]`: 08, 09, 10). Null and the
    empty text mean no data. Raises DataSpecError.
    """
    if text is None or (isinstance(text, str) and not text.strip()):
        return ()
    texts = [text] if isinstance(text, str) else list(text)
    found: list[Source] = []
    for source in (part for one in texts for part in SEPARATOR.split(one.strip())):
        paths = [path.strip() for path in source.split(",")]
        if not all(paths):
            raise DataSpecError(
                f"data {text!r}: the source {source!r} has an empty path; remove the ',' or '|||' too many"
            )
        found.append(tuple(file for path in paths for file in expand(path)))
    return tuple(found)


def expand(path: str) -> list[str]:
    """The files `x_[1-3]` stands for; any other path stands for itself."""
    if "://" in path:
        raise DataSpecError(f"data path {path!r}: only local paths are read; copy the file first")
    if "[" not in path and "]" not in path:
        return [path]
    found = re.fullmatch(r"([^\[\]]*)\[([0-9]+)-([0-9]+)\]([^\[\]]*)", path)
    if not found:
        raise DataSpecError(
            f"data path {path!r}: one bracket per path, written [FIRST-LAST] with whole numbers, "
            "such as part_[1-3].tsv"
        )
    before, first, last, after = found.groups()
    if int(first) > int(last):
        raise DataSpecError(f"data path {path!r}: the range is empty; the first number comes first")
    width = len(first) if first.startswith("0") else 0
    return [f"{before}{n:0{width}}{after}" for n in range(int(first), int(last) + 1)]


def columns(text: str | None) -> tuple[Column, ...]:
    """The columns of a `selected_cols` string. Raises DataSpecError."""
    if text is None:
        raise DataSpecError(
            "dataset.selected_cols is not set, but data is read from files: "
            'name the columns and their slots, such as "0:text,1:label"'
        )
    found: list[Column] = []
    for part in str(text).split(","):
        column, colon, name = (piece.strip() for piece in part.partition(":"))
        name = name if colon else column
        if not column or not name or ":" in name:
            raise DataSpecError(
                f"dataset.selected_cols={text!r}: {part!r} must be a column, or column:slot"
            )
        twice = [f"column {column}" for other in found if other.column == column]
        twice += [f"slot {name}" for other in found if other.name == name]
        if twice:
            raise DataSpecError(
                f"dataset.selected_cols={text!r}: {twice[0]} twice; "
                "a slot may stand in a template twice, so once is enough"
            )
        found.append(Column(column, name))
    return tuple(found)


def ratios(value: float | str | Sequence[float], n_sources: int) -> tuple[float, ...]:
    """One ratio per source. A number counts for the only source; text is parsed, never evaluated."""
    key = f"dataset.sample_ratios={value!r}"
    text = value.strip() if isinstance(value, str) else ""
    given: Any = text[1:-1].split(",") if text[:1] + text[-1:] in ("[]", "()") else value
    several = not isinstance(given, (int, float, str))
    try:
        numbers = [float(one) for one in (given if several else [given])]
    except ValueError as error:
        raise DataSpecError(f"{key}: must be a number or a list of numbers") from error
    if any(not (n >= 0 and math.isfinite(n)) for n in numbers) or not any(numbers):
        raise DataSpecError(f"{key}: a ratio must be a finite number, 0 or more, and one above 0")
    # The default, 1, means all rows of however many sources.
    if not several and numbers == [1.0]:
        return (1.0,) * n_sources
    if len(numbers) != n_sources:
        raise DataSpecError(
            f"{key}: {len(numbers)} given for {n_sources} sources of train_data; "
            "give a list with one ratio per source"
        )
    return tuple(numbers)


def shard(rows: int, rank: int, world: int) -> tuple[int, int]:
    """[start, end) of a rank's contiguous part; the first `rows % world` are one row longer."""
    size, longer = divmod(rows, world)
    start = rank * size + min(rank, longer)
    return start, start + size + (rank < longer)


def mix(
    rows: Sequence[int], sample_ratios: Sequence[float], interleaved: bool
) -> list[tuple[int, int]]:
    """Index of the source, and row in it, of each row of the mixture: heads first, then repeated.

    Concatenated, or interleaved in proportion: the k-th of n rows of a source stands at (k + 1/2) / n
    of the way, and where two stand alike the earlier source comes first.
    """
    counts = [int(n * ratio) for n, ratio in zip(rows, sample_ratios, strict=True)]
    mixed = [(s, k) for s, n in enumerate(counts) for k in range(n)]
    if interleaved:
        mixed.sort(key=lambda one: ((2 * one[1] + 1) / (2 * counts[one[0]]), one[0]))
    return [(s, k % rows[s]) for s, k in mixed]
