"""The section of a task: its rows, how they become text or pictures, loss, metrics and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from train.config.typed import SettingsError, changed, option

CLASSES = 10  # digits 0 to 9: the rows of the model's head
Criterion = Literal["cross_entropy", "label_smoothed_cross_entropy"]
# In PIL's order.
Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
BELOW_1: Any = {"check": lambda v: 0 <= v < 1, "rule": "must be 0 or more and below 1"}


@dataclass(frozen=True)
class InstructionSettings:
    """What a task's model reads and what it answers, as templates."""

    template: str | list[str] = option(
        help="'[IMAGE:image] what digit? -> [TEXT:label]'; several: a list, or ' ||| ' between them"
    )
    decoder_plain_with_loss: bool = option(False, "train on the plain text of the answer as well")


@dataclass(frozen=True)
class DatasetSettings:
    """Where a task's rows come from, and how many go into an update."""

    train_data: str | list[str] | None = option(
        None, "files; ' ||| ' or a list: mixed; ',': one per epoch; x_[1-3]: three files"
    )
    valid_data: str | list[str] | None = option(None, "rows for selection; null: none are scored")
    test_data: str | list[str] | None = option(None, "rows for the report, never for selection")
    selected_cols: str | None = option(None, "'0:id,4:img': column index or header name : slot")
    sample_ratios: float | list[float] | str = option(
        1.0, "share of the rows of each source; above 1 repeats", unit="rows/row"
    )
    micro_batch_size: int | None = option(
        None, "null: trainer.per_device_train_batch_size", unit="rows", least=1
    )
    micro_valid_batch_size: int | None = option(None, "null: 256", unit="rows", least=1)
    update_freq: int | list[int] | None = option(
        None,
        "micro-batches per update, a list: per epoch; null: trainer.gradient_accumulation_steps",
    )
    num_workers: int = option(0, "processes that prepare rows; 0: the training itself", least=0)
    prefetch_factor: int = option(5, "updates each of them prepares ahead", least=1)
    header: bool = option(False, "the first line of a file names its columns")
    separator: str = option(
        "\t", "between columns", check=lambda v: len(v) == 1, rule="must be one character"
    )
    cached: bool = option(False, "of old files: rows are kept in memory either way")
    shuffle: bool = option(True, "a new order every epoch")
    interleaved_multiple_reader: bool = option(
        False, "take from the sources in proportion instead of one after another"
    )
    fixed_validation_seed: int | None = option(7, "seed of what is random in validation")
    sample: str | None = option(
        None, "of few_shot: the name before _train.tsv; null: the only one there is"
    )
    image_dir: str | None = option(
        None, "of object_detection: folder of the images; null: beside the annotations"
    )
    shortest_edges: list[int] = option(
        [],
        "of object_detection: a training image is resized to one of them; empty: as the processor says",
        unit="pixels",
    )
    made_rows: int = option(
        512,
        "of classes with a head, without train_data: training rows made up by rule; a fourth as many for "
        "dev and test",
        unit="rows",
        least=1,
    )
    task_config: str | None = option(
        None, "of cl_benchmark: folder in task_config_dir; null: the one called like the task"
    )


@dataclass(frozen=True)
class TextPreprocess:
    """How text becomes token ids."""

    ans2label: dict[str, int] | str | None = option(
        None, "the answers of closed_set: a mapping, its JSON text, or a file of 'label<TAB>int'"
    )
    max_src_length: int | None = option(None, "null: the task's", unit="tokens", least=1)
    max_tgt_length: int = option(1024, "cut answers to", unit="tokens", least=1)
    doc_stride: int = option(
        128, "of question_answering: what windows of a long context share", unit="tokens", least=0
    )
    mask_span_distribution: Literal["span-poisson", "none"] = option(
        "span-poisson", "lengths of the spans of mask_ratio; none: every word by itself"
    )
    poisson_lambda: float = option(3.0, "mean span length", unit="words", least=0)
    random_ratio: float = option(
        0.0,
        "share of masked words that become random ones",
        check=lambda v: 0 <= v <= 1,
        rule="must lie in [0, 1]",
    )
    replace_length: Literal[-1, 0, 1] = option(
        -1, "-1: a mask per word; 1: a mask per span; 0: none"
    )


