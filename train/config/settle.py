"""From the composed configuration to the values of a run.

Composed, then: what nobody set is dropped, `"*"` is expanded, interpolations are resolved, and
OFASys's names become ours. Defaults come last, from the sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, Node, OmegaConf

from autocl_sweeper.errors import LayerError
from autocl_sweeper.yaml.resolve import Unresolved, expand_stars, resolve
from train.config.ofasys import translate
from train.config.typed import Problem, SettingsError, SettingsErrors


def settle(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The values of a composed configuration, without the `hydra` node. Raises SettingsError.

    Values that are settled already stay what they are.
    """
    values = unresolved(cfg)
    try:
        stars: dict[str, Any] = expand_stars(values)
        resolved = resolve(OmegaConf.create(stars)) if _refers(stars) else stars
    except Unresolved as error:
        raise SettingsErrors(Problem(k, f"{k}={said}") for k, said in error.told.items()) from error
    except LayerError as error:
        raise SettingsError(str(error)) from error
    return translate(resolved)


def unresolved(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with their interpolations as written, without `hydra` and without what is unset."""
    return {key: _without_unset(value) for key, value in as_written(cfg).items()}


def as_written(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with their interpolations and `???`, without `hydra`."""
    nodes = cfg._value() if isinstance(cfg, DictConfig) else cfg
    assert isinstance(nodes, Mapping)
    return {str(key): _written(node) for key, node in nodes.items() if key != "hydra"}


def _written(node: Any) -> Any:
    """What `OmegaConf.to_container` gives without resolving: every job of a sweep waits for this."""
    if isinstance(node, DictConfig) and isinstance(nodes := node._value(), dict):
        return {key: _written(child) for key, child in nodes.items()}
    if isinstance(node, ListConfig) and isinstance(items := node._value(), list):
        return [_written(child) for child in items]
    while isinstance(node, Node):  # that of a union is in another
        node = node._value()
    return node


def _refers(node: Any) -> bool:
    """Whether OmegaConf has anything to do to make these values plain."""
    if type(node) is dict:
        return any(type(key) is not str or _refers(value) for key, value in node.items())
    if type(node) is list:
        return any(map(_refers, node))
    if type(node) is str:
        return "${" in node or node == "???"
    return type(node) not in (bool, int, float, type(None))


def _without_unset(node: Any) -> Any:
    if isinstance(node, Mapping):
        kept = {key: _without_unset(value) for key, value in node.items() if value != "???"}
        return kept
    return node
