"""From composed to plain values: the star gives defaults, every `${...}` is put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autocl_sweeper.errors import LayerError
from autocl_sweeper.yaml.layers import merge
from autocl_sweeper.yaml.text import dotted

STAR = "*"


def expand_stars(values: Mapping[Any, Any], keys: tuple[Any, ...] = ()) -> dict[Any, Any]:
    """The node `"*"` of a mapping as defaults of all its siblings, from the outside in.

    What a sibling says itself wins, by the rule of `merge`. For the composed configuration, values
    unresolved: overrides and groups then count as said by the sibling. Raises LayerError.
    """
    expanded = dict(values)
    star = expanded.pop(STAR, None)
    if STAR in values and not isinstance(star, Mapping):
        raise LayerError(
            f"'{dotted((*keys, STAR))}' is {star!r}, not a mapping.\n"
            f"  It holds defaults for every key beside it: {{{STAR}: {{key: value}}}}"
        )
    for key, child in expanded.items():
        if star is not None:
            if not isinstance(child, Mapping):
                raise LayerError(
                    f"'{dotted((*keys, key))}' is {child!r}, not a mapping, and stands beside"
                    f" '{dotted((*keys, STAR))}'.\n"
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
            missing.append(dotted(keys))
            return text
        try:
            return plain(node[key], text, keys)
        except (InterpolationToMissingValueError, MissingMandatoryValue):
            missing.append(f"{dotted(keys)} ({text})")
        except (OmegaConfBaseException, RecursionError) as error:
            wrong[dotted(keys)] = _unresolved(keys, text, error)
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
    own = f"${{{dotted(keys)}}}"
    if own in str(text):
        told += (
            f"\n    it refers to itself. To extend what an earlier file says: ${{{keys[-1]}}},"
            " in a file that goes over that one."
        )
    return told
