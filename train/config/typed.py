"""Typed values from plain mappings: what a config section may hold, and what is wrong with one.

A section is a frozen dataclass whose fields are made with `option`. `build` reports all mistakes of
a section at once, each with key, value, rule and the nearest known key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Section = TypeVar("Section")


class SettingsError(ValueError):
    """A setting the app cannot work with; the message names key, value, rule and remedy."""


@dataclass(frozen=True)
class Problem:
    """One mistake: the dotted key it is at, and what is wrong in words that do not name the file."""

    key: str
    message: str


class SettingsErrors(SettingsError):
    """All mistakes of a configuration."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problem.message for problem in self.problems))


def problems_of(error: Exception, otherwise: str = "") -> tuple[Problem, ...]:
    """The mistakes of an error, each at the key its message begins with."""
    if isinstance(error, SettingsErrors):
        return error.problems
    found = re.match(r"[\w.*-]+(?:\[\d+\])?(?=[=:, ])", str(error))
    return (Problem(found[0] if found else otherwise, str(error)),)


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    unit: str = "",
    key: str = "",
    least: float | None = None,
    check: Callable[[Any], bool] | None = None,
    rule: str = "",
    refused: str = "",
) -> Any:
    """A field of a section. Without `default` it has to be given.

    help: one line. key: its name in YAML where that is not the field's. least: of a number that is
    finite, or null. check: whether a value of the right type will do; `rule` says it in words.
    refused: why no value but the default is taken.
    """
    if least is not None:
        check = lambda v: v is None or (v >= least and math.isfinite(v))  # noqa: E731
        rule = f"must be a finite number, {least:g} or more"
    metadata = {"help": help, "unit": unit, "key": key, "check": check, "rule": rule}
    metadata["refused"] = refused
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


# What numbers of several sections have to be.
ABOVE_0: Mapping[str, Any] = {"check": lambda v: v > 0, "rule": "must be above 0"}
BELOW_1: Mapping[str, Any] = {"check": lambda v: 0 <= v < 1, "rule": "must be in [0, 1)"}
SHARE: Mapping[str, Any] = {
    "check": lambda v: v is None or 0 < v <= 1,
    "rule": "must be above 0 and at most 1",
}


@cache
def options(kind: type) -> Mapping[str, dataclasses.Field[Any]]:
    """YAML key -> field of a section; fields that are no option (no metadata) are left out."""
    return {
        f.metadata.get("key") or f.name: f for f in dataclasses.fields(kind) if "help" in f.metadata
    }


@cache
def hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def default_of(one: dataclasses.Field[Any]) -> Any:
    """The default of a field; MISSING where it has to be given."""
    if one.default_factory is not MISSING:
        return one.default_factory()
    return one.default


def changed(section: Any) -> dict[str, Any]:
    """YAML key -> value of the options of a section that do not have their defaults."""
    kind: type = type(section)
    known = options(kind).items()
    return {key: v for key, one in known if (v := getattr(section, one.name)) != default_of(one)}


def build(kind: type[Section], values: Mapping[str, Any], key: str, **more: Any) -> Section:
    """`values` as an instance of `kind`; `more` are its fields that are no option.

    key: where they stand, empty at the top. Raises SettingsErrors with every mistake below it.
    """
    reader = _Reader([], partial=False)
    made = reader.section(kind, values, key, more)
    if reader.problems:
        raise SettingsErrors(reader.problems)
    assert isinstance(made, kind)
    return made


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?', or nothing where no known name is near."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def nested(name: str, value: Any) -> str:
    """How a file has to write a key that has a dot in it: 'a: {b: 1}'."""
    first, *rest = name.split(".")
    below = shown(value)
    for key in reversed(rest):
        below = f"{{{key}: {below}}}"
    return (
        "a dot in a key of a file is a part of its name, and divides keys on the command line only."
        f" Nest it: {first}: {below}"
    )


