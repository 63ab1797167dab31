"""The YAML text of one configuration file: parsed as OmegaConf reads it, checked, and searched for lines."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from autocl_sweeper.errors import LayerError
from autocl_sweeper.yaml.repairs import NO_BREAK_SPACE, explained

INCLUDE = "_include"
MOST_NODES = 100_000  # of one file, aliases written out; more is a slip or an attack

ReadText = Callable[[str], str]
"""The text of the file at an absolute path. Raises OSError or UnicodeDecodeError."""


def read_text(path: str) -> str:
    """The text exactly, line ends included: its hash is that of the file."""
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


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
        line, told = explained(error, text)
        raise LayerError(f"line {line}: this is not valid YAML: {told}") from error
    except (yaml.YAMLError, ValueError) as error:  # a forbidden character; 0b2, no binary number
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
    for place, (keys, value) in enumerate(walk(values)):
        if place > MOST_NODES:
            raise LayerError(f"its values are more than {MOST_NODES}, aliases written out.")
        if wrong := _flaw(keys, value):
            raise LayerError(f"line {line_of(text, keys)}: {wrong}")
        if isinstance(value, str) and "${" in value:
            resolving.append((keys, value))
    try:
        OmegaConf.create([value for _, value in resolving])
    except OmegaConfBaseException:
        for keys, value in resolving:
            try:
                OmegaConf.create([value])
            except OmegaConfBaseException as error:
                raise LayerError(
                    f"line {line_of(text, keys)}: '{dotted(keys)}' is {value!r}, and its ${{...}} cannot be"
                    f" read: {str(error).partition(chr(10))[0]}.\n"
                    "  Close it, or write \\${ for the two characters themselves."
                ) from error


def _flaw(keys: tuple[Any, ...], value: Any) -> str | None:
    """Why no configuration has this value, or has it at these keys."""
    key = keys[-1]
    if not isinstance(key, (str, int, float, bytes)):
        return f"the key {'null' if key is None else repr(key)} is neither text nor number."
    if isinstance(key, str) and key[:1] == NO_BREAK_SPACE:
        return (
            f"the line of '{key.strip()}' begins with a no-break space (U+00A0), which indents"
            " nothing. Replace it by a plain space."
        )
    if key == INCLUDE and len(keys) > 1:
        return (
            f"{INCLUDE} stands at '{dotted(keys)}', but only the top level of a file includes.\n"
            f"  Move it to the top level; the included file then names '{dotted(keys[:-1])}' itself."
        )
    if not isinstance(value, (str, dict, list, int, float, bytes, os.PathLike, type(None))):
        return (
            f"'{dotted(keys)}' is a {_kind(value)}; a configuration holds mappings, lists, texts,"
            " numbers, booleans and null."
        )
    return None


def walk(
    node: Any, keys: tuple[Any, ...] = (), above: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value below a node with its keys. Raises LayerError where an alias holds itself."""
    if id(node) in above:
        raise LayerError(f"'{dotted(keys)}' is an alias of a node that contains it.")
    above = (*above, id(node))
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*keys, key), value
        if isinstance(value, (dict, list)):
            yield from walk(value, (*keys, key), above)


def _kind(value: Any) -> str:
    return {"str": "text", "int": "number", "float": "number"}.get(
        type(value).__name__, type(value).__name__
    )


def dotted(keys: Sequence[Any]) -> str:
    """Hydra's spelling of a key: a.b[0]."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def at(read: ReadText, path: str, keys: Sequence[Any]) -> str:
    return f", line {line_of(read(path), keys)}"


def line_of(text: str, keys: Sequence[Any]) -> int:
    """Where a key of a YAML text stands, counted from 1; 1 where the text does not have it.

    What comes from an alias or from `<<` stands where it is written out.
    """
    import yaml

    node = yaml.compose(text, Loader=_loader())
    line = 1
    for key in keys:
        mark, node = _find(node, key)
        if node is None:
            return 1
        line = mark.line + 1
    return line


def _find(node: Any, key: Any) -> tuple[Any, Any]:
    """Where a node has a key, and the node there; None and None where it has it not."""
    import yaml

    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key].start_mark, node.value[key]
    merged: list[Any] = []
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        # A key that is no text, such as 1 or on, is read again.
        if name.value == key or (
            not isinstance(key, str) and yaml.load(name.value, Loader=_loader()) == key
        ):
            return name.start_mark, value
        if name.value == "<<":
            merged += value.value if value.id == "sequence" else [value]
    found = (_find(one, key) for one in merged)
    return next((one for one in found if one[1] is not None), (None, None))


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
                    told = f"the key '{key.value}' stands twice, first in line {lines[name]};"
                    told += " one of the two values would silently win"
                    raise yaml.constructor.ConstructorError(None, None, told, key.start_mark)
                lines[name] = key.start_mark.line + 1
            self.seen.add(id(node))
            super().flatten_mapping(node)
            # PyYAML 6.0.4 keeps a key that `<<` brings as well: the last one counts, as ever.
            pairs = {(key.tag, str(key.value)): (key, value) for key, value in node.value}
            node.value = list(pairs.values())

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
