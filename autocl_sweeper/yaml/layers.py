"""YAML files that include others, and the one rule by which a layer of values goes over another.

    values = load(path)                 # a file with its `_include`d ones: a plain dict
    values = load_layers([first, ...])  # several files, later over earlier

The rules are told to users in docs/configuration.md. Everything here works on plain dicts, before
OmegaConf sees them: OmegaConf would always merge deeply, refuses a list where a mapping stood, and
lets `???` keep the old value.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from autocl_sweeper.errors import LayerError
from autocl_sweeper.yaml.repairs import forbidden, unreadable
from autocl_sweeper.yaml.text import INCLUDE, ReadText, at, parse, read_text

NAME = "_name"
DEFAULTS = "defaults"


# -- files ------------------------------------------------------------------------------------------


def load(path: str, read: ReadText = read_text) -> dict[Any, Any]:
    """What a file says with its includes, which may be shared with nobody. Raises LayerError."""
    return _load(os.path.abspath(path), read, ())


def load_layers(paths: Sequence[str], read: ReadText = read_text) -> dict[Any, Any]:
    """Several files, each with its includes, later over earlier. Raises LayerError.

    Only the first may have a `defaults:` list: Hydra reads it relative to the name of that one.
    """
    merged: dict[Any, Any] = {}
    for place, path in enumerate(os.path.abspath(path) for path in paths):
        values = _load(path, read, ())
        if place and DEFAULTS in values:
            raise LayerError(
                f"'{path}'{at(read, path, (DEFAULTS,))} has a `defaults:` list, which only the first"
                f" file of a command line may have ('{paths[0]}').\n"
                "  Hydra would look for its entries beside the first file.\n"
                f"  Choose groups on the command line (group=choice), or list the files in {INCLUDE}."
            )
        merged = merge(merged, values)
    return merged


@dataclass(frozen=True)
class _Entry:
    """One entry of a file's `_include`."""

    text: str
    file: str  # the including one
    place: str  # ', line 3'

    def __str__(self) -> str:
        return f"{INCLUDE}: '{self.text}' in '{self.file}'{self.place}"


def _load(path: str, read: ReadText, chain: tuple[_Entry, ...]) -> dict[Any, Any]:
    """`chain`: the entries that led here, outermost first."""
    own = _parsed(path, read, chain)
    if INCLUDE not in own:
        return merge({}, own)
    merged: dict[Any, Any] = {}
    for entry in _entries(own[INCLUDE], path, read, chain):
        merged = merge(merged, _included(entry, read, chain))
    return merge(merged, {key: value for key, value in own.items() if key != INCLUDE})


def _entries(value: Any, path: str, read: ReadText, chain: Sequence[_Entry]) -> list[_Entry]:
    """Every entry with the line it stands in. Raises LayerError before the first one is read."""
    listed = isinstance(value, list)
    entries = []
    for place, text in enumerate(value if listed else [] if value is None else [value]):
        line = at(read, path, (INCLUDE, place) if listed else (INCLUDE,))
        if not isinstance(text, str):
            written = json.dumps(value, default=str, ensure_ascii=False)
            raise LayerError(
                f"{INCLUDE}: {written} in '{path}'{line} is not a text or a list of texts."
                f"{_told(chain)}\n"
                f"  Each entry is a path, and keys to take from it if not all: {INCLUDE}: [base.yaml, "
                "other.yaml task model]"
            )
        entries.append(_Entry(text, path, line))
    return entries