@dataclass(frozen=True)
class ImagePreprocess:
    """How an image becomes pixels of the model."""

    patch_image_size: int = option(480, "images are resized to this squared", unit="pixels")
    imagenet_default_mean_and_std: bool = option(False, "normalise by ImageNet's; else by 0.5")
    interpolation: Interpolation = option("bicubic", "of the resize")
    processor: str | None = option(
        None, "folder of an image processor, as model.path; it alone says size, mean and deviation"
    )

    def __post_init__(self) -> None:
        for key, value in changed(self).items() if self.processor is not None else ():
            if key not in ("processor", "patch_image_size"):
                raise SettingsError(
                    f"preprocess: {key}={value} has no effect beside processor={self.processor}, "
                    "which says it itself; remove one of them"
                )


@dataclass(frozen=True)
class PreprocessSettings:
    """By the name a slot's `preprocess=` gives."""

    text: TextPreprocess = option(TextPreprocess, "slots with preprocess=text (default of TEXT)")
    image: ImagePreprocess = option(ImagePreprocess, "preprocess=image (default of IMAGE)")
    imagenet: ImagePreprocess = option(ImagePreprocess, "preprocess=imagenet")


@dataclass(frozen=True)
class LossSettings:
    """The options of one criterion."""

    label_smoothing: float = option(0.0, "of label_smoothed_cross_entropy", **BELOW_1)
    report_accuracy: bool = option(False, "log the accuracy of the training rows as well")
    drop_worst_ratio: float = option(
        0.0, "share of the rows with the highest loss left out", **BELOW_1
    )
    drop_worst_after: int = option(0, "from this update on", unit="updates", least=0)
    sentence_avg: bool = option(False, "divide by rows instead of by tokens")
    weight: float = option(1.0, "of this task's loss", least=0)
    is_active: bool = option(True, "OFASys's; false: as if the criterion were not named")


@dataclass(frozen=True)
class CriterionSettings(LossSettings):
    """`{_name: X, ...}` or `{X: {...}}`: both mean criterion X."""

    kind: Criterion | None = option(None, "the criterion", key="_name")
    cross_entropy: LossSettings | None = option(None, "the nested form")
    label_smoothed_cross_entropy: LossSettings | None = option(None, "the nested form")


@dataclass(frozen=True)
class MetricSettings:
    """One metric of a task; naming it activates it."""

    target_field: str = option(help="the column that holds the right answer")
    ans2label: dict[str, int] | str | None = option(None, "answers as numbers")
    beta: float = option(1.0, "of f_measure", least=0)


@dataclass(frozen=True)
class TaskEvaluation:
    """How a task's answers are generated and scored."""

    metrics: dict[str, MetricSettings] = option({}, "metric name -> its options")
    generator_args: dict[str, Any] | str | None = option(
        None,
        "of generation, or JSON text; null: greedy, 50 new tokens at most; of unify {beam: 5, "
        "max_len_b: 32, no_repeat_ngram_size: 3}",
    )
    n_best: int = option(
        20, "of question_answering: starts and ends of each window that are paired", least=1
    )
    max_answer_length: int = option(
        30, "of question_answering: spans that are longer are no answers", unit="tokens", least=1
    )
    null_threshold: float = option(
        0.0,
        "of question_answering with questions that have no answer: how far no answer has to be ahead of "
        "the best span",
    )
    output_dir: str | None = option(None, "folder for the answers; null: they are not kept")


@dataclass(frozen=True)
class Task:
    """One task instance: `task.<name>` of the configuration."""

    name: str  # of the instance: the key under `task`
    kind: str = option(
        help="the task class; default: text with dataset.train_data, else the instance's name",
        key="_name",
    )
    options: tuple[int, ...] = option((), "of class digits: the digits of this task")
    instruction: InstructionSettings | None = option(None, "templates")
    dataset: DatasetSettings = option(DatasetSettings, "rows")
    preprocess: PreprocessSettings = option(PreprocessSettings, "slots to model inputs")
    criterion: CriterionSettings = option(CriterionSettings, "the loss")
    evaluation: TaskEvaluation = option(TaskEvaluation, "generation and metrics")
    max_src_length: int = option(128, "cut what the model reads to", unit="tokens", least=1)
    max_tgt_length: int = option(30, "cut what it answers to", unit="tokens", least=1)

    def __post_init__(self) -> None:
        digits = {o for o in self.options if 0 <= o < CLASSES}
        if self.kind == "digits" and not 2 <= len(self.options) == len(digits):
            raise SettingsError(
                f"task.{self.name}.options={list(self.options)}: "
                f"give at least two different digits from 0 to {CLASSES - 1}"
            )
