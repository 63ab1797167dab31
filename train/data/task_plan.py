"""What a job's tasks come to, worked out before anything heavy is imported.

Templates, data strings, answers, metrics and limits are read here once; every mistake that the
configuration alone shows is a SettingsError that names the task.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.config.sections import (
    CLASSES,
    CRITERIA,
    ImagePreprocess,
    LossSettings,
    MetricSettings,
    ModelSettings,
    Run,
    Task,
    TextPreprocess,
    TrainerExtras,
)
from train.config.typed import Problem, SettingsError, SettingsErrors, problems_of
from train.data.instruction import Slot, Template, TemplateError, parse_all
from train.data.pretrained import CONFIG, PROCESSOR, described, require_tokenizer
from train.data.specs import Column, DataSpecError, Source, columns, ratios, sources
from train.data.task_metrics import logged_names

CLASS_COLUMNS: Mapping[str, tuple[str, ...] | None] = {  # null: whatever the files have
    "arithmetic": ("question", "answer"),
    "digits": ("image", "label"),
    "parity": ("bits", "answer"),
    "sentiment": ("review", "label"),
    "text": None,
}
IMAGE_ADAPTORS = ("image_patches",)  # explicit names; without the attribute it is this one
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# generator_args, by fairseq's names and Hugging Face's -> argument of `generate`
GENERATION: Mapping[str, str] = {
    "beam": "num_beams",
    "num_beams": "num_beams",
    "max_len_b": "max_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "lenpen": "length_penalty",
    "length_penalty": "length_penalty",
    "min_len": "min_new_tokens",
    "min_new_tokens": "min_new_tokens",
}


@dataclass(frozen=True)
class DataPlan:
    """Files a task is read from; without any its class makes up the rows."""

    train: tuple[Source, ...]
    valid: tuple[Source, ...]
    test: tuple[Source, ...]
    columns: tuple[Column, ...]
    ratios: tuple[float, ...]


@dataclass(frozen=True)
class TaskPlan:
    """One task, ready to be trained."""

    task: Task
    templates: tuple[Template, ...]
    data: DataPlan
    answers: Mapping[str, int] | None  # of a closed set: text -> number
    text: TextPreprocess
    images: Mapping[str, ImagePreprocess]  # by the names the templates use
    max_src_length: int
    max_tgt_length: int
    decoder_plain_with_loss: bool
    loss: LossSettings
    metrics: Mapping[str, MetricSettings]  # the first one's first name is the task's score
    generation: Mapping[str, Any]  # arguments of Hugging Face's `generate`

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def logged(self) -> tuple[str, ...]:
        """Names under which the task's metrics are logged; the first one is its score."""
        return tuple(n for m, s in self.metrics.items() for n in logged_names(m, s.beta))

    @property
    def is_scored(self) -> bool:
        """Whether there are rows for selection: classes that make up their rows have them."""
        return bool(self.data.valid) or not self.data.train

    @property
    def is_image_choice(self) -> bool:
        """One image read, one answer of a closed set: what a classifier can do."""
        read = [[s.type for s in t.side("encoder") if s.text is None] for t in self.templates]
        return self.answers is not None and all(types == ["IMAGE"] for types in read)


def plan_task(task: Task) -> TaskPlan:
    """Raises SettingsError."""
    try:
        return _plan(task)
    except (TemplateError, DataSpecError) as error:
        part = "instruction.template" if isinstance(error, TemplateError) else "dataset"
        wrong = Problem(f"task.{task.name}.{part}", f"task.{task.name}: {error}")
        raise SettingsErrors([wrong]) from error


