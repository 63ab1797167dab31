"""Where a value of a composed configuration was written: file and line, or the command line.

    layers = layers_of(config.hydra)
    origin(layers, "trainer.learning_rate")     # 'scripts/base.yaml:3, included from scripts/a.yaml'

Asked only when something is wrong, so nothing is kept while composing: the `hydra` node of a configuration
says what it was composed from, Hydra lists the files of that in order, and they are read again, from the
snapshot where there is one. It serves processes that were sent their configuration as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from autocl_sweeper.yaml.snapshot import installed
from autocl_sweeper.yaml.text import INCLUDE, ReadText, line_of, parse, read_text

Keys = tuple[Any, ...]
TYPED = "the command line"


@dataclass(frozen=True)
class Layer:
    """Values of one file, or of one option of the command line, as it says them."""

    values: Mapping[str, Any]  # from the top of the configuration
    file: str = ""  # empty: the command line
    prefix: Keys = ()  # where the file's own top level stands, or the value of the option
    included_from: tuple[str, ...] = ()  # innermost last
    text: str = ""  # of the file
    written: str = TYPED  # where a value without a file was written

    def has(self, keys: Keys) -> bool:
        return _spelled(self.values, keys) is not None

    def says(self, keys: Keys) -> bool:
        """Whether the layer itself sets `keys`, or a mapping there that is not empty.

        An option of the command line below `keys` says nothing of its parents.
        """
        found = _spelled(self.values, keys)
        if found is None or (not self.file and len(found) < len(self.prefix)):
            return False
        return bool(_at(self.values, found) != {})

    def place(self, keys: Keys) -> str:
        """Where `keys` stand in this layer, which has them: 'conf/a.yaml:3'."""
        if not self.file:
            return self.written
        line = line_of(self.text, (_spelled(self.values, keys) or keys)[len(self.prefix) :])
        chain = "".join(f", included from {_short(one)}" for one in reversed(self.included_from))
        return f"{_short(self.file)}:{line}{chain}"


def _spelled(node: Any, keys: Keys) -> Keys | None:
    """The keys by which `node` has what is at `keys`: 1 for '1', 'a.b' for 'a' and 'b'."""
    if not keys:
        return ()
    if isinstance(node, list):
        found = isinstance(keys[0], int) and keys[0] < len(node)
        below = _spelled(node[keys[0]], keys[1:]) if found else None
        return None if below is None else (keys[0], *below)
    for length in range(1, len(keys) + 1) if isinstance(node, Mapping) else ():
        name = ".".join(map(str, keys[:length]))
        for key in (one for one in node if str(one) == name):
            below = _spelled(node[key], keys[length:])
            if below is not None:
                return (key, *below)
    return None


def _at(node: Any, keys: Keys) -> Any:
    for key in keys:
        node = node[key]
    return node


def layers_of(hydra: Any) -> list[Layer]:
    """The layers of the configuration with this `hydra` node, without Hydra's own; lowest first.

    Empty where Hydra is not at work: a configuration that came from elsewhere.
    """
    if not GlobalHydra.instance().is_initialized():
        return []
    loader = GlobalHydra.instance().config_loader()
    typed = [*typed_for(hydra, "hydra"), *typed_for(hydra, "task")]
    # Hydra has composed it already; in a sweep a group may have no choice yet, which RUN refuses.
    found = loader.compute_defaults_list(hydra.job.config_name, typed, RunMode.MULTIRUN)
    folders = [source.path for source in hydra.runtime.config_sources if source.schema == "file"]
    snapshot = installed()
    read = read_text if snapshot is None else snapshot.text
    is_file = os.path.isfile if snapshot is None else snapshot.is_file
    layers: list[Layer] = []
    for default in found.defaults:
        prefix = keys_of(default.package or "")
        if default.config_path is None or prefix[:1] == ("hydra",):
            continue
        for folder in folders:
            paths = _files(folder, default.config_path, is_file)
            if all(map(is_file, paths)):
                layers += [layer for path in paths for layer in _read(path, prefix, (), read)]
                break
    for override in found.config_overrides:
        keys = keys_of(override.key_or_group)
        if not override.is_delete():
            written = _of_a_space(layers, keys, override.value()) or TYPED
            layers.append(Layer(_below(keys, override.value()), prefix=keys, written=written))
    return layers


def _of_a_space(layers: Sequence[Layer], keys: Keys, value: Any) -> str | None:
    """Where a file has these keys in the search space of a sweep: its jobs get them as overrides."""
    found: list[tuple[bool, str]] = []
    for layer in layers:
        for space in _spaces(layer):
            spelled = _spelled(layer.values, (*space, *keys)) if layer.file else None
            if spelled is not None:
                found.append((_at(layer.values, spelled) == value, layer.place(spelled)))
    return max(found, key=lambda one: one[0])[1] if found else None


def _spaces(layer: Layer) -> Iterator[Keys]:
    """Where `layer` has values for the jobs of a sweep: of all tasks, and of one in a list or a space."""
    sweeper: Keys = ("hydra", "sweeper")
    yield (*sweeper, "params")
    tasks = _spelled(layer.values, (*sweeper, "task_params"))
    nodes = _at(layer.values, tasks) if tasks else {}
    for name, node in nodes.items() if isinstance(nodes, Mapping) else ():
        many = range(len(node)) if isinstance(node, list) else ()
        yield from ((*sweeper, "task_params", str(name), *one) for one in [(), *zip(many)])


def sets(layers: Sequence[Layer], dotted: str) -> bool:
    """Whether a file or an option says this very key."""
    return any(layer.has(keys_of(dotted)) for layer in layers)


def layers_of_file(path: str) -> list[Layer]:
    """A file that is read without error, with what it includes; lowest first."""
    return list(_read(path, (), (), read_text))


def typed_for(hydra: Any, whose: str = "task") -> list[str]:
    """The overrides of the app (`task`) or of Hydra (`hydra`) as typed, their `${...}` unresolved."""
    texts = OmegaConf.to_container(hydra.overrides[whose])
    assert isinstance(texts, list)
    return texts


def _files(folder: str, config_path: str, is_file: Any) -> list[str]:
    """The files of a config: its own, or those that `+` joins in its name."""

    def path(name: str) -> str:
        return os.path.join(folder, name if name.endswith(".yaml") else f"{name}.yaml")

    whole = path(config_path)
    return [whole] if is_file(whole) else [path(part) for part in config_path.split("+")]


def _read(
    path: str, prefix: Keys, chain: tuple[str, ...], read: ReadText, keys: Sequence[str] = ()
) -> Iterator[Layer]:
    """The layers of a file: what it includes, then its own. It was read without error before."""
    text = read(path)
    own = dict(parse(text))
    entries = own.pop(INCLUDE, None) or []
    for entry in [entries] if isinstance(entries, str) else entries:
        name, *selected = entry.split()
        below = os.path.normpath(os.path.join(os.path.dirname(path), name))
        wanted = [key for key in selected if not keys or key in keys] or list(keys)
        yield from _read(below, prefix, (*chain, path), read, wanted)
    own.pop("defaults", None)
    values = {key: value for key, value in own.items() if not keys or key in keys}
    yield Layer(_below(prefix, values), path, prefix, chain, text)


def _below(keys: Keys, value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def keys_of(dotted: str) -> Keys:
    """'a.b[0]' -> ('a', 'b', 0)."""
    found = re.findall(r"([^.\[\]]+)|\[(\d+)\]", dotted)
    return tuple(int(index) if index else name for name, index in found)


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
        places = range(1, length - 1)
        starred = ((*keys[:place], "*", *keys[place + 1 : length]) for place in places)
        for candidate in (keys[:length], *starred):
            for layer in reversed(layers):
                # A parent with nothing in it, as in a file of defaults, says nothing of the key.
                if layer.has(candidate) if length == len(keys) else layer.says(candidate):
                    return layer.place(candidate)
            for layer in reversed(layers):
                if not layer.file and layer.has(candidate):
                    return layer.written
    return None


def _short(path: str) -> str:
    """Relative to the working directory where it lies below that."""
    return path.removeprefix(os.path.join(os.getcwd(), ""))
