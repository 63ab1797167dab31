"""Rows of text tables: one mapping per line, by the columns that are asked for."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.data.specs import Column

Row = Mapping[str, Any]


class DataError(RuntimeError):
    """Data that cannot be read, or must not be used as it is."""


def check_table(path: Path, selected: Sequence[Column], separator: str, header: bool) -> None:
    """Read the first row. Raises DataError where it cannot be read, or there is none."""
    if next(read_table(path, selected, separator, header), None) is None:
        raise DataError(
            f"{path} has no rows" + (", only its header" if header and path.stat().st_size else "")
        )


def read_table(
    path: Path, selected: Sequence[Column], separator: str, header: bool
) -> Iterator[Row]:
    """The selected columns of a text table, one mapping per line, values as text. Raises DataError."""
    lines = _lines(path, separator)
    names = next(lines, (0, []))[1] if header else []
    if header and not names:
        return
    places = [_place(path, column, names, header) for column in selected]
    for number, line in lines:
        if not line:
            continue
        if max(places) >= len(line):
            wanted = selected[places.index(max(places))]
            raise DataError(
                f"{path}, line {number}: {len(line)} columns, but column {wanted.column} "
                f"(slot '{wanted.name}') is wanted; check dataset.separator={separator!r} and "
                "dataset.selected_cols (columns count from 0)"
            )
        yield {c.name: line[place] for c, place in zip(selected, places, strict=True)}


def table_of(lines: Iterable[str], separator: str) -> Any:
    """A reader of csv; quotes mean something only where the separator is not a tab."""
    if separator == "\t":
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=separator, strict=True)


def _lines(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from enumerate(table_of(file, separator), start=1)
    except UnicodeDecodeError as error:
        raise DataError(
            f"data file {path} (from {Path.cwd()}) is not UTF-8 text: {error.reason}. Save it as UTF-8:"
            f" iconv -f <its encoding> -t utf-8 {path}"
        ) from error
    except (OSError, csv.Error, TypeError) as error:
        raise DataError(
            f"data file {path} (from {Path.cwd()}): {error}. Paths are relative to the working "
            f"directory; the separator is dataset.separator={separator!r}"
        ) from error


def _place(path: Path, column: Column, names: Sequence[str], header: bool) -> int:
    if column.column in names:
        return names.index(column.column)
    if column.column.isdecimal():
        return int(column.column)
    known = f"its header has {', '.join(names)}"
    hint = known if header else "set dataset.header=true to use names"
    raise DataError(f"{path} has no column '{column.column}': {hint}")
