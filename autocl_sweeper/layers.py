"""YAML files that include others, and the one rule by which a layer of values goes over another.

    values = load(path)                 # a file with its `_include`d ones: a plain dict
    values = load_layers([first, ...])  # several files, later over earlier

The rules are told to users in docs/configuration.md. Everything here works on plain dicts, before
OmegaConf sees them: OmegaConf would always merge deeply, refuses a list where a mapping stood, and
lets `???` keep the old value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from autocl_sweeper.errors import LayerError as LayerError  # for who reads configurations

INCLUDE = "_include"
NAME = "_name"
STAR = "*"
DEFAULTS = "defaults"

MOST_NODES = 100_000  # of one file, aliases written out; more is a slip or an attack

ReadText = Callable[[str], str]
"""The text of the file at an absolute path. Raises OSError or UnicodeDecodeError."""


def read_text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


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
                f"'{path}'{_at(read, path, (DEFAULTS,))} has a `defaults:` list, which only the first"
                f" file of a command line may have ('{paths[0]}').\n"
                "  Hydra would look for its entries beside the first file.\n"
                f"  Choose groups on the command line (group=choice), or list the files in {INCLUDE}."
            )
        merged = merge(merged, values)
    return merged


def _load(path: str, read: ReadText, chain: tuple[str, ...]) -> dict[Any, Any]:
    """`chain`: the files that led here, outermost first."""
    own = _parsed(path, read, chain)
    if INCLUDE not in own:
        return merge({}, own)
    chain = (*chain, path)
    merged: dict[Any, Any] = {}
    for entry in _entries(own[INCLUDE], path, read, chain):
        merged = merge(merged, _included(entry, read, chain))
    return merge(merged, {key: value for key, value in own.items() if key != INCLUDE})


def _entries(value: Any, path: str, read: ReadText, chain: tuple[str, ...]) -> list[str]:
    entries = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise LayerError(
            f"{INCLUDE}: {value!r} in '{path}'{_at(read, path, (INCLUDE,))} is not a text or a list"
            f" of texts.{_told(chain[:-1])}\n"
            f"  Each entry is a path, and keys to take from it if not all: {INCLUDE}: [base.yaml, "
            "other.yaml task model]"
        )
    return entries


def _included(entry: str, read: ReadText, chain: tuple[str, ...]) -> dict[Any, Any]:
    """The finished result of one entry; `chain` ends with the including file."""
    file = chain[-1]
    name, *keys = entry.split() or [""]
    path = os.path.normpath(os.path.join(os.path.dirname(file), name))
    if not name:
        raise LayerError(
            f"{INCLUDE} in '{file}'{_at(read, file, (INCLUDE,))} has an empty entry."
            f"{_told(chain[:-1])}\n  Name a file, or remove the entry."
        )
    real = os.path.realpath(path)
    if real in map(os.path.realpath, chain):
        lines = "\n    includes ".join(f"'{one}'" for one in (*chain, path))
        raise LayerError(
            f"The files include each other in a cycle:\n    {lines}\n"
            f"  Remove one of these {INCLUDE} entries: what two files share goes into a third."
        )
    values = _load(path, read, chain)
    if DEFAULTS in values:
        raise LayerError(
            f"'{path}'{_at(read, path, (DEFAULTS,))} has a `defaults:` list and is included."
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
            f"{INCLUDE}: '{entry}' in '{file}'{_at(read, file, (INCLUDE,))} asks for"
            f" {', '.join(map(repr, missing))}, which '{path}' does not have.{_told(chain[:-1])}\n"
            f"  Its top-level keys are: {there}.{dotted}\n"
            "  After the path stand the keys to take, split by spaces (so no path has spaces)."
        )
    return {known[key]: values[known[key]] for key in keys}


def _parsed(path: str, read: ReadText, chain: tuple[str, ...]) -> Mapping[Any, Any]:
    """The file's own values, not to be changed: they are shared with the cache."""
    try:
        text = read(path)
    except OSError as error:
        raise LayerError(_unreadable(path, error, read, chain)) from error
    except UnicodeDecodeError as error:
        raise LayerError(f"'{path}' is not UTF-8 text: {error}.{_told(chain)}") from error
    try:
        return parse(text)
    except LayerError as error:
        raise LayerError(f"'{path}', {error}{_told(chain)}") from error