def _plan(task: Task) -> TaskPlan:
    where = f"task.{task.name}"
    if task.instruction is None:
        raise SettingsError(
            f"{where}.instruction.template is missing: say what the model reads and answers, such "
            "as '[TEXT:question] -> [TEXT:answer]'"
        )
    templates = parse_all(task.instruction.template)
    data = _data(task, where)
    known = _columns(task, data, where)
    target = templates[0].target
    for slot in (s for t in templates for s in t.slots if s.text is None):
        if known is not None and slot.name not in known:
            raise SettingsError(
                f"{where}.instruction.template: {slot} names the column '{slot.name}', but rows "
                f"have {', '.join(known)}"
            )
        _check_slot(task, slot.type, slot.preprocess, slot.attributes.get("adaptor"), str(slot))
    answers = None
    if any(t.target.has("closed_set") for t in templates):
        answers = _answers(task, where)
        _check_closed_set(templates, where)
    metrics = dict(task.evaluation.metrics)
    if not metrics:
        metrics = {
            "accuracy" if answers is not None else "exact_match": MetricSettings(target.name)
        }
    for name, settings in metrics.items():
        try:
            logged_names(name, settings.beta)
        except ValueError as error:
            raise SettingsError(f"{where}.evaluation.metrics.{name}: {error}") from None
        if known is not None and settings.target_field not in known:
            raise SettingsError(
                f"{where}.evaluation.metrics.{name}.target_field={settings.target_field}: "
                f"rows have {', '.join(known)}"
            )
        if settings.ans2label is None and answers is not None:
            metrics[name] = replace(settings, ans2label=dict(answers))
    return TaskPlan(
        task=task,
        templates=templates,
        data=data,
        answers=answers,
        text=_text(task, where),
        images={
            name: _image(getattr(task.preprocess, name), f"{where}.preprocess.{name}")
            for name in ("image", "imagenet")
        },
        max_src_length=task.preprocess.text.max_src_length or task.max_src_length,
        max_tgt_length=min(task.max_tgt_length, task.preprocess.text.max_tgt_length),
        decoder_plain_with_loss=task.instruction.decoder_plain_with_loss,
        loss=_criterion(task, where),
        metrics=metrics,
        generation=_generation(task, where),
    )


def _data(task: Task, where: str) -> DataPlan:
    settings = task.dataset
    if task.kind not in CLASS_COLUMNS:
        from train.config.typed import nearest

        raise SettingsError(
            f"{where}._name={task.kind}: no such task class{nearest(task.kind, CLASS_COLUMNS)} "
            f"(there are {', '.join(CLASS_COLUMNS)}). A task without `_name` that names files in "
            "dataset.train_data is of class text; else its class is called like the task"
        )
    train, valid, test = (
        sources(text) for text in (settings.train_data, settings.valid_data, settings.test_data)
    )
    from_files = CLASS_COLUMNS[task.kind] is None
    if not from_files:
        given = [k for k in ("train_data", "valid_data", "test_data") if getattr(settings, k)]
        if given:
            raise SettingsError(
                f"{where}.dataset.{given[0]}: class {task.kind} makes its own rows; "
                "set _name: text to read files"
            )
        return DataPlan((), (), (), (), ratios(settings.sample_ratios, 1))
    if not train:
        raise SettingsError(f"{where}.dataset.train_data is not set: class text reads files")
    files = {"train_data": train, "valid_data": valid, "test_data": test}
    for key, part in files.items():
        for file in (f for source in part for f in source):
            if not Path(file).is_file():
                raise SettingsError(
                    f"{where}.dataset.{key}: no file {file} (looked from {Path.cwd()}; paths are "
                    "relative to the working directory)"
                )
    for one, other in itertools.combinations(files, 2):
        both = _paths(files[one]) & _paths(files[other])
        if both:
            raise SettingsError(
                f"{where}.dataset: {min(both)} is in {one} and in {other}: training, selection and "
                "the final test must not share rows"
            )
    if len(settings.separator) != 1:
        raise SettingsError(
            f"{where}.dataset.separator={settings.separator!r}: must be one character"
        )
    return DataPlan(
        train,
        valid,
        test,
        columns(settings.selected_cols),
        ratios(settings.sample_ratios, len(train)),
    )


