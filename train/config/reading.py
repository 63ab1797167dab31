"""From settled values to a run, and from a run to the file that says all it used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from autocl_sweeper.yaml.layers import load
from autocl_sweeper.yaml.resolve import STAR
from train.chain import walk
from train.config.hf_arguments import HFArguments
from train.config.memory import refuse_beside
from train.config.schema import CONF, TopLevel
from train.config.sections import Run, TrainerExtras, TrainerSettings
from train.config.settle import as_written, settle
from train.config.task import Task
from train.config.text_data import (
    CL_BENCHMARK,
    DEFAULTS,
    FEW_SHOT,
    TextData,
    config_root,
    few_shot_names,
    task_names,
)
from train.config.typed import SettingsError, build, default_of, hints, options, values_of

Composed = DictConfig | Mapping[str, Any]
TASKS = CONF / "task"  # one YAML file per known task
# Sections that are a part of a run as they are; the others are tasks, or about processes.
PARTS: Mapping[str, type] = {
    **{name: hints(Run)[name] for name in ("model", "delta", "memory", "evaluation", "merge")},
    "trainer": TrainerSettings,  # a run has its parts
}


def read_run(cfg: Composed, settled: Mapping[str, Any] | None = None) -> Run:
    """The run a composed configuration describes. Raises SettingsError.

    settled: what `settle` made of `cfg`, where that is known already.
    """
    values = settle(cfg) if settled is None else settled
    written = values.get("trainer") or {}
    parts: dict[str, Any] = {
        name: build(kind, values.get(name) or {}, name) for name, kind in PARTS.items()
    }
    trainer = parts.pop("trainer")
    refuse_beside(parts["memory"], written, parts["delta"].kind)
    # Only what the app or somebody set: what Hugging Face makes of the others is its own affair.
    named = {
        name: getattr(trainer, name)
        for name, one in options(HFArguments).items()
        if name in written or default_of(one) != default_of(options(TrainerSettings)[name])
    }
    tasks = read_tasks(values.get("task") or {})
    _refuse_two_sizes(trainer, written, tasks)
    top = build(TopLevel, {k: values[k] for k in options(TopLevel) if k in values}, "")
    init_from = None if top.init_from is None else Path(top.init_from).absolute()
    if init_from is not None and not init_from.is_dir():
        raise SettingsError(
            f"init_from={init_from}: no such folder. It must be the checkpoint folder of a "
            "finished job of the task before, or null for the first task"
        )
    return Run(
        tasks=tasks,
        seen_tasks=_seen_tasks(cfg, top, tasks, init_from),
        init_from=init_from,
        trainer=named | trainer.split,
        extras=TrainerExtras(**{name: getattr(trainer, name) for name in options(TrainerExtras)}),
        text=read_text(values),
        evaluate_test=top.evaluate_test,
        seed=top.seed or 0,
        **parts,
    )


def _refuse_two_sizes(
    trainer: TrainerSettings, written: Mapping[str, Any], tasks: Sequence[Task]
) -> None:
    """Refuse `trainer.batch_size` beside another way to say it. Raises SettingsError."""
    if trainer.batch_size is None:
        return
    other = [f"trainer.{key}={written[key]}" for key in trainer.split if key in written]
    for task in tasks:
        own = {k: getattr(task.dataset, k) for k in ("micro_batch_size", "update_freq")}
        other += [f"task.{task.name}.dataset.{k}={v}" for k, v in own.items() if v is not None]
    if other:
        raise SettingsError(
            f"trainer.batch_size={trainer.batch_size}: {other[0]} says the same in another way; remove one "
            "of them"
        )


def read_text(values: Mapping[str, Any]) -> TextData:
    """What tasks of class cl_benchmark are read by. Raises SettingsError."""
    return build(TextData, {key: values[key] for key in options(TextData) if key in values}, "")


def values_of_run(run: Run, env: Any) -> dict[str, Any]:
    """All that a run uses, defaults filled in: a configuration like any other."""
    return {
        "task": {task.name: values_of(task) for task in run.tasks},
        **{name: values_of(getattr(run, name)) for name in PARTS if name != "trainer"},
        "trainer": {**run.trainer, **values_of(run.extras)},
        "env": values_of(env),
        **values_of(run.text),
        "evaluate_test": run.evaluate_test,
        "seed": run.seed,
        "init_from": None if run.init_from is None else str(run.init_from),
        "seen_tasks": [task.name for task in run.seen_tasks],
    }


def write_resolved(run: Run, env: Any, folder: Path) -> None:
    """`values_of_run` as resolved.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    written = yaml.safe_dump(values_of_run(run, env), sort_keys=False, allow_unicode=True)
    (folder / "resolved.yaml").write_text(written, encoding="utf-8")


def read_tasks(nodes: Mapping[str, Any]) -> tuple[Task, ...]:
    """The task instances below `task`, in their order. Raises SettingsError."""
    if not nodes:
        raise SettingsError("task: no task is configured; choose one, for instance task=digits_01")
    tasks = []
    for name, node in nodes.items():
        dataset = node.get("dataset") if isinstance(node, Mapping) else None
        of_files = isinstance(dataset, Mapping) and dataset.get("train_data")
        values = {"_name": "text" if of_files else str(name), **(node or {})}
        if defaults := DEFAULTS.get(values["_name"]):
            evaluation = {**defaults["evaluation"], **(values.get("evaluation") or {})}
            values = {**defaults, **values, "evaluation": evaluation}
        tasks.append(build(Task, values, f"task.{name}", name=str(name)))
    return tuple(tasks)


def _seen_tasks(
    cfg: Composed, top: TopLevel, current: tuple[Task, ...], init_from: Path | None
) -> tuple[Task, ...]:
    names = top.seen_tasks
    own = {task.name: task for task in current}
    if names is None:
        ancestors = [t for node in walk(init_from) for t in node.tasks]
        names = [*dict.fromkeys([*ancestors, *own])]
    if len(set(names)) < len(names) or not own.keys() <= set(names):
        raise SettingsError(
            f"seen_tasks={names}: must be a list of different task names that contains the "
            f"current task '{', '.join(own)}', or null for those of the chain in init_from and it"
        )
    folders = [*task_names(config_root(top.task_config_dir)), *few_shot_names(top.data_dir)]
    known = sorted({*(path.stem for path in TASKS.glob("*.yaml")), *folders})
    missing = [name for name in names if name not in own and name not in known]
    if missing:
        raise SettingsError(
            f"seen_tasks={list(names)}: no config for {missing}. Known tasks: {', '.join(known)}; "
            f"a new one needs a file {TASKS}/<name>.yaml"
        )
    return tuple(own[name] if name in own else _group_task(cfg, name) for name in names)


def _group_task(cfg: Composed, name: str) -> Task:
    """A task an earlier job of the chain trained: its group file, under the star of this config.

    Without a file it is a folder of task_config_dir.
    """
    whole = as_written(cfg)
    star = {key: node for key, node in (whole.get("task") or {}).items() if key == STAR}
    file = TASKS / f"{name}.yaml"
    kind = FEW_SHOT if name in few_shot_names(whole.get("data_dir")) else CL_BENCHMARK
    found = load(str(file)) if file.is_file() else {name: {"_name": kind}}
    if list(found) != [name]:
        raise SettingsError(
            f"{file}: must hold the task '{name}' alone, to be found again by its "
            f"name later in a chain; it holds {', '.join(map(str, found))}"
        )
    (task,) = read_tasks(settle({**whole, "task": {**star, **found}})["task"])
    return task