def _unreadable(path: str, error: OSError, read: ReadText, chain: Sequence[str]) -> str:
    if isinstance(error, FileNotFoundError):
        told = f"There is no file '{path}'."
    else:
        told = f"'{path}' cannot be read: {error.strerror or error}."
    if not chain:
        return told
    file = chain[-1]
    written = _parsed(file, read, ())[INCLUDE]
    here = os.path.dirname(file)
    (entry,) = [
        one
        for one in ([written] if isinstance(written, str) else written)
        if one.split() and os.path.normpath(os.path.join(here, one.split()[0])) == path
    ][:1]
    return (
        f"{told}\n  {INCLUDE}: '{entry}' in '{file}'{_at(read, file, (INCLUDE,))}"
        f"{_told(chain[:-1])}\n"
        "  A path is relative to the folder of the file it stands in, and taken as it is written:\n"
        "  ~, $VAR, ${...}, * and URLs mean nothing in it, and .yaml is not added."
    )


def _told(chain: Sequence[str]) -> str:
    return "".join(f"\n  included from '{path}'" for path in reversed(chain))


# -- the YAML of one file ---------------------------------------------------------------------------


def includes(text: str) -> bool:
    """Whether `load` would differ from Hydra on this text: by what it includes, or by its error."""
    try:
        return INCLUDE in parse(text)
    except LayerError:
        return True


@lru_cache(maxsize=1024)
def parse(text: str) -> Mapping[Any, Any]:
    """A file's text as values: what OmegaConf.load reads, checked. Not to be changed.

    Raises LayerError, whose message begins with the line. Equal texts are parsed once in a process:
    Hydra reads the same files for every job of a sweep.
    """
    import yaml

    try:
        values = yaml.load(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        told = ", ".join(filter(None, (error.context, error.problem)))
        hint = ""
        if any("???" in one for one in text.splitlines()[line - 1 : line]):
            hint = '\n  Between {} and [] YAML wants ??? in quotes: "???".'
        raise LayerError(f"line {line}: this is not valid YAML: {told}.{hint}") from error
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise LayerError(f"this is not valid YAML: {error}.") from error
    except ValueError as error:  # of a constructor: 0b2 is binary by its looks only
        raise LayerError(f"this is not valid YAML: {error}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise LayerError(
            f"line 1: its top level is a {_kind(values)}, not a mapping of keys to values."
        )
    _check(values, text)
    return values


def _check(values: Mapping[Any, Any], text: str) -> None:
    """Refuse what is no configuration: nested includes, endless aliases, bad `${`, foreign types."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    resolving: list[tuple[tuple[Any, ...], str]] = []
    for place, (keys, value) in enumerate(_walk(values, (), ())):
        if place > MOST_NODES:
            raise LayerError(f"its values are more than {MOST_NODES}, aliases written out.")
        key = keys[-1]
        if not isinstance(key, (str, int, float, bytes)):
            raise LayerError(
                f"{_line(text, keys[:-1])}: the key {key!r} is neither text nor number."
            )
        if key == INCLUDE and len(keys) > 1:
            raise LayerError(
                f"{_line(text, keys)}: {INCLUDE} stands at '{_dotted(keys)}', but only the top"
                " level of a file includes.\n"
                f"  Move it to the top level; the included file then names '{_dotted(keys[:-1])}'"
                " itself."
            )
        if isinstance(value, str):
            if "${" in value:
                resolving.append((keys, value))
        elif not isinstance(value, (dict, list, int, float, bytes, os.PathLike, type(None))):
            raise LayerError(
                f"{_line(text, keys)}: '{_dotted(keys)}' is a {_kind(value)}; a configuration holds"
                " mappings, lists, texts, numbers, booleans and null."
            )
    try:
        OmegaConf.create([value for _, value in resolving])
    except OmegaConfBaseException:
        for keys, value in resolving:
            try:
                OmegaConf.create([value])
            except OmegaConfBaseException as error:
                raise LayerError(
                    f"{_line(text, keys)}: '{_dotted(keys)}' is {value!r}, and its ${{...}} cannot be"
                    f" read: {str(error).partition(chr(10))[0]}.\n"
                    "  Close it, or write \\${ for the two characters themselves."
                ) from error


def _walk(
    node: Any, keys: tuple[Any, ...], above: tuple[int, ...]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value below a node with its keys. Raises LayerError where an alias holds itself."""
    if id(node) in above:
        raise LayerError(f"'{_dotted(keys)}' is an alias of a node that contains it.")
    above = (*above, id(node))
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*keys, key), value
        if isinstance(value, (dict, list)):
            yield from _walk(value, (*keys, key), above)


