"""The other sections of the configuration, and the run that all of them together describe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from train.config.hf_arguments import HFArguments, SchedulerType
from train.config.refused import REFUSED
from train.config.task import (
    CLASSES,
    CRITERIA,
    DatasetSettings,
    ImagePreprocess,
    LossSettings,
    MetricSettings,
    Task,
    TextPreprocess,
)
from train.config.typed import SettingsError, at_least, default_of, option, options

__all__ = [  # also the parts of a task that its readers name
    "CLASSES",
    "CRITERIA",
    "TRAINER_DEFAULTS",
    "DatasetSettings",
    "DeltaSettings",
    "EvaluationSettings",
    "ImagePreprocess",
    "LossSettings",
    "MemorySettings",
    "MetricSettings",
    "ModelSettings",
    "Run",
    "SettingsError",
    "Task",
    "TextPreprocess",
    "TrainerExtras",
    "TrainerSettings",
]


@dataclass(frozen=True)
class ModelSettings:
    """The model of the first task; see conf/model.

    vit: one image, one answer of a closed set. unify: an encoder-decoder of text and images. Both are
    small and begin at random. seq2seq: an encoder-decoder of text from a folder of Hugging Face.
    """

    kind: Literal["vit", "unify", "seq2seq"] = option("vit", "vit, unify or seq2seq", key="_name")
    path: str | None = option(
        None, "of seq2seq: folder of the model, pkg://<package>/<folder>, or a name of the hub"
    )
    tokenizer: str | None = option(
        None, "likewise, of unify and seq2seq; null: bytes for unify, `path` for seq2seq"
    )
    weights: Literal["pretrained", "random"] = option(
        "pretrained", "of seq2seq: those in `path`, or random ones of its shape"
    )
    config: dict[str, Any] = option({}, "of seq2seq: values over those of its config.json")
    hidden_size: int = option(64, "width", **at_least(1))
    num_hidden_layers: int = option(3, "layers", **at_least(1))
    num_attention_heads: int = option(4, "heads per layer", **at_least(1))
    intermediate_size: int = option(128, "width inside a layer's MLP", **at_least(1))
    patch_size: int | None = option(
        None,
        "an image is cut into patches of this squared; null: 2, of images above 32 pixels 16",
        unit="pixels",
        **at_least(1),
    )
    image_size: int | None = option(
        None, "side of the images; null: as the tasks have them", unit="pixels", **at_least(1)
    )
    num_channels: int | None = option(
        None, "1: grey, as the digits; 3: colour; null: as the tasks have them", **at_least(1)
    )
    num_decoder_layers: int | None = option(
        None, "of unify; null: num_hidden_layers", **at_least(1)
    )
    dropout: float = option(0.0, "of unify")

    def __post_init__(self) -> None:
        self._check_kind()
        if self.hidden_size % self.num_attention_heads:
            raise SettingsError(
                f"model.hidden_size={self.hidden_size}: must be a multiple of "
                f"model.num_attention_heads={self.num_attention_heads}"
            )
        if self.side % self.patch:
            raise SettingsError(
                f"model.image_size={self.side}: must be a multiple of model.patch_size={self.patch}"
            )
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"model.dropout={self.dropout}: must be in [0, 1)")

    @property
    def side(self) -> int:
        """Of the images, in pixels; without any task that says it the digits' 8."""
        return self.image_size or 8

    @property
    def channels(self) -> int:
        return self.num_channels or 1

    @property
    def patch(self) -> int:
        return self.patch_size or (2 if self.side <= 32 else 16)

    def _check_kind(self) -> None:
        """What this kind of model does not look at is refused."""
        of_folders = ("path", "tokenizer", "weights", "config")
        unread = {"vit": of_folders, "unify": ("path", "weights", "config")}.get(self.kind)
        why = "is of model=seq2seq" if self.kind == "unify" else "is of models that read text"
        if unread is None:
            if self.path is None:
                raise SettingsError(
                    "model.path is missing: seq2seq is read from a folder that save_pretrained wrote, "
                    "from pkg://<package>/<folder>, or by its name from the hub"
                )
            unread = tuple(k for k in options(ModelSettings) if k not in (*of_folders, "_name"))
            why = "has no effect: the model in model.path has a shape of its own; see model.config"
        for key in unread:
            value = getattr(self, key)
            if value != default_of(options(ModelSettings)[key]):
                raise SettingsError(f"model.{key}={value}: {why}")