def _included(entry: _Entry, read: ReadText, above: tuple[_Entry, ...]) -> dict[Any, Any]:
    """The finished result of one entry; `above` leads to its file."""
    name, *keys = entry.text.split() or [""]
    path = os.path.normpath(os.path.join(os.path.dirname(entry.file), name))
    if not name:
        raise LayerError(
            f"{INCLUDE} in '{entry.file}'{entry.place} has an empty entry."
            f"{_told(above)}\n  Name a file, or remove the entry."
        )
    chain = (*above, entry)
    if os.path.realpath(path) in (os.path.realpath(one.file) for one in chain):
        below = [*(one.file for one in chain[1:]), path]
        steps = (f"\n    includes '{b}'{one.place}" for one, b in zip(chain, below, strict=True))
        raise LayerError(
            f"The files include each other in a cycle:\n    '{chain[0].file}'{''.join(steps)}\n"
            f"  Remove one of these {INCLUDE} entries: what two files share goes into a third."
        )
    values = _load(path, read, chain)
    if DEFAULTS in values:
        raise LayerError(
            f"'{path}'{at(read, path, (DEFAULTS,))} has a `defaults:` list and is included."
            f"{_told(chain)}\n"
            "  Hydra would look for its entries beside the including file.\n"
            "  Move the list to the primary config, or replace it by `_include` in this file."
        )
    if not keys:
        return values
    known = {str(key): key for key in values}
    missing = [key for key in keys if key not in known]
    if missing:
        there = ", ".join(known) or "none, it is empty"
        dotted = "\n  Only whole top-level keys can be taken." if "." in missing[0] else ""
        raise LayerError(
            f"{entry} asks for {', '.join(map(repr, missing))}, which '{path}' does not have."
            f"{_told(above)}\n"
            f"  Its top-level keys are: {there}.{dotted}\n"
            "  After the path stand the keys to take, split by spaces (so no path has spaces)."
        )
    return {known[key]: values[known[key]] for key in keys}


def _parsed(path: str, read: ReadText, chain: tuple[_Entry, ...]) -> Mapping[Any, Any]:
    """The file's own values, not to be changed: they are shared with the cache."""
    try:
        text = read(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            told = f"There is no file '{path}'."
        else:
            told = f"'{path}' cannot be read: {error.strerror or error}."
        if chain:
            told += (
                f"\n  {chain[-1]}{_told(chain[:-1])}\n"
                "  A path is relative to the folder of the file it stands in, and taken as it is"
                " written:\n  ~, $VAR, ${...}, * and URLs mean nothing in it, and .yaml is not added."
            )
        raise LayerError(told) from error
    except UnicodeDecodeError as error:
        raise LayerError(unreadable(path, error) + _told(chain)) from error
    if wrong := forbidden(path, text):
        raise LayerError(wrong + _told(chain))
    try:
        return parse(text)
    except LayerError as error:
        raise LayerError(f"'{path}', {error}{_told(chain)}") from error


def _told(chain: Sequence[_Entry]) -> str:
    return "".join(f"\n  included from '{one.file}'{one.place}" for one in reversed(chain))


# -- the rule ---------------------------------------------------------------------------------------


def merge(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> dict[Any, Any]:
    """`new` over `old`, for includes, several files and `"*"` alike; shares nothing with either.

    Mappings merge key by key, everything else is replaced: lists, `null` and `???` too. Mappings
    with different `_name`s are different things: the new one stands alone. In a text over a text,
    `${key}` with the key's own name is the old text.
    """
    if NAME in old and NAME in new and old[NAME] != new[NAME]:
        return deepcopy(dict(new))
    merged = deepcopy(dict(old))
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            merged[key] = merge(before, value)
        elif isinstance(value, str) and isinstance(before, str):
            merged[key] = _spliced(str(key), before, value)
        else:
            merged[key] = deepcopy(value)
    return merged


def _spliced(key: str, before: str, text: str) -> str:
    own = "${" + key + "}"
    if own not in text:
        return text
    # Behind an odd number of backslashes ${ is literal.
    pattern = r"(?<!\\)((?:\\\\)*)" + re.escape(own)
    return re.sub(pattern, lambda match: match[1] + before, text)


# -- what the files go over ----------------


def below_files(
    config_name: str, chosen: Sequence[str], groups: Collection[str], read: ReadText = read_text
) -> list[str]:
    """Choices of a command line that its YAML files go over, one sentence each.

    config_name: Hydra's, several files joined by `+`; chosen: overrides as typed; groups: config groups
    in use. Hydra puts files after groups, so that `model=tiny` does not change what they say of `model`.
    """
    told = []
    files = [part for part in config_name.split("+")[1:] if os.path.isabs(part)]
    for text in chosen:
        group, equals, _ = text.lstrip("+").partition("=")
        for path in files if equals and group in groups else ():
            node: Any = load(path, read)
            for key in group.split("/"):
                node = node.get(key) if isinstance(node, Mapping) else None
            if node is not None:
                keys = ", ".join(map(str, node)) if isinstance(node, Mapping) else "itself"
                told.append(
                    f"{text} chooses a group, and '{path}' goes over it with what it says of"
                    f" {group.replace('/', '.')} ({keys}); to set one key from here: "
                    f"{group.replace('/', '.')}.<key>=<value>"
                )
    return told
