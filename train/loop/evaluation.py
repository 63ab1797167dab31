"""Scores of a model on a task: the metrics of its configuration, on dev or test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from autocl_sweeper.errors import EvaluationMemoryError
from train.data.rows import Rows
from train.data.tables import Row
from train.data.task_metrics import compute
from train.data.task_plan import TaskPlan
from train.loop.criterion import sample_size, task_loss
from train.model.family import Meeting, Ranked, moved

BATCH = 256
Part = Literal["dev", "test"]


@dataclass(frozen=True)
class Evaluated:
    """What a model answered to the rows of a part of a task, and how that is scored."""

    plan: TaskPlan
    part: Part
    rows: Sequence[Row]
    answers: Sequence[str]
    metrics: Mapping[str, float]  # logged name -> value, in the order of the task's metrics
    loss: tuple[float, int] | None  # teacher-forced cross entropy: sum, and what was summed over
    lengths: Sequence[int]  # ids of every answer with its end mark; empty where answers have none
    ranked: Sequence[Sequence[Mapping[str, Any]]] = ()  # of every row, where a task has several

    @property
    def score(self) -> float:
        return self.metrics[self.plan.logged[0]]

    @property
    def logged(self) -> dict[str, float]:
        """The metrics and, last, `loss` per id that counts, if it was wanted."""
        loss = {} if self.loss is None else {"loss": self.loss[0] / max(1, self.loss[1])}
        return {**self.metrics, **loss}


def predict(
    model: torch.nn.Module,
    task: Meeting,
    rows: Rows,
    part: Part,
    max_batches: int | None = None,
    with_loss: bool = False,
) -> Evaluated:
    """A model's answers to the rows of a part, scored.

    What is random in an instruction is drawn from `dataset.fixed_validation_seed`, by row, so every
    evaluation of a row is alike.
    """
    plan, device = task.plan, next(model.parameters()).device
    chosen: list[Row] = []
    answers: list[str] = []
    ranked: list[list[dict[str, Any]]] = []
    loss, counted = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for some, examples in in_batches(task, rows, part, max_batches):
            try:
                if isinstance(task, Ranked):
                    several = task.ranked(model, examples, device)
                    ranked += several
                    found = [str(best[0]["text"]) for best in several]
                else:
                    found = task.answers(model, examples, device)
                if with_loss:
                    own = _loss(model, task, examples, device)
                    loss, counted = loss + own[0], counted + own[1]
            except torch.OutOfMemoryError as error:
                raise EvaluationMemoryError(
                    f"task {plan.name}, {part}: no memory is left for a batch of {len(some)} rows. Set "
                    f"task.{plan.name}.dataset.micro_valid_batch_size smaller; memory.mode=sizes says "
                    "what the largest batch of each evaluation takes"
                ) from error
            chosen += some
            answers += found
    if plan.task.evaluation.output_dir is not None:
        _keep_answers(plan, Path(plan.task.evaluation.output_dir), part, chosen, answers)
    vocabulary = getattr(task, "vocabulary", None)  # of families that answer in text
    lengths = [] if vocabulary is None else [len(vocabulary.encode(a)) + 1 for a in answers]
    metrics, summed = scored(plan, chosen, answers), (loss, counted) if with_loss else None
    return Evaluated(plan, part, chosen, answers, metrics, summed, lengths, ranked)


def _loss(
    model: torch.nn.Module, task: Meeting, examples: Sequence[Any], device: torch.device
) -> tuple[float, int]:
    """Sum of the loss and what was summed over; logits are gone when it returns."""
    batch = moved(task.batch(examples), device)
    loss = float(task_loss(task, model, batch, 0)[0])
    return loss, sample_size(batch["labels"], task.plan.loss, 0)


def in_batches(
    task: Meeting, rows: Rows, part: Part, max_batches: int | None = None
) -> Iterator[tuple[Sequence[Row], list[Any]]]:
    """Rows and examples of each batch of a part, in its order."""
    plan = task.plan
    seed = plan.task.dataset.fixed_validation_seed or 0
    size = plan.task.dataset.micro_valid_batch_size or BATCH
    chosen = rows.dev if part == "dev" else rows.test
    chosen = chosen if max_batches is None else chosen[: size * max_batches]
    for start in range(0, len(chosen), size):
        some = chosen[start : start + size]
        examples = []
        for i, row in enumerate(some, start=start):
            where = f"task {plan.name}, {part} row {i + 1}"
            examples.append(task.example(row, np.random.default_rng([seed, i]), False, where))
        yield some, examples


def scored(plan: TaskPlan, rows: Sequence[Row], answers: Sequence[str]) -> dict[str, float]:
    """The metrics of a task by their logged names: means over its datasets, where it has several."""
    by_dataset: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        by_dataset.setdefault(str(row["dataset"]) if plan.rows else "", []).append(place)
    values: dict[str, list[float]] = {}
    for places in by_dataset.values():
        for name, settings in plan.metrics.items():
            truths = [str(rows[i][settings.target_field]) for i in places]
            found = compute(name, settings, [answers[i] for i in places], truths)
            for logged, value in found.items():
                values.setdefault(logged, []).append(value)
    return {name: sum(own) / len(own) for name, own in values.items()}


def means(
    by_task: Mapping[str, Mapping[str, float]], score_of: Mapping[str, str]
) -> dict[str, float]:
    """The logged values of a validation of several tasks.

    Each name as the plain mean over the tasks that have it, `score` as the mean of every task's own
    (`score_of`: task -> its name), and behind the task's name each by itself where there are several.
    """
    names = dict.fromkeys(name for found in by_task.values() for name in found)
    logged: dict[str, float] = {}
    for name in names:
        values = [found[name] for found in by_task.values() if name in found]
        logged[name] = sum(values) / len(values)
    scores = [found[score_of[task]] for task, found in by_task.items()]
    logged["score"] = sum(scores) / len(scores)
    if len(by_task) > 1:
        logged |= {f"{t}_{name}": v for t, found in by_task.items() for name, v in found.items()}
    return logged


def _keep_answers(
    plan: TaskPlan, folder: Path, part: str, rows: Sequence[Row], answers: Sequence[str]
) -> None:
    """One JSON object per row: what was answered, and the row's columns that are text or numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{plan.name}_{part}.jsonl"
    with aside.open("w") as file:
        for row, answer in zip(rows, answers, strict=True):
            kept = {k: v for k, v in row.items() if isinstance(v, (str, int, float))}
            target = row.get(plan.templates[0].target.name)
            file.write(json.dumps({"answer": answer, "target": target, "row": kept}) + "\n")
    aside.replace(folder / f"{plan.name}_{part}.jsonl")
