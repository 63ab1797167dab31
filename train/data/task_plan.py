"""Plans of a run's tasks: templates, files and options, worked out before anything heavy is imported.

Every mistake that the tasks' configuration alone shows is a SettingsError that names the task. What a
model cannot do with a task is found by its family (`train.model.family`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.config.sections import Run
from train.config.task import (
    ImagePreprocess,
    InstructionSettings,
    LossSettings,
    MetricSettings,
    Task,
    TextPreprocess,
)
from train.config.text_data import CL_BENCHMARK, DETECTION, FEW_SHOT, HEADED, TextData
from train.config.typed import Problem, SettingsError, SettingsErrors, nearest, problems_of
from train.data import few_shot
from train.data.families.read import columns_of, module_of, read_headed
from train.data.instruction import Slot, Template, TemplateError, parse_all
from train.data.specs import DataPlan, DataSpecError, columns, ratios
from train.data.tables import DataError, check_table
from train.data.task_metrics import logged_names
from train.data.task_options import (
    FILES,
    answers_of,
    check_covered,
    files_of,
    generation_of,
    image_of,
    loss_of,
    own_loss,
)
from train.data.text_tasks import CLOSED_TEMPLATE, COLUMNS, TEMPLATE, TextRows, read_text_task

CLASS_COLUMNS: Mapping[str, tuple[str, ...] | None] = {  # null: whatever the files have
    "arithmetic": ("question", "answer"),
    CL_BENCHMARK: COLUMNS,
    "digits": ("image", "label"),
    FEW_SHOT: few_shot.COLUMNS,
    "parity": ("bits", "answer"),
    "sentiment": ("review", "label"),
    "text": None,
    **{kind: columns_of(kind) for kind in HEADED},
}


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
    generation: Mapping[str, Any] | None  # arguments of `generate`; null: as the family has them
    rows: TextRows | None = None  # of class cl_benchmark, read and checked with the configuration
    keep_end: bool = False  # of a verbatim slot that is too long

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def logged(self) -> tuple[str, ...]:
        """Names under which the task's metrics are logged; the first one is its score."""
        return tuple(n for m, s in self.metrics.items() for n in logged_names(m, s.beta))

    @property
    def is_scored(self) -> bool:
        """True where there are rows for selection; classes that generate their rows have them."""
        return bool(self.data.dev) or not self.data.train


def plan_task(task: Task, text: TextData | None = None, seed: int = 0) -> TaskPlan:
    """text, seed: what a task of class cl_benchmark is read by. Raises SettingsError."""
    try:
        return _plan(task, text or TextData(), seed)
    except (TemplateError, DataSpecError) as error:
        part = "instruction.template"
        if isinstance(error, DataSpecError):
            named = re.match(r"dataset\.\w+", str(error))
            part = named[0] if named else "dataset"
        wrong = Problem(f"task.{task.name}.{part}", f"task.{task.name}: {error}")
        raise SettingsErrors([wrong]) from error


