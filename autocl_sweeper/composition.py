"""Composing the jobs of a sweep: what Hydra's own composition gives, in a tenth of the time.

Hydra composes in two steps. Which files it reads and how it merges them depends on the choices among
files (`task=boolqa`); then it sets values (`trainer.learning_rate=3e-4`). The first step takes nearly all
of the time and comes out the same for all jobs that differ in values alone, so it is remembered.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import unwrap
from types import FunctionType
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser

from autocl_sweeper.errors import LayerError
from autocl_sweeper.layers import INCLUDE, load_layers, read_text

Stamp = tuple[int, int, int]  # of a file: inode, time of its last change in ns, size in bytes


def remembering(config_loader: Any) -> Any:
    """The same loader with a memory, for use in one thread. Its answers are Hydra's.

    A loader that is not exactly Hydra's own comes back as it is, and so it does where an app has
    wrapped Hydra's composition: what it adds belongs to the answer. Its wrapper can say how to wrap
    ours too, in an attribute `around`: Hydra's function -> the wrapped one.
    """
    implementation = ConfigLoaderImpl._load_configuration_impl
    inner = getattr(implementation, "__wrapped__", None)
    # One wrapper that says so; one more around it would have taken over its attributes.
    known = inner is None or (hasattr(implementation, "around") and inner is _IMPLEMENTATION)
    own = type(config_loader) is ConfigLoaderImpl and known
    return _Loader(config_loader) if own else config_loader


@dataclass(frozen=True)
class _Layout:
    """What a composition is before values are set."""

    repository: Any
    defaults: Any  # Hydra's DefaultsList
    setting: frozenset[int]  # which of the choosing overrides also set a value
    new: Callable[[], Any]  # makes a configuration to set values in
    files: dict[str, Stamp | None]

    def is_current(self) -> bool:
        return all(_stamp(path) == stamp for path, stamp in self.files.items())


@dataclass
class _Composition:
    """One that is going on. Its layout is remembered, or else found by Hydra meanwhile."""

    repository: Any
    key: Any
    choosing: Sequence[Any]  # the overrides that the layout depends on
    layout: _Layout | None
    defaults: Any = None


class _Loader(ConfigLoaderImpl):
    def __init__(self, like: ConfigLoaderImpl) -> None:
        self.__dict__.update(like.__dict__)
        self._layouts: dict[Any, _Layout] = {}
        self._choices: dict[Any, dict[Any, bool]] = {}  # key of an override -> is it a choice?
        self._now: _Composition | None = None

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str], parsed_overrides: Any = None
    ) -> Any:
        search = super()._parse_overrides_and_create_caching_repo
        if parsed_overrides is None and hasattr(ConfigLoaderImpl, "parse_overrides"):
            return search(config_name, overrides)  # Hydra 1.4 asks for something else
        more = () if parsed_overrides is None else (parsed_overrides,)
        parsed = parsed_overrides or OverridesParser.create().parse_overrides(overrides)
        repository = None
        # Where configurations are searched decides what is a choice.
        place = (config_name, *(text for text in overrides if "searchpath" in text))
        choices = self._choices.setdefault(place, {})
        if not choices.keys() >= {_key(override) for override in parsed}:
            parsed, repository = search(config_name, overrides, *more)
            choices |= {_key(o): _chooses(o, repository) for o in parsed}
        choosing = [override for override in parsed if choices[_key(override)]]
        key = (place, *(override.input_line for override in choosing))
        layout = self._layouts.get(key)
        if layout is not None and layout.is_current():
            repository = layout.repository
        else:
            layout = None
            if repository is None:
                parsed, repository = search(config_name, overrides, *more)
                choosing = [override for override in parsed if choices[_key(override)]]
        self._now = _Composition(repository, key, choosing, layout)
        return parsed, repository

    def _defaults_list(self, **arguments: Any) -> Any:
        now = self._now
        if now is None or arguments["repo"] is not now.repository:
            return _IMPLEMENTATION.__globals__["create_defaults_list"](**arguments)
        if now.layout is None:
            now.defaults = _IMPLEMENTATION.__globals__["create_defaults_list"](**arguments)
            return now.defaults
        others = {id(o) for i, o in enumerate(now.choosing) if i not in now.layout.setting}
        setting = [
            override
            for override in arguments["overrides_list"]
            if id(override) not in others and not override.is_sweep_override()
        ]
        return replace(now.layout.defaults, config_overrides=setting)

    def _compose_config_from_defaults_list(self, defaults: Any, repo: Any) -> Any:
        now, self._now = self._now, None
        if now is None or repo is not now.repository:
            return super()._compose_config_from_defaults_list(defaults=defaults, repo=repo)
        if now.layout is not None:
            return now.layout.new()
        composed = super()._compose_config_from_defaults_list(defaults=defaults, repo=repo)
        files = _files(repo)
        if files is not None:
            sets = {id(override) for override in now.defaults.config_overrides}
            self._layouts[now.key] = _Layout(
                repo,
                now.defaults,
                frozenset(i for i, override in enumerate(now.choosing) if id(override) in sets),
                _copies(composed),
                files,
            )
        return composed

    def _load_configuration_impl(self, *args: Any, **kwargs: Any) -> Any:
        # Hydra's own method, with a memory in place of the one function it calls by name.
        names = {**_IMPLEMENTATION.__globals__, "create_defaults_list": self._defaults_list}
        own: Any = FunctionType(
            _IMPLEMENTATION.__code__, names, argdefs=_IMPLEMENTATION.__defaults__
        )
        around = getattr(ConfigLoaderImpl._load_configuration_impl, "around", None)
        return (around(own) if around else own)(self, *args, **kwargs)


_IMPLEMENTATION: Any = unwrap(ConfigLoaderImpl._load_configuration_impl)


def _key(override: Any) -> tuple[Any, ...]:
    return (override.key_or_group, override.package, getattr(override, "is_value_path", None))


def _chooses(override: Any, repository: Any) -> bool:
    """Whether an override may choose among configurations, as `Overrides` of Hydra sees it."""
    name = override.key_or_group
    return bool(override.package or repository.group_exists(name) or repository.config_exists(name))


def _files(repository: Any) -> dict[str, Stamp | None] | None:
    """The files that were read; None where what was read may differ next time."""
    files: dict[str, Stamp | None] = {}
    for key, result in repository.cache.items():
        if result is None:
            continue
        if any("${" in str(item) and ":" in str(item) for item in result.defaults_list):
            return None  # a resolver chooses: the environment, or whatever the app registered
        scheme, _, folder = result.path.partition("://")
        if scheme == "file":
            try:
                files |= {path: _stamp(path) for path in _read(folder, key.partition("=")[2])}
            except (OSError, UnicodeDecodeError, LayerError):  # changed meanwhile
                return None
        elif scheme not in ("pkg", "structured"):
            return None
    return files


def _read(folder: str, name: str) -> list[str]:
    """The files of a configuration below `folder`: its own, those joined by `+`, those included."""
    paths = [os.path.join(folder, name if _is_yaml(name) else f"{name}.yaml")]
    if "+" in name and not os.path.isfile(paths[0]):
        parts = name.split("+")
        paths = [os.path.join(folder, part if _is_yaml(part) else f"{part}.yaml") for part in parts]
    read: list[str] = []

    def reading(path: str) -> str:
        read.append(path)
        return read_text(path)

    if len(paths) > 1 or INCLUDE in read_text(paths[0]):
        load_layers(paths, reading)
    return [*paths, *read]


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _copies(config: Any) -> Callable[[], Any]:
    """Makes copies of a configuration, by pickle: four times as fast as copying it in depth."""
    classes: list[type] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> int | None:
            # Hydra 1.3 executes the modules of plugins again: no import finds these classes.
            if not isinstance(item, type):
                return None
            classes.append(item)
            return len(classes) - 1

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, place: int) -> type:
            return classes[place]

    buffer = io.BytesIO()
    try:
        Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(config)
    except Exception:  # a value of the app's own that cannot be pickled
        original = copy.deepcopy(config)
        return lambda: copy.deepcopy(original)
    data = buffer.getvalue()
    return lambda: Unpickler(io.BytesIO(data)).load()
