"""What one job is asked to do, as typed values checked before anything heavy is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from train.chain import walk

Section = TypeVar("Section")

CLASSES = 10  # digits 0 to 9: the rows of the model's head
# The app's own: the seed differs along a chain, and a job leaves no optimizer state behind.
RESERVED_TRAINER_KEYS = ("output_dir", "seed", "data_seed", "save_strategy", "report_to")


class SettingsError(ValueError):
    """A setting the app cannot work with; the message names key, value, rule and remedy."""


@dataclass(frozen=True)
class Task:
    """One task: the images of some digits, and these digits as the options to choose from."""

    name: str
    options: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))  # OmegaConf gives a list
        wrong = [o for o in self.options if not 0 <= o < CLASSES]
        if wrong or len(self.options) < 2 or len(set(self.options)) < len(self.options):
            raise SettingsError(
                f"task.options={list(self.options)} of task '{self.name}': "
                f"give at least two different digits from 0 to {CLASSES - 1}"
            )


@dataclass(frozen=True)
class ModelSettings:
    """A small vision transformer, initialised at random; see conf/model."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    patch_size: int


@dataclass(frozen=True)
class DeltaSettings:
    """The LoRA adapter of a task and the weights of its O-LoRA penalties."""

    lora_dim: int
    lora_alpha: float
    lora_dropout: float
    target_modules: tuple[str, ...]
    lamda_1: float
    lamda_2: float

    def __post_init__(self) -> None:
        if self.lora_dim < 1:
            raise SettingsError(
                f"delta.lora_dim={self.lora_dim}: the rank of an adapter must be at least 1"
            )
        if not self.lora_alpha > 0:
            raise SettingsError(f"delta.lora_alpha={self.lora_alpha}: must be above 0")
        if not 0 <= self.lora_dropout < 1:
            raise SettingsError(f"delta.lora_dropout={self.lora_dropout}: must be in [0, 1)")
        for key in ("lamda_1", "lamda_2"):
            value = getattr(self, key)
            if not (value >= 0 and math.isfinite(value)):
                raise SettingsError(
                    f"delta.{key}={value}: a penalty weight must be a finite number, 0 or more "
                    "(0 turns the penalty off)"
                )


@dataclass(frozen=True)
class EvaluationSettings:
    """How the images of a task are divided; the same for every job of a sweep."""

    dev_share: float
    test_share: float
    split_seed: int

    def __post_init__(self) -> None:
        if not (
            self.dev_share > 0 and self.test_share > 0 and self.dev_share + self.test_share < 1
        ):
            raise SettingsError(
                f"evaluation.dev_share={self.dev_share}, evaluation.test_share={self.test_share}: "
                "both must be above 0 and leave something to train on (sum below 1)"
            )


@dataclass(frozen=True)
class Job:
    """One training run: which task, from which parent, how, and on what it is evaluated."""

    task: Task
    seen_tasks: tuple[Task, ...]
    init_from: Path | None
    model: ModelSettings
    delta: DeltaSettings
    trainer: dict[str, Any]  # arguments of transformers.TrainingArguments, by their own names
    evaluation: EvaluationSettings
    seed: int


def read_job(cfg: DictConfig, task_dir: Path) -> Job:
    """The job a composed config describes; `task_dir` holds one YAML file per known task."""
    task = _section(Task, cfg, "task")
    for key in RESERVED_TRAINER_KEYS:
        if key in cfg.trainer:
            raise SettingsError(
                f"trainer.{key}: the app decides this itself; remove it "
                "(to change the randomness of a job set the top-level key `seed`)"
            )
    init_from = None if cfg.init_from is None else Path(str(cfg.init_from)).absolute()
    if init_from is not None and not init_from.is_dir():
        raise SettingsError(
            f"init_from={init_from}: no such folder. It must be the checkpoint folder of a "
            "finished job of the task before, or null for the first task"
        )
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise SettingsError(f"seed={cfg.seed}: must be a whole number, 0 or more")
    return Job(
        task=task,
        seen_tasks=_seen_tasks(cfg.seen_tasks, task, init_from, task_dir),
        init_from=init_from,
        model=_section(ModelSettings, cfg, "model"),
        delta=_section(DeltaSettings, cfg, "delta"),
        trainer={str(k): v for k, v in OmegaConf.to_container(cfg.trainer, resolve=True).items()},  # type: ignore[union-attr]
        evaluation=_section(EvaluationSettings, cfg, "evaluation"),
        seed=cfg.seed,
    )


def _section(kind: type[Section], cfg: DictConfig, key: str) -> Section:
    """One part of the config as its dataclass; wrong types and unknown keys are refused."""
    # Part by part: OmegaConf cannot merge into frozen dataclasses nested in one another.
    try:
        return cast(Section, OmegaConf.to_object(OmegaConf.merge(kind, cfg[key])))
    except OmegaConfBaseException as error:
        raise SettingsError(f"{key}: {error}") from error


def _seen_tasks(
    names: Any, current: Task, init_from: Path | None, task_dir: Path
) -> tuple[Task, ...]:
    if names is None:
        ancestors = [] if init_from is None else [node.task for node in walk(init_from)]
        names = OmegaConf.create([*dict.fromkeys([*ancestors, current.name])])
    if not OmegaConf.is_list(names) or len(set(names)) < len(names) or current.name not in names:
        raise SettingsError(
            f"seen_tasks={names}: must be a list of different task names that contains the "
            f"current task '{current.name}', or null for those of the chain in init_from and it"
        )
    known = sorted(path.stem for path in task_dir.glob("*.yaml"))
    unknown = [name for name in names if name != current.name and name not in known]
    if unknown:
        raise SettingsError(
            f"seen_tasks={list(names)}: no config for {unknown}. Known tasks: {', '.join(known)}; "
            f"a new one needs a file {task_dir}/<name>.yaml"
        )
    return tuple(
        current
        if name == current.name
        else _section(
            Task, OmegaConf.create({"task": OmegaConf.load(task_dir / f"{name}.yaml")}), "task"
        )
        for name in names
    )
