"""Options of a task, each read from its forms and checked: answers, text, images, loss, generation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from train.config.task import Criterion, CriterionSettings, ImagePreprocess, LossSettings, Task
from train.config.typed import SettingsError, default_of, options
from train.data.pretrained import PROCESSOR, described
from train.data.specs import DataPlan, Source, sources
from train.data.tables import Row

FILES = {"train": "train_data", "dev": "valid_data", "test": "test_data"}

# generator_args, by fairseq's names and Hugging Face's -> argument of `generate`
FAIRSEQ = {
    "beam": "num_beams",
    "max_len_b": "max_new_tokens",
    "lenpen": "length_penalty",
    "min_len": "min_new_tokens",
}
GENERATION = FAIRSEQ | {name: name for name in (*FAIRSEQ.values(), "no_repeat_ngram_size")}


def answers_of(task: Task, where: str, labels: Sequence[str] = ()) -> dict[str, int]:
    """Text -> number of a closed set: a mapping, its JSON text, or lines `label<TAB>int`.

    labels: those of the task's own data, for when nothing is given.
    """
    key = f"{where}.preprocess.text.ans2label"
    value = task.preprocess.text.ans2label
    if value is None:
        if task.kind == "digits":
            return {str(option): option for option in task.options}
        if labels:
            return {label: number for number, label in enumerate(labels)}
        raise SettingsError(
            f"{key} is not set, but the target of the instruction is closed_set: give its answers, "
            "such as {no: 0, yes: 1}, JSON text, or a file with lines label<TAB>number"
        )
    if isinstance(value, str):
        value = _answers_of_text(value, key)
    if not value or len(set(value.values())) < len(value):
        raise SettingsError(f"{key}={value}: must give every answer a number of its own")
    return {str(k): v for k, v in value.items()}


def files_of(task: Task, where: str) -> DataPlan:
    """The sources of train, dev and test. Raises SettingsError for a file missing or in two of them."""
    found: dict[str, tuple[Source, ...]] = {}
    seen: dict[Path, str] = {}
    for part, key in FILES.items():
        found[part] = sources(getattr(task.dataset, key))
        for file in chain.from_iterable(found[part]):
            if not Path(file).is_file():
                raise SettingsError(
                    f"{where}.dataset.{key}: no file {file} (looked from {Path.cwd()}; paths are "
                    "relative to the working directory)"
                )
            if (other := seen.setdefault(Path(file).resolve(), key)) != key:
                raise SettingsError(
                    f"{where}.dataset.{key}: {file} is in {other} and in {key}: training, selection and "
                    "the final test must not share rows"
                )
    return DataPlan(found["train"], found["dev"], found["test"])


def check_covered(
    answers: Iterable[str], parts: Mapping[str, Sequence[Row]], column: str, where: str
) -> None:
    """Refuse rows whose right answer a closed set lacks: the model could never give it.

    parts: rows by part, with their right answers in `column`. Raises SettingsError.
    """
    known = {answer.strip() for answer in answers}
    for part, rows in parts.items():
        given = (str(row[column]).strip() for row in rows)
        if not (missing := Counter(text for text in given if text not in known)):
            continue
        shown = ", ".join(f"'{text}' ({n} rows)" for text, n in missing.most_common(3))
        hint = " YAML reads yes, no, true and false without quotes as True and False: quote them."
        raise SettingsError(
            f"{where}.preprocess.text.ans2label: the closed set {{{', '.join(sorted(known))}}} has no "
            f"answer for {shown} of {part}, which could only be answered wrong."
            + (hint if known <= {"True", "False"} else "")
        )


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


def image_of(settings: ImagePreprocess, key: str) -> ImagePreprocess:
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


def loss_of(task: Task, where: str) -> LossSettings:
    """The options of the one criterion, from either form."""
    settings, key = task.criterion, f"{where}.criterion"
    nested = ((name, getattr(settings, name)) for name in get_args(Criterion))
    given = {name: options for name, options in nested if options and options.is_active}
    if len(given) + (settings.kind is not None) > 1:
        forms = [*given, *([f"_name: {settings.kind}"] if settings.kind else [])]
        raise SettingsError(f"{key}: {' and '.join(forms)} are both given; one criterion per task")
    kind = settings.kind or next(iter(given), "cross_entropy")
    chosen: LossSettings = next(iter(given.values()), settings)
    if kind == "cross_entropy":
        for name in ("label_smoothing", "report_accuracy", "drop_worst_ratio", "drop_worst_after"):
            if getattr(chosen, name) != getattr(LossSettings(), name):
                raise SettingsError(
                    f"{key}.{name}={getattr(chosen, name)}: belongs to label_smoothed_cross_entropy; "
                    "set criterion._name to it"
                )
    return chosen


def own_loss(task: Task, where: str) -> LossSettings:
    """Of a class whose model brings its loss: a mean over images. Raises SettingsError."""
    for name, one in options(CriterionSettings).items():
        if getattr(task.criterion, one.name) != default_of(one):
            raise SettingsError(
                f"{where}.criterion.{name}: class {task.kind} has the loss of its model, which takes no options"
            )
    return LossSettings(sentence_avg=True)


def generation_of(task: Task, where: str) -> dict[str, Any] | None:
    """Arguments of `generate`; null where the task leaves them to the model's family."""
    key = f"{where}.evaluation.generator_args"
    value = task.evaluation.generator_args
    if value is None:
        return None
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
