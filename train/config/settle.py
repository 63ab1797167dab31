"""From the composed configuration to the values of a run.

`"*"` is expanded, interpolations are resolved, and names of OFASys and Mimose become ours. Defaults come
last, from the sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from autocl_sweeper.errors import LayerError
from autocl_sweeper.yaml.resolve import Unresolved, expand_stars, resolve
from train.config.memory import translate_memory
from train.config.ofasys import translate
from train.config.typed import Problem, SettingsError, SettingsErrors


def settle(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The values of a composed configuration, without the `hydra` node. Raises SettingsError."""
    try:
        resolved = resolve(OmegaConf.create(expand_stars(as_written(cfg))))
    except Unresolved as error:
        raise SettingsErrors(Problem(k, f"{k}={said}") for k, said in error.told.items()) from error
    except LayerError as error:
        raise SettingsError(str(error)) from error
    values = translate(resolved)
    if "memory" in values:
        values["memory"] = translate_memory(values["memory"] or {})
    return values


def as_written(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with their interpolations and `???` as written, without the `hydra` node."""
    values = OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg
    assert isinstance(values, Mapping)
    return {str(key): node for key, node in values.items() if key != "hydra"}