@dataclass(frozen=True)
class DeltaSettings:
    """The LoRA adapter of a task and the weights of its O-LoRA penalties."""

    lora_dim: int = option(8, "rank of an adapter")
    lora_alpha: float = option(32.0, "an adapter counts alpha / rank")
    lora_dropout: float = option(0.0, "on the adapter's input")
    target_modules: tuple[str, ...] = option(
        ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"], "layers that get an adapter"
    )
    lamda_1: float = option(0.1, "weight of orthogonality to the ancestors; 0: off")
    lamda_2: float = option(0.0, "weight of the adapter's norm; 0: off")

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
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

    dev_share: float = option(0.25, "of each digit's images, for selection")
    test_share: float = option(0.25, "of each digit's images, for the report")
    split_seed: int = option(0, "of the division; apart from `seed`")

    def __post_init__(self) -> None:
        if not (
            self.dev_share > 0 and self.test_share > 0 and self.dev_share + self.test_share < 1
        ):
            raise SettingsError(
                f"evaluation.dev_share={self.dev_share}, evaluation.test_share={self.test_share}: "
                "both must be above 0 and leave something to train on (sum below 1)"
            )


@dataclass(frozen=True)
class MemorySettings:
    """What training may take of a device."""

    budget_mib: int | None = option(
        None,
        "GPU memory of a process; more is an out-of-memory error of its own. null: no limit",
        unit="MiB",
        **at_least(1),
    )


@dataclass(frozen=True)
class TrainerExtras:
    """Options of `trainer` that transformers.TrainingArguments has no name for."""

    save_dir: str | None = option(
        None,
        "folder of the checkpoint; null: checkpoint/ of the job",
        check=lambda v: v is None or "://" not in v,
        rule="must be a local path; copy the checkpoint after the job",
    )
    patience: int = option(-1, "stop after so many validations without a better one; -1: never")
    max_valid_steps: int | None = option(
        None, "validate on so many micro-batches; null: on all", **at_least(1)
    )
    stop_time_hours: float = option(0.0, "stop training after; 0: never", unit="h", **at_least(0))
    log_format: str | None = option(None, "of the training log: json, none, simple or tqdm")
    fp16_scale_window: int | None = option(
        None, "double the loss scale after so many updates; null: torch's 2000", unit="updates"
    )
    fp16_init_scale: float = option(128.0, "first loss scale of fp16", **at_least(0))
    min_loss_scale: float = option(1e-4, "a loss scale below it ends the training", **at_least(0))


@dataclass(frozen=True)
class TrainerSettings(TrainerExtras, HFArguments):
    """How a job trains: arguments of transformers.TrainingArguments by their names, and some more."""

    REFUSED: ClassVar[Mapping[str, str]] = REFUSED

    learning_rate: float = option(1e-3, "the highest of the schedule", **at_least(0))
    num_train_epochs: float = option(5.0, "unless max_steps is set", unit="epochs", **at_least(0))
    per_device_train_batch_size: int = option(
        16, "where a task has no micro_batch_size of its own", unit="rows", **at_least(1)
    )
    gradient_accumulation_steps: int = option(
        1, "where a task has no update_freq of its own", unit="micro-batches", **at_least(1)
    )
    lr_scheduler_type: SchedulerType = option("constant", "how the learning rate goes on")
    logging_steps: float = option(20, "log every so many updates", unit="updates")
    dataloader_pin_memory: bool = option(False, "page-locked memory for batches")


# Where the app's default is not that of transformers.
TRAINER_DEFAULTS: Mapping[str, Any] = {
    name: default_of(one)
    for name, one in options(TrainerSettings).items()
    if name in options(HFArguments) and default_of(one) != default_of(options(HFArguments)[name])
}


@dataclass(frozen=True)
class Run:
    """One training run: which tasks, from which parent, how, and on what it is evaluated."""

    tasks: tuple[Task, ...]  # trained together; one, unless it is a multi-task run
    seen_tasks: tuple[Task, ...]
    init_from: Path | None
    model: ModelSettings
    delta: DeltaSettings
    trainer: dict[str, Any]  # arguments of transformers.TrainingArguments, by their own names
    extras: TrainerExtras  # the other options of `trainer`
    memory: MemorySettings
    evaluation: EvaluationSettings
    seed: int

    @property
    def task(self) -> Task:
        """The task of a run that has only one."""
        (task,) = self.tasks
        return task