def _paths(part: Sequence[Source]) -> set[Path]:
    return {Path(file).resolve() for source in part for file in source}


def _columns(task: Task, data: DataPlan, where: str) -> tuple[str, ...] | None:
    own = CLASS_COLUMNS[task.kind]
    return own if own is not None else tuple(column.name for column in data.columns)


def _check_slot(task: Task, kind: str, preprocess: str, adaptor: Any, shown: str) -> None:
    where = f"task.{task.name}.instruction.template: {shown}"
    known = ("text",) if kind == "TEXT" else ("digits", "image", "imagenet")
    if preprocess not in known:
        raise SettingsError(
            f"{where}: preprocess={preprocess} does not go with {kind}; it can be {', '.join(known)}"
        )
    adaptors = ("text",) if kind == "TEXT" else IMAGE_ADAPTORS
    if adaptor is not None and adaptor not in adaptors:
        raise SettingsError(
            f"{where}: adaptor={adaptor} is not supported; leave the attribute out, {kind} slots "
            f"have {adaptors[0]}"
        )
    if preprocess == "digits" and task.kind != "digits":
        raise SettingsError(f"{where}: preprocess=digits takes the images of class digits alone")
    if kind == "IMAGE" and task.kind == "digits" and preprocess != "digits":
        raise SettingsError(f"{where}: images of class digits are read by preprocess=digits")
    if kind == "IMAGE" and preprocess != "digits":
        settings: ImagePreprocess = getattr(task.preprocess, preprocess)
        if settings.interpolation not in INTERPOLATIONS:
            raise SettingsError(
                f"task.{task.name}.preprocess.{preprocess}.interpolation="
                f"{settings.interpolation}: must be one of {', '.join(INTERPOLATIONS)}"
            )


def _answers(task: Task, where: str) -> dict[str, int]:
    """Text -> number of a closed set: a mapping, its JSON text, or lines `label<TAB>int`."""
    key = f"{where}.preprocess.text.ans2label"
    value = task.preprocess.text.ans2label
    if value is None:
        if task.kind == "digits":
            return {str(option): option for option in task.options}
        raise SettingsError(
            f"{key} is not set, but the target of the instruction is closed_set: give its answers, "
            "such as {no: 0, yes: 1}, JSON text, or a file with lines label<TAB>number"
        )
    if isinstance(value, str):
        value = _answers_of_text(value, key)
    if not value or len(set(value.values())) < len(value):
        raise SettingsError(f"{key}={value}: must give every answer a number of its own")
    return {str(k): v for k, v in value.items()}


def _answers_of_text(text: str, key: str) -> dict[str, int]:
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
            return {str(k): int(v) for k, v in found.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise SettingsError(
                f"{key}={text!r}: is no JSON mapping to numbers: {error}"
            ) from error
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
        pairs = [line.rsplit("\t", 1) for line in lines if line]
        return {label: int(number) for label, number in pairs}
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{key}={text!r}: must be a mapping, its JSON text, or a file with lines "
            f"label<TAB>number: {error}"
        ) from error


def _check_closed_set(templates: Sequence[Template], where: str) -> None:
    for template in templates:
        decoder = template.side("decoder")
        place = decoder.index(template.target)
        free = [s for s in decoder[:place] if s.text is None and not s.has("no_loss")]
        if free or place + 1 < len(decoder) or not template.target.has("closed_set"):
            raise SettingsError(
                f"{where}.instruction.template: '{template}': an answer of a closed_set must come "
                "last, behind nothing but plain text and no_loss slots, in all templates"
            )


