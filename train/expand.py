"""From the composed configuration to the values of a run.

Composed, then: what nobody set is dropped, `"*"` is expanded, interpolations are resolved, and
OFASys's names become ours. Defaults come last, from the sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from autocl_sweeper.layers import LayerError, expand_stars, resolve  # type: ignore[attr-defined]
from train.ofasys import translate
from train.typed import SettingsError


def settle(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The values of a composed configuration, without the `hydra` node. Raises SettingsError.

    Values that are settled already stay what they are.
    """
    values = unresolved(cfg)
    try:
        stars = expand_stars(values)
        resolved: dict[str, Any] = resolve(OmegaConf.create(stars))
    except LayerError as error:
        raise SettingsError(str(error)) from error
    return translate(resolved)


def unresolved(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with their interpolations as written, without `hydra` and without what is unset."""
    return {key: _without_unset(value) for key, value in as_written(cfg).items()}


def as_written(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with their interpolations and `???`, without `hydra`."""
    plain = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    assert isinstance(plain, Mapping)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def _without_unset(node: Any) -> Any:
    if isinstance(node, Mapping):
        kept = {key: _without_unset(value) for key, value in node.items() if value != "???"}
        return kept
    return node
