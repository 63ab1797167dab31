"""All rows of a task whose class has a head of its own: from its files, or made up by rule."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from train.config.task import Task
from train.config.text_data import HEADED, TextData
from train.config.typed import SettingsError
from train.data.families.made import PARTS
from train.data.families.records import labels_of
from train.data.specs import columns, sources
from train.data.tables import Row
from train.data.task_options import answers_of
from train.data.text_tasks import TextRows

KEYS = {"train": "train_data", "dev": "valid_data", "test": "test_data"}


def module_of(kind: str) -> Any:
    """The module of a class: COLUMNS, TEMPLATE, METRIC, `read` and `made`."""
    assert kind in HEADED
    return import_module(f"train.data.families.{kind}")


def read_headed(task: Task, text: TextData, seed: int) -> TextRows:
    """The rows of a task, and the labels of its head. Raises SettingsError with file and line."""
    parts = _of_files(task) if task.dataset.train_data else _made(task, seed)
    limits = (text.max_train_samples, text.max_eval_samples, text.max_predict_samples)
    train, dev, test = (tuple(parts[part][:n]) for part, n in zip(PARTS, limits, strict=True))
    return TextRows(train, dev, test, _labels(task, parts), selects_on_test=False)


def _of_files(task: Task) -> dict[str, list[Row]]:
    where, settings = f"task.{task.name}.dataset", task.dataset
    if settings.sample_ratios != 1:
        raise SettingsError(
            f"{where}.sample_ratios={settings.sample_ratios}: class {task.kind} takes all rows of its files"
        )
    read = module_of(task.kind).read
    renamed = columns(settings.selected_cols) if settings.selected_cols else ()
    parts: dict[str, list[Row]] = {}
    seen: dict[Path, str] = {}
    for part, key in KEYS.items():
        parts[part] = []
        for file in (Path(f) for source in sources(getattr(settings, key)) for f in source):
            if not file.is_file():
                raise SettingsError(f"{where}.{key}: no file {file} (looked from {Path.cwd()})")
            if seen.setdefault(file.resolve(), key) != key:
                raise SettingsError(
                    f"{where}.{key}: {file} is in {seen[file.resolve()]} as well: training, selection and "
                    "the final test must not share rows"
                )
            parts[part] += read(file, task, renamed)
    if not parts["dev"]:
        raise SettingsError(
            f"{where}.valid_data is not set: a job is selected by its score on valid_data"
        )
    return parts


def _made(task: Task, seed: int) -> dict[str, list[Row]]:
    n = task.dataset.made_rows
    made = module_of(task.kind).made
    given = [key for key in KEYS.values() if getattr(task.dataset, key)]
    if given:
        raise SettingsError(
            f"task.{task.name}.dataset.{given[0]}: without train_data there is nothing to train on"
        )
    return {
        part: made(n if part == "train" else max(1, n // 4), task, np.random.default_rng([seed, i]))
        for part, i in PARTS.items()
    }


def _labels(task: Task, parts: dict[str, list[Row]]) -> tuple[str, ...]:
    """The labels the head has; every row's are among them. Raises SettingsError with file and line."""
    told = task.preprocess.text.ans2label
    key = {"text_classification": "label", "token_classification": "tags"}.get(task.kind)
    if task.kind == "object_detection":
        return _categories(task, parts)
    if key is None:
        return ()
    split = str.split if key == "tags" else lambda one: [one]
    found = labels_of(label for row in parts["train"] for label in split(str(row[key])))
    numbers = answers_of(task, f"task.{task.name}", found)
    labels = tuple(sorted(numbers, key=lambda label: numbers[label]))
    if sorted(numbers.values()) != [*range(len(numbers))]:
        raise SettingsError(
            f"task.{task.name}.preprocess.text.ans2label={numbers}: must number the labels from 0 on"
        )
    for row in (row for part in parts.values() for row in part):
        for label in split(str(row[key])):
            if label not in numbers:
                whose = "the training rows'" if told is None else "those in ans2label"
                raise SettingsError(
                    f"{row['place']}: the label '{label}' is none of {whose} ({', '.join(labels)}); "
                    f"correct it, or name all labels in task.{task.name}.preprocess.text.ans2label"
                )
    if len(labels) < 2:
        raise SettingsError(
            f"{parts['train'][-1]['place']}: all training rows have the label '{labels[0]}'; there is "
            "nothing to learn"
        )
    return labels


def _categories(task: Task, parts: dict[str, list[Row]]) -> tuple[str, ...]:
    from train.data.families import object_detection

    if not task.dataset.train_data:
        return tuple(object_detection.COLOURS)
    named: dict[str, list[str]] = {}
    files: Sequence[tuple[str, ...]] = [
        source for key in KEYS.values() for source in sources(getattr(task.dataset, key))
    ]
    for file in (f for source in files for f in source):
        named[file] = object_detection.categories(Path(file))
    (first, labels), *others = named.items()
    for file, own in others:
        if own != labels:
            raise SettingsError(
                f"{file}: has the categories {', '.join(own)}, and {first} has {', '.join(labels)}: all "
                "files of a task must have the same ones"
            )
    return tuple(labels)
