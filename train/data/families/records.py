"""Records of a file, each with its place, and what several classes of tasks want of one."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config.typed import SettingsError
from train.data.specs import Column
from train.data.tables import table_of

Found = tuple[tuple[Any, ...], str, Any]  # a row's own columns, its place, its number or id
ENDINGS = (".json", ".jsonl", ".csv", ".tsv")
SPACE = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Record:
    """One record of a file: its values by the names of columns."""

    values: Mapping[str, Any]
    where: str  # file and line

    def value(self, name: str) -> Any:
        """Raises SettingsError where there is none."""
        if self.values.get(name) is None:
            raise SettingsError(
                f"{self.where}: has no '{name}'; there are {', '.join(map(str, self.values))}. "
                f"dataset.selected_cols='<column>:{name}' names the column it is in"
            )
        return self.values[name]

    def text(self, name: str) -> str:
        """Raises SettingsError where it is missing, no text, or empty."""
        value = self.value(name)
        if not isinstance(value, str) or not value.strip():
            raise SettingsError(
                f"{self.where}: '{name}' must be a text that is not empty, not {value!r}"
            )
        return value


def read_records(path: Path, renamed: Sequence[Column] = ()) -> list[Record]:
    """The records of a JSON list, of JSON lines, or of a table whose first line names its columns.

    renamed: columns that get another name. Raises SettingsError.
    """
    if path.suffix not in ENDINGS:
        raise SettingsError(
            f"{path}: ends in '{path.suffix}'; files of this class end in {', '.join(ENDINGS)}"
        )
    text = text_of(path)
    found = list({".json": _json, ".jsonl": _lines}.get(path.suffix, _table)(text, path))
    if not found:
        raise SettingsError(f"{path}: has no rows")
    new = {column.name: column.column for column in renamed}
    if missing := [old for old in new.values() if old not in found[0].values]:
        raise SettingsError(
            f"{found[0].where}: has no column '{missing[0]}', which dataset.selected_cols names; there "
            f"are {', '.join(map(str, found[0].values))}"
        )
    return [
        Record({**one.values, **{k: one.values.get(old) for k, old in new.items()}}, one.where)
        for one in found
    ]


def text_of(path: Path) -> str:
    """Raises SettingsError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def json_of(text: str, path: Path, first: int = 1) -> Any:
    """first: the line of the file that `text` begins at. Raises SettingsError with the line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first + error.lineno - 1
        raise SettingsError(f"{path}, line {line}: is no JSON: {error.msg}") from error


def line_of(text: str, pattern: str, after: str = "") -> int:
    """The line of the first match behind the text `after`, from 1; for messages."""
    found = re.compile(pattern).search(text, max(0, text.find(after)))
    return text.count("\n", 0, found.start() if found else 0) + 1


def _json(text: str, path: Path) -> Iterator[Record]:
    """The objects of a list, read one by one so that the line of each is known."""
    start = re.match(r'\s*(\{\s*"data"\s*:\s*)?\[', text)
    if start is None:
        json_of(text, path)
        raise SettingsError(f"{path}, line 1: must be a list of objects, or one below 'data'")
    decoder, at, line, counted = json.JSONDecoder(), start.end(), 1, 0
    while True:
        space = SPACE.match(text, at)
        assert space is not None  # it may be empty
        line, counted = line + text.count("\n", counted, space.end()), space.end()
        if text[counted : counted + 1] == "]":
            return
        try:
            value, at = decoder.raw_decode(text, counted)
        except json.JSONDecodeError as error:
            raise SettingsError(f"{path}, line {error.lineno}: is no JSON: {error.msg}") from error
        yield _record(value, f"{path}, line {line}")


def _lines(text: str, path: Path) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _record(json_of(line, path, number), f"{path}, line {number}")


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, Mapping):
        raise SettingsError(f"{where}: must be an object with columns, not {str(value)[:60]}")
    return Record(value, where)


def _table(text: str, path: Path) -> Iterator[Record]:
    table = table_of(text.splitlines(keepends=True), "\t" if path.suffix == ".tsv" else ",")
    names: list[str] = next(table, [])
    try:
        for values in table:
            where = f"{path}, line {table.line_num}"
            if values and len(values) != len(names):
                raise SettingsError(
                    f"{where}: has {len(values)} columns, and the first line names {len(names)}: "
                    f"{', '.join(names)}"
                )
            if values:
                yield Record(dict(zip(names, values, strict=True)), where)
    except csv.Error as error:
        raise SettingsError(f"{path}, line {table.line_num}: {error}") from error
