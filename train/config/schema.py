"""The schema Hydra composes against: `train_schema` of its ConfigStore, made from the sections.

Every field is MISSING here. A schema that filled defaults into each task node would make them look
as if somebody had said them, and they would beat the star. So typos and wrong types die while Hydra
composes, `task.a.max_src_length=5` needs no plus, and `drop_unset` takes away what nobody set;
the real defaults are filled in last (`train.config.settle`).
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import cache, partial, wraps
from inspect import signature
from typing import Any, Dict, Literal, Optional, Union, get_args, get_origin  # noqa: UP035

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import MISSING as UNSET
from omegaconf import DictConfig, Node, open_dict

from train.config.env import EnvSettings
from train.config.ofasys import OFASYS, ModelKeys
from train.config.origins import Keys, keys_of
from train.config.sections import (
    DeltaSettings,
    EvaluationSettings,
    MemorySettings,
    Task,
    TrainerSettings,
)
from train.config.typed import hints, nearest, option, options

NAME = "train_schema"


@dataclass(frozen=True)
class TopLevel:
    """Keys of the configuration that are no section."""

    seed: int = option(
        0, "of all that is random", check=lambda v: v >= 0, rule="must be a whole number, 0 or more"
    )
    init_from: str | None = option(None, "checkpoint folder of the parent; null: the first task")
    seen_tasks: list[str] | None = option(
        None, "tasks to evaluate on; null: those of the chain in init_from, and the current one"
    )


# Name -> type; `task` holds one such node per instance.
SECTIONS: Mapping[str, type] = {
    "task": Task,
    "model": ModelKeys,
    "delta": DeltaSettings,
    "trainer": TrainerSettings,
    "env": EnvSettings,
    "memory": MemorySettings,
    "evaluation": EvaluationSettings,
}


def register() -> None:
    """Put `train_schema` into the ConfigStore; again, where singletons were restored."""
    store: Any = ConfigStore.instance().store
    if "replace" in signature(store).parameters:  # Hydra 1.4 asks what a second time means
        store = partial(store, replace=True)
    store(name=NAME, node=_root(), provider="train")


@cache
def _root() -> type:
    sections = [
        (name, _node(kind), field(default_factory=_node(kind)))
        for name, kind in {**SECTIONS, **OFASYS}.items()
        if kind is not Task
    ]
    tasks: Any = ("task", Dict[str, _node(Task)], field(default_factory=dict))  # type: ignore[misc]  # noqa: UP006
    top = [
        (name, _type(hints(TopLevel)[f.name]), field(default=UNSET))
        for name, f in options(TopLevel).items()
    ]
    return _named("TrainSchema", [tasks, *sections, *top])


@cache
def _node(kind: type) -> type:
    """`kind` with nothing set, in types that OmegaConf knows."""
    fields: list[Any] = []
    for key, one in options(kind).items():
        wanted = _type(hints(kind)[one.name])
        if dataclasses.is_dataclass(wanted):
            fields.append((key, wanted, field(default_factory=wanted)))  # type: ignore[arg-type]
        elif get_origin(wanted) is dict:
            fields.append((key, wanted, field(default_factory=dict)))
        else:
            fields.append((key, wanted, field(default=UNSET)))
    return _named(f"{kind.__name__}Node", fields)


def _named(name: str, fields: list[Any]) -> type:
    """A dataclass of this module, found again by its name where a job process unpickles it."""
    made = make_dataclass(name, fields)
    made.__module__ = __name__
    globals()[name] = made
    return made


def _type(wanted: Any) -> Any:
    """What is too much for OmegaConf is Any to it; `train.config.typed` reads it all again afterwards."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        others = [one for one in inner if one is not type(None)]
        made = _type(others[0])
        if len(others) > 1 or get_origin(made) is dict:
            return Any
        if dataclasses.is_dataclass(made) or len(others) == len(inner):
            return made
        return Any if made is Any else Optional[made]  # noqa: UP045
    if origin is Literal:
        return str if all(isinstance(one, str) and one != "no" for one in inner) else Any
    if wanted in (bool, int, str):  # a float field would make `${key}` of 3 the text 3.0
        return wanted
    if dataclasses.is_dataclass(wanted):
        return _node(wanted)  # type: ignore[arg-type]
    if origin is dict and dataclasses.is_dataclass(inner[1]):
        return Dict[str, _node(inner[1])]  # type: ignore[misc,arg-type]  # noqa: UP006
    return Any