def _plan(task: Task, text: TextData, seed: int) -> TaskPlan:
    where, own = f"task.{task.name}", task.instruction
    module = module_of(task.kind) if task.kind in HEADED else None
    if module is not None:
        if own is not None:
            raise SettingsError(
                f"{where}.instruction: class {task.kind} reads its columns as they are; leave it out"
            )
        own = InstructionSettings(module.TEMPLATE)
    elif own is None and task.kind == CL_BENCHMARK:
        own = InstructionSettings(CLOSED_TEMPLATE if text.closed_set else TEMPLATE)
    elif own is None and task.kind == FEW_SHOT:
        own = InstructionSettings(few_shot.TEMPLATE, decoder_plain_with_loss=True)
    elif own is None:
        raise SettingsError(
            f"{where}.instruction.template is missing: say what the model reads and answers, such "
            "as '[TEXT:question] -> [TEXT:answer]'"
        )
    task = replace(task, instruction=own)
    templates = parse_all(own.template)
    data, rows = _data(task, where), None
    if task.kind == CL_BENCHMARK:
        rows = read_text_task(task, text, seed)
    elif task.kind == FEW_SHOT:
        rows = few_shot.read_few_shot(task, text)
    elif module is not None:
        rows = read_headed(task, data, text, seed)
    known = CLASS_COLUMNS[task.kind] or tuple(column.name for column in data.columns)
    target = templates[0].target
    for slot in (s for t in templates for s in t.slots if s.text is None):
        if slot.name not in known:
            raise SettingsError(
                f"{where}.instruction.template: {slot} names the column '{slot.name}', but rows "
                f"have {', '.join(known)}"
            )
        _check_slot(task, slot)
    answers = None
    if any(t.target.has("closed_set") for t in templates):
        answers = answers_of(task, where, () if rows is None else rows.labels)
        _check_closed_set(templates, where)
        if rows is not None:
            parts = {part: getattr(rows, part) for part in FILES}
            check_covered(answers, parts, target.name, where)
    elif module is not None and rows is not None and rows.labels:
        answers = {label: number for number, label in enumerate(rows.labels)}
    metrics = dict(task.evaluation.metrics)
    if not metrics and task.kind == FEW_SHOT:
        metrics = {few_shot.METRICS.get(task.name, "ACC"): MetricSettings("answers")}
    elif not metrics:
        chosen = answers is not None and task.kind != CL_BENCHMARK
        default = module.METRIC if module else "accuracy" if chosen else "exact_match"
        metrics = {default: MetricSettings(target.name)}
    for name, settings in metrics.items():
        try:
            logged_names(name, settings.beta)
        except ValueError as error:
            raise SettingsError(f"{where}.evaluation.metrics.{name}: {error}") from None
        if settings.target_field not in known:
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
        text=task.preprocess.text,
        images={
            name: image_of(getattr(task.preprocess, name), f"{where}.preprocess.{name}")
            for name in ("image", "imagenet")
        },
        max_src_length=task.preprocess.text.max_src_length or task.max_src_length,
        max_tgt_length=min(task.max_tgt_length, task.preprocess.text.max_tgt_length),
        decoder_plain_with_loss=own.decoder_plain_with_loss,
        loss=own_loss(task, where) if task.kind == DETECTION else loss_of(task, where),
        metrics=metrics,
        generation=generation_of(task, where),
        rows=rows,
        keep_end=text.keep_end,
    )


def _data(task: Task, where: str) -> DataPlan:
    settings = task.dataset
    if task.kind not in CLASS_COLUMNS:
        raise SettingsError(
            f"{where}._name={task.kind}: no such task class{nearest(task.kind, CLASS_COLUMNS)} "
            f"(there are {', '.join(CLASS_COLUMNS)}). A task without `_name` that names files in "
            "dataset.train_data is of class text; else its class is called like the task"
        )
    if task.kind in HEADED:
        return files_of(task, where)
    if CLASS_COLUMNS[task.kind] is not None:
        if given := [key for key in FILES.values() if getattr(settings, key)]:
            raise SettingsError(
                f"{where}.dataset.{given[0]}: class {task.kind} makes its own rows; "
                "set _name: text to read files"
            )
        return DataPlan(ratios=ratios(settings.sample_ratios, 1))
    files = files_of(task, where)
    if not files.train:
        raise SettingsError(f"{where}.dataset.train_data is not set: class text reads files")
    shares = ratios(settings.sample_ratios, len(files.train))
    selected = columns(settings.selected_cols)
    for part, key in FILES.items():
        for file in itertools.chain.from_iterable(getattr(files, part)):
            try:
                check_table(Path(file), selected, settings.separator, settings.header)
            except DataError as error:
                raise SettingsError(f"{where}.dataset.{key}: {error}") from error
    return replace(files, columns=selected, ratios=shares)


