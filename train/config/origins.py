"""Where a value of the configuration came from: file and line, or the command line.

Only asked when something is wrong, or to warn: Hydra's own composition is repeated up to the list of
its files, and these are read again with their includes and line marks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.types import RunMode

from autocl_sweeper.yaml.text import INCLUDE, line_of, parse, read_text

Keys = tuple[Any, ...]
COMMAND_LINE = "the command line"


@dataclass(frozen=True)
class Layer:
    """Values of one file, or of one option of the command line, as it says them."""

    values: Mapping[str, Any]  # from the top of the configuration
    file: str = ""  # empty: the command line
    prefix: Keys = ()  # where the file's own top level stands in the configuration
    included_from: tuple[str, ...] = ()  # innermost last

    def at(self, keys: Keys) -> Any:
        """The value at `keys`, which the layer has."""
        node: Any = self.values
        for key in keys:
            node = node[key]
        return node

    def has(self, keys: Keys) -> bool:
        node: Any = self.values
        for key in keys:
            if isinstance(node, list):
                there = isinstance(key, int) and key < len(node)
            else:
                there = isinstance(node, Mapping) and key in node
            if not there:
                return False
            node = node[key]
        return True

    def place(self, keys: Keys) -> str:
        """Where `keys` stand in this layer, which has them: 'conf/a.yaml:3'."""
        if not self.file:
            return COMMAND_LINE
        line = line_of(read_text(self.file), keys[len(self.prefix) :])
        chain = "".join(f", included from {_short(one)}" for one in reversed(self.included_from))
        return f"{_short(self.file)}:{line or 1}{chain}"


@dataclass(frozen=True)
class Composition:
    """What was composed: all there is to ask for its layers."""

    loader: ConfigLoaderImpl
    config_name: str | None
    overrides: Sequence[str]
    run_mode: RunMode

    def layers(self) -> list[Layer]:
        """Lowest first: a later one goes over an earlier one."""
        loader = self.loader
        parsed, repo = loader._parse_overrides_and_create_caching_repo(
            self.config_name, list(self.overrides)
        )
        found = create_defaults_list(
            repo=repo,
            config_name=self.config_name,
            overrides_list=parsed,
            prepend_hydra=True,
            skip_missing=self.run_mode == RunMode.MULTIRUN,
        )
        layers: list[Layer] = []
        for default in found.defaults:
            if default.config_path is None:
                continue
            result = repo.load_config(default.config_path)
            if result is None or not result.path.startswith("file://"):
                continue
            package = default.package if default.package is not None else result.header["package"]
            prefix = tuple(package.split(".")) if package and package != "_global_" else ()
            if prefix[:1] == ("hydra",):
                continue
            home = result.path.removeprefix("file://")
            for path in _files(home, default.config_path):
                layers += _read(path, prefix, ())
        for override in found.config_overrides:
            if override.is_delete() or override.key_or_group.split(".")[0] == "hydra":
                continue
            value = None if override.is_sweep_override() else override.value()
            keys = keys_of(override.key_or_group)
            layers.append(Layer(_below(keys, value)))
        return layers


def _files(home: str, config_path: str) -> list[str]:
    def path(name: str) -> str:
        return os.path.join(home, name if name.endswith(".yaml") else f"{name}.yaml")

    whole = path(config_path)
    return [whole] if os.path.isfile(whole) else [path(part) for part in config_path.split("+")]


def _read(
    path: str, prefix: Keys, chain: tuple[str, ...], keys: Sequence[str] = ()
) -> Iterator[Layer]:
    """The layers of a file: what it includes, then its own. It was read without error before."""
    own = dict(parse(read_text(path)))
    entries = own.pop(INCLUDE, None) or []
    for entry in [entries] if isinstance(entries, str) else entries:
        name, *selected = entry.split()
        below = os.path.normpath(os.path.join(os.path.dirname(path), name))
        wanted = [key for key in selected if not keys or key in keys] or list(keys)
        yield from _read(below, prefix, (*chain, path), wanted)
    own.pop("defaults", None)
    values = {key: value for key, value in own.items() if not keys or key in keys}
    yield Layer(_below(prefix, values), path, prefix, chain)


def _below(keys: Keys, value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def keys_of(dotted: str) -> Keys:
    """'a.b[0]' -> ('a', 'b', 0)."""
    found = re.findall(r"([^.\[\]]+)|\[(\d+)\]", dotted)
    return tuple(int(index) if index else name for name, index in found)


def dotted(keys: Keys) -> str:
    """As `keys_of` reads it."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def origin(layers: Sequence[Layer], dotted: str, others: Sequence[str] = ()) -> str | None:
    """Where the value at a key comes from: the last layer that says it, or its nearest parent.

    `others`: other names of the same value. What a star gave is found at the star. None where no
    layer says anything about it.
    """
    keys = keys_of(dotted)
    if not any(layer.has(keys) for layer in layers):
        for other in map(keys_of, others):
            for layer in reversed(layers):
                if layer.has(other):
                    return f"{layer.place(other)}, as {'.'.join(map(str, other))}"
    for length in range(len(keys), 0, -1):
        candidates = [keys[:length], *_starred(keys[:length])]
        for candidate in candidates:
            for layer in reversed(layers):
                # A parent with nothing in it, as in a file of defaults, says nothing of the key.
                if layer.has(candidate) and (length == len(keys) or layer.at(candidate) != {}):
                    return layer.place(candidate)
    return None


def _starred(keys: Keys) -> Iterator[Keys]:
    for place in range(1, len(keys) - 1):
        yield (*keys[:place], "*", *keys[place + 1 :])


def _short(path: str) -> str:
    """Relative to the working directory where it lies below that."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