def unknown(key: str, value: Any, name: str, kind: type) -> Problem:
    """`key` is no option of `kind`, which may know why: its REFUSED names what to do instead."""
    known = options(kind)
    taken = {own: one.metadata["refused"] for own, one in known.items()}
    refused: Mapping[str, str] = {**taken, **getattr(kind, "REFUSED", {})}
    if name in refused:
        return Problem(key, f"{key}={shown(value)}: not an option here: {refused[name]}")
    near = difflib.get_close_matches(name, refused, n=1)
    told = f"{key}={shown(value)}: there is no option '{name}'"
    if name.partition(".")[0] in known and "." in name:
        told += f": {nested(name, value)}"
    elif near and refused[near[0]]:
        told += f", and the one most like it, {near[0]}, is not taken: {refused[near[0]]}"
    elif near:
        told += f"; did you mean {near[0]}?"
    elif len(known) > MOST_LISTED:
        told += (
            f"; python train.py --info {_info(key.removesuffix(name) + 'x')} lists those there are"
        )
    else:
        told += f". Known here: {', '.join(sorted(known))}"
    return Problem(key, told)


MOST_LISTED = 30  # in a message; more are read elsewhere


def _info(key: str) -> str:
    """The name by which --info knows the section of a key."""
    section, *below = key.split(".")[:-1]
    return ".".join([section, *(below[1:] if section == "task" else below)])


def values_of(section: Any) -> Any:
    """A section as plain values by their YAML keys: what `build` would make it from."""
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        found = {key: getattr(section, f.name) for key, f in options(type(section)).items()}
        return {key: values_of(value) for key, value in found.items() if value is not None}
    if isinstance(section, Mapping):
        return {key: values_of(value) for key, value in section.items()}
    if isinstance(section, (list, tuple)):
        return [values_of(value) for value in section]
    return section


class _Wrong(Exception):
    """A value is not of the wanted type."""


@dataclass
class _Reader:
    """Reads values by annotations; collects what is wrong with them."""

    problems: list[Problem]
    partial: bool  # one layer of several: what is not there may come from another

    def section(self, kind: type, values: Any, key: str, more: Mapping[str, Any]) -> Any:
        known, problems = options(kind), self.problems
        if not isinstance(values, Mapping):
            problems.append(Problem(key, f"{key}={shown(values)}: {no_section(values, kind)}"))
            return None
        made: dict[str, Any] = dict(more)
        before = len(problems)
        for name, value in values.items():
            here = f"{key}.{name}".lstrip(".")
            if name not in known:
                problems.append(unknown(here, value, str(name), kind))
                continue
            one, count = known[name], len(problems)
            made[one.name] = made_value = self.value(value, hints(kind)[one.name], here)
            check = one.metadata["check"]
            done = len(problems) > count or self._open(value)
            if check is not None and not done and not check(made_value):
                problems.append(Problem(here, f"{here}={shown(value)}: {one.metadata['rule']}"))
        if self.partial:
            return None
        for name, one in known.items():
            if name not in values and default_of(one) is MISSING:
                text = f"{key}.{name} is missing: {one.metadata['help']}"
                problems.append(Problem(f"{key}.{name}", text))
        if len(problems) > before:
            return None
        try:
            return kind(**made)
        except SettingsError as error:
            problems.extend(problems_of(error, key))
        return None

    def _open(self, value: Any) -> bool:
        """Whether only the whole configuration tells what this is."""
        return self.partial and isinstance(value, str) and ("${" in value or value == "???")

    def value(self, value: Any, wanted: Any, key: str) -> Any:
        if self._open(value):
            return value
        try:
            return self._convert(value, wanted, key)
        except _Wrong:
            rule, known = f"must be {type_text(wanted)}", get_args(wanted)
            if get_origin(wanted) is Literal and len(known) > MOST_LISTED:
                rule = f"is none of the {len(known)} names that python train.py --info {_info(key)}"
                rule += f" lists{nearest(str(value), map(str, known))}"
            self.problems.append(Problem(key, f"{key}={shown(value)}: {rule}"))
            return None

    def _convert(self, value: Any, wanted: Any, key: str) -> Any:
        origin, inner = get_origin(wanted), get_args(wanted)
        if wanted is Any:
            return value
        if origin in (Union, types.UnionType):
            return self._one_of(value, inner, key)
        if origin is Literal:
            # YAML reads a bare `no` as false, and Hugging Face's strategies are called "no".
            text = "no" if value is False and "no" in inner else value
            if text in inner:
                return text
        if value is None and wanted is type(None):
            return None
        if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
            return self.section(wanted, value, key, {})
        if origin in (tuple, list) and isinstance(value, (list, tuple)):
            return origin(self.value(v, inner[0], f"{key}[{i}]") for i, v in enumerate(value))
        if origin is dict and isinstance(value, Mapping):
            return {str(k): self.value(v, inner[1], f"{key}.{k}") for k, v in value.items()}
        return _scalar(value, wanted)

    def _one_of(self, value: Any, wanted: Iterable[Any], key: str) -> Any:
        # The exact type first: 3 is an int in `int | str`, and "3" is text in it.
        for one in sorted(wanted, key=lambda t: type(value) is not t):
            try:
                return self._convert(value, one, key)
            except _Wrong:
                continue
        raise _Wrong


