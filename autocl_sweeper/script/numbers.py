"""Numbers in what a command prints, and in files it leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ABSENT = object()


class NoNumberError(Exception):
    """A number is not where the configuration says; the text says where it was looked for."""


@dataclass(frozen=True)
class Source:
    """Where one number stands; its texts have no placeholders any more."""

    name: str  # script.score
    file: str | None  # below the job's folder; None: the output
    key: str | None
    regex: str | None

    def last_in(self, line: str) -> Any:
        """What a line says of this number, or any text where it is a regex; ABSENT: nothing."""
        if self.regex is not None:
            found = [match[1] for match in re.finditer(self.regex, line, re.MULTILINE)]
            return found[-1] if found else ABSENT
        assert self.key is not None
        return value_at(json_object(line), self.key)

    def in_file(self, folder: Path) -> float:
        """The number in the file. Raises NoNumberError."""
        assert self.file is not None
        path = folder / self.file
        try:
            text = path.read_text("utf-8", "replace")
        except OSError as error:
            raise NoNumberError(
                f"{self.name}: the file {path} cannot be read: {error.strerror}"
            ) from error
        if self.regex is not None:
            found = self.last_in(text)
        elif path.suffix == ".jsonl":
            lines = map(self.last_in, reversed(text.splitlines()))
            found = next((value for value in lines if value is not ABSENT), ABSENT)
        else:
            assert self.key is not None
            try:
                found = value_at(json.loads(text), self.key)
            except ValueError as error:
                raise NoNumberError(f"{self.name}: {path} is no JSON: {error}") from error
        return self.number(found)

    def number(self, found: Any) -> float:
        """What was found, as a number. Raises NoNumberError."""
        if found is ABSENT or found is None:
            raise NoNumberError(f"{self.name} was not found: {self.where}")
        try:
            if isinstance(found, bool | list | dict):
                raise ValueError
            return float(found)
        except ValueError:
            raise NoNumberError(f"{self.name} is {found!r}, not a number: {self.where}") from None

    @property
    def where(self) -> str:
        """What is searched, and where, in words."""
        if self.regex is not None:
            place = "in the output, line by line" if self.file is None else f"in {self.file}"
            return f"the last match of the regular expression {self.regex!r} {place}"
        if self.file is not None and not self.file.endswith(".jsonl"):
            return f"the key {self.key!r} in {self.file}"
        place = "the output" if self.file is None else self.file
        return f"the last line of {place} that is a JSON object with the key {self.key!r}"


class Listener:
    """Keeps of an output what its sources ask for, and its last lines."""

    LONGEST_LINE = 1 << 20  # bytes; of a longer line only the end counts

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources
        self._found: dict[str, Any] = {}
        self._rest = b""
        self.lines = 0

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-self.LONGEST_LINE :]
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """The output is over: what stands behind its last newline is a line too."""
        if self._rest:
            self._line(self._rest)
        self._rest = b""

    def _line(self, data: bytes) -> None:
        self.lines += 1
        text = data.decode("utf-8", "replace")
        for source in self._sources:
            found = source.last_in(text)
            if found is not ABSENT:
                self._found[source.name] = found

    def number(self, source: Source) -> float:
        """Raises NoNumberError."""
        try:
            return source.number(self._found.get(source.name, ABSENT))
        except NoNumberError as error:
            raise NoNumberError(f"{error} ({self.lines} lines)") from None


def json_object(line: str) -> Any:
    """The JSON object that a line is, behind its last carriage return; ABSENT: it is none."""
    text = line.rpartition("\r")[2].strip() or line.strip()
    if not (text.startswith("{") and text.endswith("}")):
        return ABSENT
    try:
        return json.loads(text)
    except ValueError:
        return ABSENT


def value_at(tree: Any, path: str) -> Any:
    """What lies at a path of keys and list places; a key may have dots itself. ABSENT: nothing."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):  # the whole path as one key first
        head, tail = ".".join(parts[:length]), ".".join(parts[length:])
        found: Any = ABSENT
        if isinstance(tree, Mapping):
            found = tree.get(head, ABSENT)
        elif isinstance(tree, list) and re.fullmatch(r"-?\d+", head):
            place = int(head)
            found = tree[place] if -len(tree) <= place < len(tree) else ABSENT
        if found is not ABSENT and tail:
            found = value_at(found, tail)
        if found is not ABSENT:
            return found
    return ABSENT