def _kind(value: Any) -> str:
    return {"str": "text", "int": "number", "float": "number"}.get(
        type(value).__name__, type(value).__name__
    )


def _dotted(keys: Sequence[Any]) -> str:
    """Hydra's spelling of a key: a.b[0]."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def _at(read: ReadText, path: str, keys: Sequence[Any]) -> str:
    return f", {_line(read(path), keys)}"


def _line(text: str, keys: Sequence[Any]) -> str:
    return f"line {line_of(text, keys) or 1}"


def line_of(text: str, keys: Sequence[Any]) -> int | None:
    """Where a key of a YAML text stands, counted from 1; None where the text does not have it.

    What comes from an alias or from `<<` stands where it is written out.
    """
    import yaml

    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line = None
    for key in keys:
        found = None
        if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            if key < len(node.value):
                found = (node.value[key].start_mark, node.value[key])
        elif isinstance(node, yaml.MappingNode):
            found = _find(node, str(key))
        if found is None:
            return None
        line, node = found[0].line + 1, found[1]
    return line


def _find(node: Any, key: str) -> tuple[Any, Any] | None:
    merged: list[Any] = []
    for name, value in node.value:
        if name.value == key:
            return name.start_mark, value
        if name.value == "<<":
            merged += value.value if value.id == "sequence" else [value]
    for one in merged:
        if found := _find(one, key):
            return found
    return None


@cache
def _loader() -> Any:
    """OmegaConf's YAML on libyaml's parser, which takes a tenth of the time where it is there.

    1e-5 is a number, a date stays text, a key that stands twice is an error. That it agrees with
    OmegaConf.load is tested with random documents.
    """
    import pathlib

    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            super().__init__(stream)
            self.seen: set[int] = set()

        def flatten_mapping(self, node: Any) -> None:
            """Called for each mapping before its `<<` are written out, and again afterwards."""
            lines: dict[tuple[str, Any], int] = {}
            for key, _ in node.value if id(node) not in self.seen else ():
                name = (key.tag, str(key.value))
                if name in lines and not key.tag.endswith(":merge"):
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"the key '{key.value}' stands twice, first in line {lines[name]}; one of"
                        " the two values would silently win",
                        key.start_mark,
                    )
                lines[name] = key.start_mark.line + 1
            self.seen.add(id(node))
            super().flatten_mapping(node)

    number = r"""[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
           |[-+]?[0-9]+(?:_[0-9]+)*[eE][-+]?[0-9]+
           |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
           |[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
           |[-+]?\.(?:inf|Inf|INF)
           |\.(?:nan|NaN|NAN)"""
    float_tag = "tag:yaml.org,2002:float"
    pattern = re.compile(f"^(?:{number})$", re.X)
    Loader.add_implicit_resolver(float_tag, pattern, list("-+0123456789."))
    Loader.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in found if not tag.endswith(":timestamp")]
        for first, found in Loader.yaml_implicit_resolvers.items()
    }
    for kind in ("Path", "PosixPath"):  # as OmegaConf.save writes them
        Loader.add_constructor(
            f"tag:yaml.org,2002:python/object/apply:pathlib.{kind}",
            lambda loader, node: pathlib.Path(*loader.construct_sequence(node)),
        )
    return Loader


# -- the rule ---------------------------------------------------------------------------------------


def merge(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> dict[Any, Any]:
    """`new` over `old`, for includes, several files and `"*"` alike; shares nothing with either.

    Mappings merge key by key, everything else is replaced: lists, `null` and `???` too. Mappings
    with different `_name`s are different things: the new one stands alone. In a text over a text,
    `${key}` with the key's own name is the old text.
    """
    if NAME in old and NAME in new and old[NAME] != new[NAME]:
        return {key: _copy(value) for key, value in new.items()}
    merged = {key: _copy(value) for key, value in old.items()}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            merged[key] = merge(before, value)
        elif isinstance(value, str) and isinstance(before, str):
            merged[key] = _spliced(str(key), before, value)
        else:
            merged[key] = _copy(value)
    return merged


def _spliced(key: str, before: str, text: str) -> str:
    own = "${" + key + "}"
    if own not in text:
        return text
    # Behind an odd number of backslashes ${ is literal.
    pattern = r"(?<!\\)((?:\\\\)*)" + re.escape(own)
    return re.sub(pattern, lambda match: match[1] + before, text)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_copy(child) for child in value]
    return value  # what else YAML gives cannot be changed


# -- after composition ------------------------------------------------------------------------------


def expand_stars(values: Mapping[Any, Any], keys: tuple[Any, ...] = ()) -> dict[Any, Any]:
    """The node `"*"` of a mapping as defaults of all its siblings, from the outside in.

    What a sibling says itself wins, by the rule of `merge`. For the composed configuration, values
    unresolved: overrides and groups then count as said by the sibling. Raises LayerError.
    """
    expanded = dict(values)
    star = expanded.pop(STAR, None)
    if STAR in values and not isinstance(star, Mapping):
        raise LayerError(
            f"'{_dotted((*keys, STAR))}' is {star!r}, not a mapping.\n"
            f"  It holds defaults for every key beside it: {{{STAR}: {{key: value}}}}"
        )
    for key, child in expanded.items():
        if star is not None:
            if not isinstance(child, Mapping):
                raise LayerError(
                    f"'{_dotted((*keys, key))}' is {child!r}, not a mapping, and stands beside"
                    f" '{_dotted((*keys, STAR))}'.\n"
                    "  A star gives defaults to every key beside it. Move this one elsewhere."
                )
            child = merge(star, child)
        if isinstance(child, Mapping) and not (not keys and key == "hydra"):
            child = expand_stars(child, (*keys, key))
        expanded[key] = child
    return expanded


class Unresolved(LayerError):
    """Values that no resolving gives. `told`: dotted key -> what is wrong with its value."""

    def __init__(self, told: Mapping[str, str]) -> None:
        self.told = told
        lines = (f"  {key}: {text}" for key, text in told.items())
        super().__init__("Values that cannot be resolved:\n" + "\n".join(lines))


def resolve(config: Any) -> dict[Any, Any]:
    """A DictConfig as plain values, every `${...}` put in.

    Raises Unresolved with every key that cannot be resolved, or else LayerError with every `???` left.
    """
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import (
        InterpolationToMissingValueError,
        MissingMandatoryValue,
        OmegaConfBaseException,
    )

    wrong: dict[str, str] = {}
    missing: list[str] = []

    def plain(node: Any, written: Any, keys: tuple[Any, ...]) -> Any:
        """`written`: the same unresolved, or the `${...}` that stands for the node."""
        if isinstance(node, DictConfig):
            return {key: child(node, key, written, (*keys, key)) for key in node}
        if isinstance(node, ListConfig):
            places = range(len(node))
            return [child(node, place, written, (*keys, place)) for place in places]
        return node

    def child(node: Any, key: Any, written: Any, keys: tuple[Any, ...]) -> Any:
        text = written if isinstance(written, str) else written[key]
        if text == "???":
            missing.append(_dotted(keys))
            return text
        try:
            return plain(node[key], text, keys)
        except (InterpolationToMissingValueError, MissingMandatoryValue):
            missing.append(f"{_dotted(keys)} ({text})")
        except (OmegaConfBaseException, RecursionError) as error:
            wrong[_dotted(keys)] = _unresolved(keys, text, error)
        return None

    values: dict[Any, Any] = plain(config, OmegaConf.to_container(config, resolve=False), ())
    if wrong:
        raise Unresolved(wrong)
    if missing:
        raise LayerError(
            "Mandatory values (???) are missing:\n"
            + "\n".join(f"  {key}" for key in missing)
            + "\n  Set them in a YAML file or on the command line (key=value)."
        )
    return values


def _unresolved(keys: Sequence[Any], text: Any, error: BaseException) -> str:
    told = f"{text}: {str(error).partition(chr(10))[0] or type(error).__name__}"
    own = f"${{{_dotted(keys)}}}"
    if own in str(text):
        told += (
            f"\n    it refers to itself. To extend what an earlier file says: ${{{keys[-1]}}},"
            " in a file that goes over that one."
        )
    return told


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
