"""Sections of the configuration as dataclasses, and the run that all of them together describe.

Each option has a default, a unit and one line of help: `python train.py --info <section>` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from train.config.hf_arguments import HFArguments, SchedulerType
from train.config.memory import MemorySettings
from train.config.merging import MergeSettings
from train.config.refused import REFUSED
from train.config.task import Task
from train.config.text_data import TextData
from train.config.trackers import PACKAGES, trackers
from train.config.typed import ABOVE_0, BELOW_1, SettingsError, changed, option, options


@dataclass(frozen=True)
class ModelSettings:
    """The model of the first task; see conf/model.

    vit: one image, one answer of a closed set. unify: an encoder-decoder of text and images. Both are
    small and begin at random. seq2seq (T5, BART), causal (LLaMA, GPT) and encoder (BERT): text models
    from a folder of Hugging Face. pretrained: whichever of these three the folder's model_type is. headed:
    the model that transformers has for the task's class, such as AutoModelForQuestionAnswering.
    """

    kind: Literal["vit", "unify", "seq2seq", "causal", "encoder", "headed", "pretrained"] = option(
        "vit", "vit, unify, seq2seq, causal, encoder, headed or pretrained", key="_name"
    )
    path: str | None = option(
        None,
        "of models from a folder: the folder, pkg://<package>/<folder>, or a name of the hub; null, of "
        "headed alone: a tiny random one",
    )
    tokenizer: str | None = option(
        None, "likewise, a tokenizer alone; null: bytes for unify, else the one in `path`"
    )
    weights: Literal["pretrained", "random"] = option(
        "pretrained", "of models from a folder: those in `path`, or random ones of its shape"
    )
    config: dict[str, Any] = option(
        {}, "of models from a folder: values over those of its config.json"
    )
    head: str | None = option(None, "of headed: a task class; null: that of the tasks")
    hidden_size: int = option(64, "width", least=1)
    num_hidden_layers: int = option(3, "layers", least=1)
    num_attention_heads: int = option(4, "heads per layer", least=1)
    intermediate_size: int = option(128, "width inside a layer's MLP", least=1)
    patch_size: int | None = option(
        None,
        "an image is cut into patches of this squared; null: 2, of images above 32 pixels 16",
        unit="pixels",
        least=1,
    )
    image_size: int | None = option(
        None, "side of the images; null: as the tasks have them", unit="pixels", least=1
    )
    num_channels: int | None = option(
        None, "1: grey, as the digits; 3: colour; null: as the tasks have them", least=1
    )
    num_decoder_layers: int | None = option(None, "of unify; null: num_hidden_layers", least=1)
    dropout: float = option(0.0, "of unify", **BELOW_1)

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

    @property
    def is_pretrained(self) -> bool:
        """True where training begins with weights that are there already."""
        stored = self.kind not in ("vit", "unify") and self.path is not None
        return stored and self.weights == "pretrained"

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
        of_folders = {"path", "tokenizer", "weights", "config", "head"}
        if self.kind == "vit":
            unread, why = of_folders, "is of models that read text"
        elif self.kind == "unify":
            unread = of_folders - {"tokenizer"}
            why = "is of model=seq2seq, causal, encoder, pretrained and headed"
        elif self.path is None and self.kind != "headed":
            raise SettingsError(
                f"model.path is missing: {self.kind} is read from a folder that save_pretrained wrote, "
                "from pkg://<package>/<folder>, or by its name from the hub"
            )
        else:
            unread = options(ModelSettings).keys() - of_folders - {"_name"}
            why = "has no effect: the model in model.path has a shape of its own; see model.config"
        for key, value in changed(self).items():
            if key in unread:
                raise SettingsError(f"model.{key}={value}: {why}")


@dataclass(frozen=True)
class DeltaSettings:
    """The LoRA adapter of a task and the weights of its O-LoRA penalties; or another delta."""

    kind: Literal[
        "olora", "inclora", "seqlora", "ewc", "osf", "seqft", "ia3", "adapter", "prefix"
    ] = option(
        "olora",
        "the method: olora; inclora: without its penalty; seqlora: one adapter, trained on; ewc: the "
        "same with a penalty; osf: the weights, but for their main directions; seqft: the whole model; "
        "ia3, adapter, prefix: another delta, one for the chain, trained on",
        key="_name",
    )
    first: Literal["full", "adapter"] | None = option(
        None,
        "what the first task of a chain trains: the whole model, or an adapter as every later task; "
        "null: an adapter where the weights are pretrained",
    )
    lora_dim: int = option(
        8,
        "rank of an adapter",
        check=lambda v: v >= 1,
        rule="the rank of an adapter must be at least 1",
    )
    lora_alpha: float = option(32.0, "an adapter counts alpha / rank", **ABOVE_0)
    lora_dropout: float = option(0.0, "on the adapter's input", **BELOW_1)
    target_modules: tuple[str, ...] | None = option(
        None,
        "layers that get an adapter; null: q and v of text models from a folder, all of a layer for "
        "vit and unify",
    )
    lamda_1: float = option(0.1, "weight of orthogonality to the ancestors; 0: off", least=0)
    lamda_2: float = option(0.0, "weight of the adapter's norm; 0: off", least=0)
    ewc_lambda: float = option(1.0, "weight of ewc's penalty", least=0)
    effective_rank: float = option(
        0.5,
        "directions of a layer that osf freezes: a share below 1, or their number",
        **ABOVE_0,
    )
    replay_rows: int = option(
        0, "training rows of each earlier task that are kept and mixed in; 0: none", least=0
    )
    start_from: str | None = option(
        None,
        "folder of a delta, or a merge_plan.json, that the new delta begins as; null: as drawn",
    )
    size: int = option(12, "of adapter: width of its bottleneck", least=1)
    num_tokens: int = option(120, "of prefix: how many keys and values", unit="tokens", least=1)
    bottleneck: int = option(24, "of prefix: width between its table and keys", least=1)


@dataclass(frozen=True)
class EvaluationSettings:
    """How the images of a task are divided; the same for every job of a sweep."""

    dev_share: float = option(0.25, "of each digit's images, for selection")
    test_share: float = option(0.25, "of each digit's images, for the report")
    split_seed: int = option(0, "of the division; apart from `seed`")
    score: Literal["seen", "current", "worst"] = option(
        "seen", "of a job: mean over the tasks seen, over its own, or the lowest of those seen"
    )

    def __post_init__(self) -> None:
        shares = (self.dev_share, self.test_share)
        if not (min(shares) > 0 and sum(shares) < 1):
            raise SettingsError(
                f"evaluation.dev_share={self.dev_share}, evaluation.test_share={self.test_share}: "
                "both must be above 0 and leave something to train on (sum below 1)"
            )


@dataclass(frozen=True)
class TrainerExtras:
    """Options of `trainer` that transformers.TrainingArguments has no name for."""

    save_model: bool = option(True, "false: the trained model is not written")
    save_dir: str | None = option(
        None,
        "folder of the checkpoint; null: checkpoint/ of the job",
        check=lambda v: v is None or "://" not in v,
        rule="must be a local path; copy the checkpoint after the job",
    )
    patience: int = option(-1, "stop after so many validations without a better one; -1: never")
    ties_improve: bool | None = option(
        None,
        "a validation as good as the best one is better, and one behind a training loss below 1e-7 is not; "
        "null: of few-shot tasks alone",
    )
    max_valid_steps: int | None = option(
        None, "validate on so many micro-batches; null: on all", least=1
    )
    do_train: bool = option(True, "false: evaluate what the job starts with, untrained")
    do_test: bool = option(True, "false: no test rows are evaluated, as evaluate_test=false")
    stop_time_hours: float = option(0.0, "stop training after; 0: never", unit="h", least=0)
    log_format: str | None = option(
        None,
        "of the training log: json, none or simple",
        check=lambda v: v in (None, "json", "none", "simple"),
        rule="a job's log is a file; choose simple, json or none",
    )
    fp16_scale_window: int | None = option(
        None, "double the loss scale after so many updates; null: torch's 2000", unit="updates"
    )
    fp16_init_scale: float = option(128.0, "first loss scale of fp16", least=0)
    min_loss_scale: float = option(1e-4, "a loss scale below it ends the training", least=0)


@dataclass(frozen=True)
class TrainerSettings(TrainerExtras, HFArguments):
    """How a job trains: arguments of transformers.TrainingArguments by their names, and some more."""

    REFUSED: ClassVar[Mapping[str, str]] = REFUSED

    learning_rate: float = option(1e-3, "the highest of the schedule", least=0)
    num_train_epochs: float = option(5.0, "unless max_steps is set", unit="epochs", least=0)
    per_device_train_batch_size: int = option(
        16, "where a task has no micro_batch_size of its own", unit="rows", least=1
    )
    gradient_accumulation_steps: int = option(
        1, "where a task has no update_freq of its own", unit="micro-batches", least=1
    )
    batch_size: int | None = option(
        None,
        "of an update; above micro_batch_size it is split by accumulation; null: as the two options above",
        unit="rows",
        least=1,
    )
    micro_batch_size: int = option(
        16, "of batch_size: the most that go through the model at once", unit="rows", least=1
    )
    lr_scheduler_type: SchedulerType = option("constant", "how the learning rate goes on")
    logging_steps: float = option(20, "log every so many updates", unit="updates")
    dataloader_pin_memory: bool = option(False, "page-locked memory for batches")
    report_to: str | list[str] | None = option(
        "none", f"trackers that get the training log as well: {', '.join(PACKAGES)}, or a list"
    )

    def __post_init__(self) -> None:
        trackers(self.report_to)
        size, micro = self.batch_size, self.micro_batch_size
        if size is not None and size > micro and size % micro:
            raise SettingsError(
                f"trainer.batch_size={size}: above trainer.micro_batch_size={micro} it must be a multiple of it, "
                f"for instance {size - size % micro}"
            )

    @property
    def split(self) -> dict[str, int]:
        """`batch_size` as rows of a micro-batch, and how many of them an update has; empty without it."""
        if self.batch_size is None:
            return {}
        rows = min(self.batch_size, self.micro_batch_size)
        return {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": self.batch_size // rows,
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
    merge: MergeSettings
    text: TextData
    evaluate_test: bool | str  # as in TopLevel; train.main makes it a decision for this run
    seed: int

    @property
    def task(self) -> Task:
        """The task of a run that has only one."""
        (task,) = self.tasks
        return task
