"""All rows of a task whose class has a head of its own: from its files, or made up by rule."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from train.config.task import Task
from train.config.text_data import DETECTION, TextData
from train.config.typed import SettingsError
from train.data.families.records import Found
from train.data.specs import DataPlan, columns
from train.data.tables import Row
from train.data.task_options import FILES, answers_of
from train.data.text_tasks import TextRows, limited


def module_of(kind: str) -> Any:
    """The module of a class: COLUMNS, TEMPLATE, METRIC, `read` and `made`."""
    return import_module(f"train.data.families.{kind}")


def columns_of(kind: str) -> tuple[str, ...]:
    """The columns of a class's rows."""
    return (*module_of(kind).COLUMNS, "place", "dataset", "instance")


def read_headed(task: Task, data: DataPlan, text: TextData, seed: int) -> TextRows:
    """The rows of a task, and the labels of its head. Raises SettingsError with file and line."""
    parts = _of_files(task, data) if data.train else _made(task, seed)
    return limited(parts, text, _labels(task, data, parts))


def _of_files(task: Task, data: DataPlan) -> dict[str, list[Row]]:
    where, settings = f"task.{task.name}.dataset", task.dataset
    if settings.sample_ratios != 1:
        raise SettingsError(
            f"{where}.sample_ratios={settings.sample_ratios}: class {task.kind} takes all rows of its files"
        )
    if not data.dev:
        raise SettingsError(
            f"{where}.valid_data is not set: a job is selected by its score on valid_data"
        )
    renamed = columns(settings.selected_cols) if settings.selected_cols else ()
    parts: dict[str, list[Row]] = {part: [] for part in FILES}
    for part, rows in parts.items():
        for file in map(Path, chain.from_iterable(getattr(data, part))):
            own = _rows(task, module_of(task.kind).read(file, task, renamed))
            if not own:
                raise SettingsError(f"{file}: has no rows")
            rows += own
    return parts


def _made(task: Task, seed: int) -> dict[str, list[Row]]:
    if given := [key for key in FILES.values() if getattr(task.dataset, key)]:
        raise SettingsError(
            f"task.{task.name}.dataset.{given[0]}: without train_data there is nothing to train on"
        )
    n, made = task.dataset.made_rows, module_of(task.kind).made
    return {
        part: _rows(task, made(max(1, n // 4) if i else n, np.random.default_rng([seed, i])))
        for i, part in enumerate(FILES)
    }


def _rows(task: Task, found: Iterable[Found]) -> list[Row]:
    names = columns_of(task.kind)
    return [
        dict(zip(names, (*own, place, task.name, instance), strict=True))
        for own, place, instance in found
    ]


def _labels(task: Task, data: DataPlan, parts: dict[str, list[Row]]) -> tuple[str, ...]:
    """The labels the head has; every row's are among them. Raises SettingsError with file and line."""
    told = task.preprocess.text.ans2label
    if task.kind == DETECTION:
        return _categories(data)
    key = {"text_classification": "label", "token_classification": "tags"}.get(task.kind)
    if key is None:
        return ()
    split = str.split if key == "tags" else lambda one: [one]
    found = {label for row in parts["train"] for label in split(str(row[key]))}
    whole = all(re.fullmatch(r"-?\d+", label) for label in found)
    numbers = answers_of(task, f"task.{task.name}", sorted(found, key=int if whole else None))
    labels = tuple(sorted(numbers, key=numbers.__getitem__))
    if sorted(numbers.values()) != [*range(len(numbers))]:
        raise SettingsError(
            f"task.{task.name}.preprocess.text.ans2label={numbers}: must number the labels from 0 on"
        )
    for row in chain.from_iterable(parts.values()):
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


def _categories(data: DataPlan) -> tuple[str, ...]:
    from train.data.families import object_detection

    files = [*chain.from_iterable((*data.train, *data.dev, *data.test))]
    if not files:
        return tuple(object_detection.COLOURS)
    labels = object_detection.categories(Path(files[0]))
    for file in files[1:]:
        own = object_detection.categories(Path(file))
        if own != labels:
            raise SettingsError(
                f"{file}: has the categories {', '.join(own)}, and {files[0]} has {', '.join(labels)}: all "
                "files of a task must have the same ones"
            )
    return tuple(labels)