def check(kind: type, values: Any, key: str) -> list[Problem]:
    """Mistakes in one layer of a section, whatever other layers add to it."""
    reader = _Reader([], partial=True)
    reader.section(kind, values, key, {})
    return reader.problems


def read_value(wanted: Any, value: Any, key: str) -> Any:
    """One value as the annotation `wanted` has it; `${...}` and `???` as they are.

    Raises SettingsErrors.
    """
    reader = _Reader([], partial=True)
    made = reader.value(value, wanted, key)
    if reader.problems:
        raise SettingsErrors(reader.problems)
    return made


_WORDS = {"true": True, "yes": True, "on": True, "1": True}
_WORDS |= {"false": False, "no": False, "off": False, "0": False}


def _scalar(value: Any, wanted: type) -> Any:
    """As OmegaConf converts: numbers from their text, booleans from 0, 1, yes, no, on, off.

    Raises _Wrong for whatever else is wanted or there.
    """
    if wanted is bool and isinstance(value, (bool, int, str)) and str(value).lower() in _WORDS:
        return _WORDS[str(value).lower()]
    if wanted is str and isinstance(value, (str, bool, int, float)):
        return str(value)
    if wanted in (int, float) and not isinstance(value, bool):
        if isinstance(value, wanted):
            return value
        if isinstance(value, str) or (wanted is float and isinstance(value, int)):
            with suppress(ValueError):
                return wanted(value)
    raise _Wrong


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def type_text(wanted: Any) -> str:
    """An annotation in words."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(one) for one in inner)
    if origin is Literal:
        return " or ".join(repr(one) for one in inner)
    if wanted is None or wanted is type(None):
        return "null"
    if origin is tuple or origin is list:
        return f"a list ({type_text(inner[0])} each)"
    if origin is dict or dataclasses.is_dataclass(wanted):
        return "a mapping"
    return _NAMES.get(wanted, "anything")


def no_section(value: Any, kind: type) -> str:
    """Why a value that is no mapping is no section, and what to write instead."""
    if value is None:
        return "null is no section. Remove it to have the defaults, or give it options"
    known = [*options(kind)]
    if isinstance(value, str) and (found := re.match(r"(\w[\w.]*):(\S.*)", value)):
        return f"must be a mapping, and a colon wants a space behind it: {found[1]}: {found[2]}"
    if len(known) > MOST_LISTED:
        known = [*known[:5], "..."]
    return f"must be a mapping of {', '.join(known)}"


def shown(value: Any) -> str:
    """A value on one line, as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{shown(key)}: {shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(shown, value)) + "]"
    return str(value) if not isinstance(value, str) or value.strip() == value != "" else repr(value)
