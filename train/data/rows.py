"""Rows of a task: read from files, or generated for its class.

A row maps column names to values, and instructions name the columns. Every class divides its rows into
train, dev and test; nothing is downloaded. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from train.config.sections import EvaluationSettings
from train.config.typed import shown
from train.data.generated import MAKERS
from train.data.specs import Source, mix
from train.data.tables import DataError, Row, read_table
from train.data.task_options import check_covered
from train.data.task_plan import CLASS_COLUMNS, TaskPlan


@dataclass(frozen=True)
class Rows:
    """The rows of one task."""

    train: Callable[[int], Sequence[Row]]  # epoch, from 0 -> its rows
    dev: Sequence[Row]
    test: Sequence[Row]


def load(plan: TaskPlan, shares: EvaluationSettings) -> Rows:
    """The rows of a task. Raises DataError for what cannot be read, and where parts share rows."""
    if plan.rows is not None:  # checked when it was planned
        known = plan.rows
        return Rows(lambda epoch: known.train, known.dev, known.test)
    rows = _of_files(plan) if plan.data.train else _of_class(plan, shares)
    # Epochs after which every file was read; files of several sources meet again later.
    epochs = max((len(source) for source in plan.data.train), default=1)
    train = [row for epoch in range(epochs) for row in rows.train(epoch)]
    parts = {"train": train, "dev": rows.dev, "test": rows.test}
    _refuse_shared_rows(plan, parts)
    if plan.answers is not None:
        column = plan.templates[0].target.name
        check_covered(plan.answers, parts, column, f"task.{plan.name}")
    return rows


def kept(rows: Rows, n: int, seed: int) -> Rows:
    """`rows` with n rows of its first epoch to train on, drawn evenly; all where there are fewer."""
    train = rows.train(0)
    chosen = np.random.default_rng(seed).permutation(len(train))[:n]
    few = [train[i] for i in sorted(chosen)]
    return Rows(lambda epoch: few, rows.dev, rows.test)


def _of_files(plan: TaskPlan) -> Rows:
    settings, data = plan.task.dataset, plan.data

    def read(file: str) -> list[Row]:
        return [*read_table(Path(file), data.columns, settings.separator, settings.header)]

    def every(part: tuple[Source, ...]) -> list[Row]:
        return [row for source in part for file in source for row in read(file)]

    @cache
    def of_files(files: tuple[str, ...]) -> Sequence[Row]:
        tables = [read(file) for file in files]
        for file, table in zip(files, tables, strict=True):
            if not table:
                raise DataError(f"task {plan.name}: train_data: no rows in {file}")
        lengths = [len(table) for table in tables]
        order = mix(lengths, data.ratios, settings.interleaved_multiple_reader)
        if not order:
            raise DataError(
                f"task.{plan.name}.dataset.sample_ratios={shown(data.ratios)}: leaves no row of"
                f" {', '.join(files)} ({', '.join(map(str, lengths))} rows); raise a ratio"
            )
        return [tables[source][row] for source, row in order]

    def train(epoch: int) -> Sequence[Row]:
        return of_files(tuple(source[epoch % len(source)] for source in data.train))

    return Rows(train, every(data.dev), every(data.test))


def _refuse_shared_rows(plan: TaskPlan, parts: Mapping[str, Sequence[Row]]) -> None:
    seen: dict[tuple[object, ...], str] = {}
    for name in ("test", "dev", "train"):
        for row in parts[name]:
            key = tuple(v.tobytes() if isinstance(v, np.ndarray) else v for v in row.values())
            if seen.setdefault(key, name) != name:
                shown = {k: v for k, v in row.items() if not isinstance(v, np.ndarray)}
                raise DataError(
                    f"task {plan.name}: the row {shown} is in '{name}' and in '{seen[key]}': "
                    "training, selection and the final test must not share rows; remove it from one"
                )


def _of_class(plan: TaskPlan, shares: EvaluationSettings) -> Rows:
    """Generated rows in three parts; the rows of every answer of a closed set are divided apart.

    There, which part a row goes to depends on the rows with its own answer alone, so it stays the same
    whichever task the answer occurs in.
    """
    answer = CLASS_COLUMNS[plan.task.kind][-1]  # type: ignore[index]  # null: read from files
    groups: dict[str, list[Row]] = {}
    for row in MAKERS[plan.task.kind](tuple(plan.answers or ())):
        groups.setdefault(str(row[answer]) if plan.answers else "", []).append(row)
    parts: dict[str, list[Row]] = {"train": [], "dev": [], "test": []}
    for label in sorted(groups):
        group = groups[label]
        key = int(label) if label.isdecimal() else int.from_bytes(label.encode(), "big")
        order = np.random.default_rng([shares.split_seed, key]).permutation(len(group))
        dev_end = round(len(group) * shares.dev_share)
        test_end = dev_end + round(len(group) * shares.test_share)
        split = np.split(order, [dev_end, test_end])
        for name, part in zip(("dev", "test", "train"), split, strict=True):
            parts[name].extend(group[i] for i in part)
    if empty := [name for name, part in parts.items() if not part]:
        raise DataError(
            f"task {plan.name}: no rows in {empty[0]}; check preprocess.text.ans2label "
            f"({', '.join(plan.answers or ())}) and the shares in `evaluation`"
        )
    return Rows(lambda epoch: parts["train"], parts["dev"], parts["test"])