ASKED = "train_asked"  # of a node: somebody wrote `???`


def ask(config: DictConfig, keys: Keys) -> None:
    """Somebody wrote `???` at these keys: if nothing fills them, `drop_unset` leaves them."""
    node: Any = config
    for key in keys:
        if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation():
            return
        node = None if node._is_missing() else node._get_node(key, validate_access=False)
    if isinstance(node, Node):
        node._set_flag(ASKED, True)


def drop_unset(config: DictConfig, kept: Collection[Keys] = (), keys: Keys = ()) -> None:
    """Take away what nobody set, and sections with nothing else in them.

    kept: leave the nodes at these keys; keys: where `config` stands.
    """
    # Asking and deleting by the front door visits every node below, for flags that do not matter here.
    content = config.__dict__["_content"]
    within = dataclasses.is_dataclass(config._metadata.object_type)
    for key, node in list(content.items()):
        if key == "hydra":
            continue
        value, here = node._value(), (*keys, key)
        if isinstance(value, str) and value == "???":
            if not node._get_node_flag(ASKED) and here not in kept:
                del content[key]
        elif isinstance(node, DictConfig) and isinstance(value, dict):
            drop_unset(node, kept, here)
            # Not what somebody wrote: `generator_args: {}`, or `metrics: {accuracy: {}}` in a Dict.
            sections = (node._metadata.object_type, node._metadata.element_type)
            empty = within and not value and any(map(dataclasses.is_dataclass, sections))
            if empty and here not in kept:
                if node._get_node_flag(ASKED):
                    node._set_value("???")
                else:
                    del content[key]


def is_ours(config: DictConfig) -> bool:
    """Whether a composed configuration uses `train_schema`."""
    return getattr(config._metadata.object_type, "__name__", "") == "TrainSchema"


# -- overrides of instances -------------------------------------------------------------------------


def _adding(apply: Callable[..., None]) -> Callable[..., None]:
    """Let `+task.c={...}` and `+task.c.max_src_length=5` add an instance.

    OmegaConf.update makes no node of a section at the end of a dotted key, only below one that is
    there (`+task={c: {...}}`).
    """

    @wraps(apply)
    def applied(overrides: Sequence[Any], cfg: DictConfig) -> None:
        if not is_ours(cfg):
            return apply(overrides, cfg)
        for override in overrides:
            if override.is_add() or override.is_force_add():
                keys = keys_of(override.key_or_group)
                _make_room(cfg, keys if isinstance(override.value(), dict) else keys[:-1])
            elif not override.is_delete():
                _refuse_new_task(cfg, override)
            apply([override], cfg)

    return applied


def _make_room(config: DictConfig, keys: Keys) -> None:
    """A new instance, with nothing set, where `keys` lead to one in a mapping of names to sections."""
    node: Any = config
    for key in keys:
        if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
            return
        if node._is_interpolation():
            return
        kind = node._metadata.element_type
        if node._get_node(key, validate_access=False) is None and dataclasses.is_dataclass(kind):
            with open_dict(node):
                node[key] = kind
        node = node._get_node(key, validate_access=False)


def _refuse_new_task(config: DictConfig, override: Any) -> None:
    top, _, rest = override.key_or_group.partition(".")
    name = rest.partition(".")[0]
    if top == "task" and name and name not in config.task:
        known = [str(one) for one in config.task]
        near = nearest(name, known) or f"; there are: {', '.join(known) or 'none'}"
        raise ConfigCompositionException(
            f"the command line: {override.input_line}: there is no task '{name}'{near}\n"
            f"  A new one is added with a plus: '+task.{name}={{_name: <class>, ...}}'"
        )


# What composes with the schema has imported this module: job processes for the classes, by name.
ConfigLoaderImpl._apply_overrides_to_config = staticmethod(  # type: ignore[method-assign]
    _adding(ConfigLoaderImpl._apply_overrides_to_config)
)
_root()
