"""A search space from AutoDL Finetuner's `hparam.yaml`, all of its mistakes found at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autocl_sweeper.distributions import Interval
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.space import bare, is_key
from autocl_sweeper.types import Value

LIST = "param_list"
REQUIRED = NAME, INIT, TYPE, HIGH, LOW = "name", "init_value", "type", "lower_than", "greater_than"
LOG = "log"


@dataclass(frozen=True)
class ParamFile:
    """The distributions of a file and where a search starts in them, by override key."""

    space: Mapping[str, Interval]
    init: Mapping[str, Value]


def read_param_file(path: str | Path, taken: Mapping[str, str], least: int = 1) -> ParamFile:
    """Load an `hparam.yaml`. Raises ConfigurationError that lists every mistake.

    taken: names that the file may not search -> why. least: how many entries the search needs.
    """
    entries, mistakes = _entries(path)
    if 0 < len(entries) < least:
        mistakes.append(
            f"{LIST} has {len(entries)} entr{'y' if len(entries) == 1 else 'ies'}, but the search"
            f" hazero needs at least {least}: add another, or choose another search"
        )
    space: dict[str, Interval] = {}
    init: dict[str, Value] = {}
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries, start=1):
        found = list(_mistakes(entry, taken))
        name = entry.get(NAME) if isinstance(entry, dict) else None
        if isinstance(name, str):
            first = seen.setdefault(bare(name), number)
            if first != number:
                found.append(f"the name is that of entry {first} too; each is searched once")
        told = f"entry {number}" + (f" ({name})" if name is not None else "")
        mistakes += [f"{told}: {mistake}" for mistake in found]
        if not found:
            integer = entry[TYPE] == "int"
            low, high = float(entry[LOW]), float(entry[HIGH])
            space[str(name)] = Interval(low, high, entry.get(LOG, False), integer)
            init[bare(str(name))] = (int if integer else float)(entry[INIT])
    if mistakes:
        raise _wrong(path, mistakes)
    return ParamFile(space, init)


def _wrong(path: str | Path, mistakes: list[str]) -> ConfigurationError:
    listed = "\n".join(f"    {mistake}" for mistake in mistakes)
    return ConfigurationError(
        f"The parameter file '{path}' cannot be used:\n{listed}\n"
        f"  An entry of {LIST} has {', '.join(REQUIRED)} and, if wanted, {LOG}; {LOW} is the lower"
        f" bound and\n  {HIGH} the upper one, both included (`autocl docs finetune`). No job was"
        " started."
    )


def _entries(path: str | Path) -> tuple[list[Any], list[str]]:
    """The entries, and the mistakes around them. Raises ConfigurationError for what is no mapping."""
    from yaml import YAMLError

    try:
        # Not yaml.safe_load: it takes 1e-4, without a dot, for text.
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ConfigurationError(
            f"The parameter file '{path}' cannot be read: {error.strerror or error}.\n"
            "  A relative path starts where the command was typed. No job was started."
        ) from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise _wrong(path, [f"it is not YAML: {error}"]) from error
    if not isinstance(loaded, dict):
        raise _wrong(path, [f"it holds no mapping; its outermost key is {LIST}"])
    mistakes = [
        f"unknown key {key!r}{_nearest(key, [LIST])}; {LIST} is the only one"
        for key in loaded
        if key != LIST
    ]
    entries = loaded.get(LIST)
    if LIST not in loaded:
        mistakes.append(f"the key {LIST} is missing")
    elif not isinstance(entries, list):
        mistakes.append(f"{LIST} is {entries!r}, not a list of entries")
    elif not entries:
        mistakes.append(f"{LIST} is empty: name at least one hyper-parameter")
    return entries if isinstance(entries, list) else [], mistakes


def _mistakes(entry: Any, taken: Mapping[str, str]) -> Iterator[str]:
    """Mistakes of one entry."""
    if not isinstance(entry, dict):
        yield f"{entry!r} is not a mapping"
        return
    known = (*REQUIRED, LOG)
    for key in entry:
        if key not in known:
            yield f"unknown key {key!r}{_nearest(key, known)}"
    yield from (f"the key {key} is missing" for key in REQUIRED if key not in entry)
    kind = entry.get(TYPE)
    if TYPE in entry and kind not in ("int", "float"):
        yield f"{TYPE} is {kind!r}, not int or float"
    if not isinstance(entry.get(LOG, False), bool):
        yield f"{LOG} is {entry[LOG]!r}, not true or false"
    numbers = {}
    for key in (LOW, HIGH, INIT):
        if key not in entry:
            continue
        value = entry[key]
        if not _is_finite(value):
            yield f"{key} is {value!r}, not a finite number"
        elif kind == "int" and not float(value).is_integer():
            yield f"{key} is {value!r}, not a whole number, which {TYPE}: int asks for"
        else:
            numbers[key] = float(value)
    low, high, first = numbers.get(LOW), numbers.get(HIGH), numbers.get(INIT)
    if low is not None and high is not None and low >= high:
        yield (
            f"{LOW} is {entry[LOW]!r} and {HIGH} is {entry[HIGH]!r}: the lower bound"
            f" ({LOW}) must be below the upper one ({HIGH})"
        )
    elif first is not None and (
        (low is not None and first < low) or (high is not None and first > high)
    ):
        bounds = f"[{entry.get(LOW, '?')}, {entry.get(HIGH, '?')}]"
        yield f"{INIT} is {entry[INIT]!r}, outside the bounds {bounds}"
    if entry.get(LOG) is True and low is not None and low <= 0:
        yield f"{LOG}: true needs a lower bound above 0, and {LOW} is {entry[LOW]!r}"
    if NAME in entry:
        yield from _name_mistakes(entry[NAME], taken)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _name_mistakes(name: Any, taken: Mapping[str, str]) -> Iterator[str]:
    if not isinstance(name, str) or not is_key(name):
        yield (
            f"{NAME} is {name!r}, which is no legal override key: letters, digits, '_', '-' and"
            " dots, not beginning with a digit"
        )
    elif bare(name).partition(".")[0] == "hydra":
        yield f"{NAME} is {name!r}: what is below hydra sets up the sweep and cannot be searched"
    elif (why := taken.get(bare(name))) is not None:
        yield why


def _nearest(key: object, known: tuple[str, ...] | list[str]) -> str:
    close = get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else f" (known: {', '.join(known)})"