def _text(task: Task, where: str) -> TextPreprocess:
    settings, key = task.preprocess.text, f"{where}.preprocess.text"
    if settings.mask_span_distribution not in ("span-poisson", "none"):
        raise SettingsError(
            f"{key}.mask_span_distribution={settings.mask_span_distribution}: must be "
            "span-poisson, or none (every word by itself)"
        )
    if settings.replace_length not in (-1, 0, 1):
        raise SettingsError(f"{key}.replace_length={settings.replace_length}: must be -1, 0 or 1")
    if not 0 <= settings.random_ratio <= 1:
        raise SettingsError(f"{key}.random_ratio={settings.random_ratio}: must lie in [0, 1]")
    return settings


def _image(settings: ImagePreprocess, key: str) -> ImagePreprocess:
    """With the size that its processor gives, where that is here to be read."""
    if settings.processor is None:
        return settings
    said = described(settings.processor, PROCESSOR, f"{key}.processor")
    if said is None:  # of the hub: the first image shows it
        return settings
    size = said.get("crop_size" if said.get("do_center_crop") else "size")
    sides = {size} if isinstance(size, int) else set()
    if isinstance(size, Mapping) and size.keys() == {"height", "width"}:
        sides = set(size.values())
    if len(sides) != 1:
        raise SettingsError(
            f"{key}.processor={settings.processor}: gives images of {size}, and models here read "
            "squares; set do_center_crop and crop_size in its preprocessor_config.json"
        )
    [side] = sides
    default = ImagePreprocess().patch_image_size
    if settings.patch_image_size not in (default, side):
        raise SettingsError(
            f"{key}.patch_image_size={settings.patch_image_size}: processor={settings.processor} gives "
            f"{side} pixels; remove one of them"
        )
    return replace(settings, patch_image_size=side)


def _criterion(task: Task, where: str) -> LossSettings:
    """The options of the one criterion, from either form."""
    settings, key = task.criterion, f"{where}.criterion"
    nested = {name: getattr(settings, name) for name in CRITERIA}
    given = {name: options for name, options in nested.items() if options and options.is_active}
    if len(given) + (settings.kind is not None) > 1:
        forms = [*given, *([f"_name: {settings.kind}"] if settings.kind else [])]
        raise SettingsError(f"{key}: {' and '.join(forms)} are both given; one criterion per task")
    kind = settings.kind or next(iter(given), CRITERIA[0])
    if kind not in CRITERIA:
        raise SettingsError(f"{key}._name={kind}: there are {', '.join(CRITERIA)}")
    chosen: LossSettings = next(iter(given.values()), settings)
    if kind == "cross_entropy":
        plain = LossSettings(sentence_avg=chosen.sentence_avg, weight=chosen.weight)
        extra = [
            name
            for name in (
                "label_smoothing",
                "report_accuracy",
                "drop_worst_ratio",
                "drop_worst_after",
            )
            if getattr(chosen, name) != getattr(plain, name)
        ]
        if extra:
            raise SettingsError(
                f"{key}.{extra[0]}={getattr(chosen, extra[0])}: belongs to "
                "label_smoothed_cross_entropy; set criterion._name to it"
            )
    if not 0 <= chosen.label_smoothing < 1:
        raise SettingsError(
            f"{key}.label_smoothing={chosen.label_smoothing}: must be 0 or more and below 1"
        )
    if not 0 <= chosen.drop_worst_ratio < 1:
        raise SettingsError(
            f"{key}.drop_worst_ratio={chosen.drop_worst_ratio}: must be 0 or more and below 1"
        )
    return chosen