def _check_slot(task: Task, slot: Slot) -> None:
    where = f"task.{task.name}.instruction.template: {slot}"
    known = ("text",) if slot.type == "TEXT" else ("digits", "image", "imagenet")
    if slot.preprocess not in known:
        raise SettingsError(
            f"{where}: preprocess={slot.preprocess} does not go with {slot.type}; it can be "
            f"{', '.join(known)}"
        )
    only = "text" if slot.type == "TEXT" else "image_patches"
    adaptor = slot.attributes.get("adaptor", only)
    if adaptor != only:
        raise SettingsError(
            f"{where}: adaptor={adaptor} is not supported; leave the attribute out, {slot.type} slots "
            f"have {only}"
        )
    if slot.type == "IMAGE" and (slot.preprocess == "digits") != (task.kind == "digits"):
        raise SettingsError(
            f"{where}: images of class digits are read by preprocess=digits, and no others"
        )


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


def plan_run(run: Run) -> dict[str, TaskPlan]:
    """Plans of the tasks a run trains or is evaluated on, by name. Raises SettingsError."""
    plans: dict[str, TaskPlan] = {}
    problems: dict[Problem, None] = {}
    for task in (*run.tasks, *run.seen_tasks):
        try:
            plans[task.name] = plan_task(task, run.text, run.evaluation.split_seed)
        except SettingsError as error:
            problems |= dict.fromkeys(problems_of(error))
    if problems:
        raise SettingsErrors(problems)
    own = [plans[task.name] for task in run.tasks]
    scored = [plan for plan in own if plan.is_scored]
    if not scored:
        others = "" if len(own) == 1 else "; of tasks trained together one has to have it"
        raise SettingsError(
            f"task.{own[0].name}.dataset.valid_data is not set: a job is selected by its score on "
            f"valid_data{others}"
        )
    _check_validation(run, scored)
    _check_updates(run)
    return plans


def _check_validation(run: Run, scored: Sequence[TaskPlan]) -> None:
    """Refuse a metric for the best model that is not logged, or that nothing asks for."""
    metric, validates = (run.trainer.get(k) for k in ("metric_for_best_model", "eval_strategy"))
    patience = run.extras.patience if run.extras.patience > 0 else None
    logged = list(dict.fromkeys(["loss", "score", *(n for plan in scored for n in plan.logged)]))
    if len(scored) > 1:
        logged += [f"{plan.name}_{n}" for plan in scored for n in ("loss", *plan.logged)]
    if metric is not None and str(metric).removeprefix("eval_") not in logged:
        raise SettingsError(
            f"trainer.metric_for_best_model={metric}: is not logged; there are {', '.join(logged)}"
        )
    for key, value in (("metric_for_best_model", metric), ("patience", patience)):
        if value is not None and str(validates or "no") == "no":
            raise SettingsError(
                f"trainer.{key}={value}: nothing validates during training; set "
                "trainer.eval_strategy to epoch or steps (and eval_steps)"
            )
    if patience is not None and metric is None:
        raise SettingsError(
            f"trainer.patience={patience}: set trainer.metric_for_best_model, one of "
            f"{', '.join(logged)}"
        )


def refuse_processes(tasks: Sequence[Task], count: int) -> None:
    """Raise SettingsError for a task that a job of `count` processes cannot train."""
    for task in tasks:
        if task.kind == DETECTION and count > 1:
            raise SettingsError(
                f"task.{task.name}: class {task.kind} is trained by one process, because the loss of its model "
                f"waits for all of them at once, and env asks for {count}. Set env.nproc_per_node=1 and "
                "env.nnodes=1"
            )


def _check_updates(run: Run) -> None:
    """Refuse a task that brings nothing to an update, and a training that never ends."""
    for task in run.tasks:
        update_freq(task, run.trainer)
    limit = run.trainer.get("max_steps", -1)
    if len(run.tasks) > 1 and not (isinstance(limit, int) and limit > 0):
        names = ", ".join(task.name for task in run.tasks)
        raise SettingsError(
            f"trainer.max_steps={limit}: must be above 0, because the tasks {names} are trained "
            "together and share no epoch that could end the training"
        )


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
