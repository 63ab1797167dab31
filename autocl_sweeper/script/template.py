"""Placeholders in a command: `{lr}` is a value, `{{lr}}` the text {lr}, all other braces are themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

PLACEHOLDER = re.compile(r"\{\{([A-Za-z_][\w.]*)\}\}|\{([A-Za-z_][\w.]*)\}")
SPREAD = re.compile(r"\{\*([A-Za-z_][\w.]*)\}")  # a whole word: one word per item of a list


def names_in(text: str) -> Iterator[str]:
    """The placeholders of a text."""
    spread = SPREAD.fullmatch(text)
    if spread:
        yield spread[1]
    yield from (match[2] for match in PLACEHOLDER.finditer(text) if match[2])


def filled(text: str, values: Mapping[str, Any], quote: Callable[[str], str] = str) -> str:
    """The text with the values of its placeholders, each passed through `quote`."""

    def value_of(match: re.Match[str]) -> str:
        return f"{{{match[1]}}}" if match[1] else quote(as_text(values[match[2]]))

    return PLACEHOLDER.sub(value_of, text)


def argv(command: Sequence[str | Sequence[str]], values: Mapping[str, Any]) -> list[str]:
    """The words of a command; a group is left out where one of its placeholders is null."""
    words: list[str] = []
    for entry in command:
        group = [entry] if isinstance(entry, str) else entry
        used = [name for text in group for name in names_in(text)]
        if not isinstance(entry, str) and any(values[name] is None for name in used):
            continue
        for text in group:
            spread = SPREAD.fullmatch(text)
            if spread and isinstance(values[spread[1]], list | tuple):
                words += [as_text(item) for item in values[spread[1]]]
            else:
                words.append(as_text(values[spread[1]]) if spread else filled(text, values))
    return words


def as_text(value: Any) -> str:
    """A value as a word of a command: floats with all their digits, lists with commas."""
    if isinstance(value, list | tuple):
        return ",".join(map(as_text, value))
    return repr(value) if isinstance(value, float) else str(value)