def _generation(task: Task, where: str) -> dict[str, Any]:
    key = f"{where}.evaluation.generator_args"
    value = task.evaluation.generator_args
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise SettingsError(f"{key}={value!r}: is no JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise SettingsError(f"{key}={value!r}: must be a mapping")
    made: dict[str, Any] = {}
    for name, number in value.items():
        if name not in GENERATION:
            raise SettingsError(
                f"{key}.{name}={number}: is not supported; there are {', '.join(GENERATION)}"
            )
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise SettingsError(f"{key}.{name}={number!r}: must be a number")
        if GENERATION[name] in made:
            raise SettingsError(f"{key}.{name}: is given twice, under two names")
        made[GENERATION[name]] = number
    return made


def plan_run(job: Run) -> dict[str, TaskPlan]:
    """The tasks a run trains or is evaluated on, by name. Raises SettingsError."""
    plans: dict[str, TaskPlan] = {}
    problems: dict[Problem, None] = {}
    for task in (*job.tasks, *job.seen_tasks):
        try:
            plans[task.name] = plan_task(task)
        except SettingsError as error:
            problems |= dict.fromkeys(problems_of(error))
    if problems:
        raise SettingsErrors(problems)
    if job.init_from is None:  # else it is all in the chain
        _check_folders(job.model)
    model = fitted(job.model, plans.values())
    for plan in plans.values():
        _check_model(plan, model)
    _check_scored([plans[task.name] for task in job.tasks])
    _check_validation(job, plans)
    _check_extras(job.extras)
    limit = job.trainer.get("max_steps", -1)
    if len(job.tasks) > 1 and not (isinstance(limit, int) and limit > 0):
        names = ", ".join(task.name for task in job.tasks)
        raise SettingsError(
            f"trainer.max_steps={limit}: must be above 0, because the tasks {names} are trained "
            "together and share no epoch that could end the training"
        )
    return plans


plan_job = plan_run  # its name until the callers in other rooms are changed


def micro_batch_size(task: Task, trainer: Mapping[str, Any]) -> int:
    """Rows per process in a micro-batch of this task."""
    return task.dataset.micro_batch_size or int(trainer.get("per_device_train_batch_size", 8))


def update_freq(task: Task, trainer: Mapping[str, Any]) -> tuple[int, ...]:
    """Micro-batches of this task in an update, by epoch."""
    value = task.dataset.update_freq or int(trainer.get("gradient_accumulation_steps", 1))
    freq = (value,) if isinstance(value, int) else tuple(value)
    if not freq or min(freq) < 1:
        raise SettingsError(
            f"task.{task.name}.dataset.update_freq={list(freq)}: must be at least 1 in every epoch"
        )
    return freq


def _check_folders(model: ModelSettings) -> None:
    """The folders of a model are there and of the right kind. Raises SettingsError."""
    if model.tokenizer is not None:
        require_tokenizer(model.tokenizer, "model.tokenizer")
    if model.path is None:
        return
    config = described(model.path, CONFIG, "model.path")
    if config is not None and not config.get("is_encoder_decoder"):
        raise SettingsError(
            f"model.path={model.path}: holds a {config.get('model_type', 'model')}, which is no "
            "encoder-decoder; seq2seq takes T5, BART and their kind"
        )
    if model.tokenizer is None:
        require_tokenizer(model.path, "model.path")


def _check_model(plan: TaskPlan, model: ModelSettings) -> None:
    where = f"task.{plan.name}"
    if model.kind == "seq2seq":
        image = next((s for t in plan.templates for s in t.slots if s.type == "IMAGE"), None)
        if image is not None:
            raise SettingsError(
                f"{where}: {image} is an image, and model=seq2seq reads text alone. model=unify_tiny "
                "reads both, with model.tokenizer by the tokenizer of a folder"
            )
    if model.kind == "vit":
        if not plan.is_image_choice:
            raise SettingsError(
                f"{where}: model=vit_tiny reads one image and chooses one answer of a closed_set; "
                f"'{plan.templates[0]}' asks for more. Take model=unify_tiny"
            )
        wrong = [n for n in (plan.answers or {}).values() if not 0 <= n < CLASSES]
        if wrong:
            raise SettingsError(
                f"{where}.preprocess.text.ans2label: {wrong[0]} is no row of the model's head; "
                f"numbers go from 0 to {CLASSES - 1}"
            )
        unread = [s for t in plan.templates for s in t.side("decoder") if s is not t.target]
        if unread or plan.loss.drop_worst_ratio:
            what = f"'{unread[0]}' before the answer" if unread else "criterion.drop_worst_ratio"
            raise SettingsError(f"{where}: {what} needs model=unify_tiny")
    for slot, side, channels in _images(plan):
        if side != model.side:
            key = "" if slot.preprocess == "digits" else _side_key(plan, slot)
            raise SettingsError(
                f"{where}: {slot} gives images of {key}{side} pixels, but "
                f"model.image_size={model.side}; make them equal"
            )
        if channels != model.channels:
            raise SettingsError(
                f"{where}: {slot} gives images of {channels} channels, but "
                f"model.num_channels={model.channels}; set it to {channels}"
            )


def _side_key(plan: TaskPlan, slot: Slot) -> str:
    return f"task.{plan.name}.preprocess.{slot.preprocess}.patch_image_size="


def _images(plan: TaskPlan) -> Iterator[tuple[Slot, int, int]]:
    """The IMAGE slots of a task with side (pixels) and channels of what they give."""
    for slot in (s for t in plan.templates for s in t.slots if s.type == "IMAGE"):
        if slot.preprocess == "digits":
            yield slot, 8, 1
        else:
            yield slot, plan.images[slot.preprocess].patch_image_size, 3


def fitted(model: ModelSettings, plans: Iterable[TaskPlan]) -> ModelSettings:
    """`model` with what it leaves to its tasks: the size of images. Raises SettingsError."""
    if model.kind == "seq2seq":
        return model
    for _, side, channels in (found for plan in plans for found in _images(plan)):
        return replace(
            model,
            image_size=model.image_size or side,
            num_channels=model.num_channels or channels,
        )
    return model


def _check_scored(own: Sequence[TaskPlan]) -> None:
    """Tasks without valid_data are trained along, but a job needs a score."""
    if any(plan.is_scored for plan in own):
        return
    others = "" if len(own) == 1 else "; of tasks trained together one has to have it"
    raise SettingsError(
        f"task.{own[0].name}.dataset.valid_data is not set: a job is selected by its score on "
        f"valid_data{others}"
    )


def _check_extras(extras: TrainerExtras) -> None:
    """Options that have no effect here are refused, unless they say what happens anyway."""
    if extras.log_format not in (None, "json", "none", "simple"):
        raise SettingsError(
            f"trainer.log_format={extras.log_format}: a job's log is a file; choose simple, json or "
            "none"
        )


def _check_validation(job: Run, plans: Mapping[str, TaskPlan]) -> None:
    """The metric for the best model must be logged, and something must ask for it."""
    trainer = job.trainer
    metric, validates = trainer.get("metric_for_best_model"), trainer.get("eval_strategy", "no")
    own = [plans[task.name] for task in job.tasks if plans[task.name].is_scored]
    logged = list(dict.fromkeys(["loss", "score", *(n for plan in own for n in plan.logged)]))
    if len(own) > 1:
        logged += [f"{plan.name}_{n}" for plan in own for n in ("loss", *plan.logged)]
    if metric is not None and str(metric).removeprefix("eval_") not in logged:
        raise SettingsError(
            f"trainer.metric_for_best_model={metric}: is not logged; there are {', '.join(logged)}"
        )
    for key, value in (
        ("metric_for_best_model", metric),
        ("patience", job.extras.patience if job.extras.patience > 0 else None),
    ):
        if value is not None and str(validates) == "no":
            raise SettingsError(
                f"trainer.{key}={value}: nothing validates during training; set "
                "trainer.eval_strategy to epoch or steps (and eval_steps)"
            )
    if job.extras.patience > 0 and metric is None:
        raise SettingsError(
            f"trainer.patience={job.extras.patience}: set trainer.metric_for_best_model, one of "
            f"{', '.join(logged)}"
        )
