"""The schema Hydra composes against: `train_schema` of its ConfigStore, the sections as empty nodes.

Hydra refuses a top-level key that is not there. Below a section it accepts any key without a plus, because
the struct flag of these nodes is off. Defaults must not stand here: they would beat the star.
What is wrong inside a section is found after composition (`train.check`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from train.config.env import EnvSettings
from train.config.memory import MemoryKeys
from train.config.merging import MergeSettings
from train.config.ofasys import OFASYS, ModelKeys
from train.config.sections import DeltaSettings, EvaluationSettings, TrainerSettings
from train.config.task import Task
from train.config.text_data import (
    CL_BENCHMARK,
    FEW_SHOT,
    TextData,
    config_root,
    few_shot_names,
    given_on,
    task_names,
)
from train.config.typed import no_section, option

# Hydra 1.3 behaves like 1.1 unless told; Hydra 1.4 warns when told.
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}
CONF = Path(__file__).resolve().parents[2] / "conf"


@dataclass(frozen=True)
class TopLevel(TextData):
    """Keys of the configuration that are no section; conf/base.yaml has them, too."""

    seed: int | None = option(
        0,
        "of all that is random; null: 0",
        check=lambda v: v is None or v >= 0,
        rule="must be a whole number, 0 or more",
    )
    init_from: str | None = option(None, "checkpoint folder of the parent; null: the first task")
    seen_tasks: list[str] | None = option(
        None, "tasks to evaluate on; null: those of the chain in init_from, and the current one"
    )
    evaluate_test: bool | Literal["every", "final"] = option(
        "every",
        "test rows are evaluated by every job; or by the last beam of a sweep, when it is over: true or"
        " final; or never: false",
    )


# Name -> type; `task` holds one such node per instance.
SECTIONS: Mapping[str, type] = {
    "task": Task,
    "model": ModelKeys,
    "delta": DeltaSettings,
    "trainer": TrainerSettings,
    "env": EnvSettings,
    "memory": MemoryKeys,
    "evaluation": EvaluationSettings,
    "merge": MergeSettings,
}
KINDS: Mapping[str, type] = {**SECTIONS, **OFASYS}


def not_a_section(name: str, value: Any) -> str:
    """Why `value` of a top-level key is no section, and what to write instead."""
    if isinstance(value, str) and (CONF / name / f"{value}.yaml").is_file():
        return (
            "a YAML file gives the options of a section. Remove the line, and choose the group's file on"
            f" the command line: {name}={value}"
        )
    if name == "task":
        return "must be a mapping of task names to tasks" + (
            "; null takes away those that are chosen elsewhere. Remove it" if value is None else ""
        )
    return no_section(value, KINDS[name]) if name in KINDS else "must be a mapping. Remove it"


def register() -> None:
    """Put `train_schema` into the ConfigStore, and a task per task-config folder. May be called again."""
    schema = OmegaConf.create({name: {} for name in KINDS})
    for name in KINDS:
        OmegaConf.set_struct(schema[name], False)  # merging keeps it
    store: Any = ConfigStore.instance().store
    if "replace" in signature(store).parameters:  # Hydra 1.4 asks what a second time means
        store = partial(store, replace=True)
    store(name="train_schema", node=schema, provider="train")
    # Hydra has to know which tasks there are: those that ship, and those of a command line's folders.
    roots = [None, *given_on(sys.argv[1:], "task_config_dir")]
    kinds = {name: CL_BENCHMARK for root in roots for name in task_names(config_root(root))}
    for data_dir in given_on(sys.argv[1:], "data_dir"):
        kinds |= dict.fromkeys(few_shot_names(data_dir), FEW_SHOT)
    for name, kind in kinds.items():
        node = OmegaConf.create({name: {"_name": kind}})
        store(group="task", name=name, node=node, provider="train")
