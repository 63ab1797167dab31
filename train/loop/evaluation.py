"""Scores of a model on a task: the metrics of its configuration, on dev or test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from train.data.rows import Row, Rows
from train.data.task_metrics import compute
from train.data.task_plan import TaskPlan
from train.loop.criterion import loss_sum, sample_size
from train.model.family import Meeting

BATCH = 256


def evaluate(
    model: torch.nn.Module,
    task: Meeting,
    rows: Rows,
    part: Literal["dev", "test"],
    max_batches: int | None = None,
    with_loss: bool = False,
) -> dict[str, float]:
    """Logged name -> value, in the order of the task's metrics; `loss` last, if wanted.

    What is random in an instruction is drawn from `dataset.fixed_validation_seed`, by row, so every
    evaluation of a row is alike.
    """
    plan, device = task.plan, next(model.parameters()).device
    seed = plan.task.dataset.fixed_validation_seed or 0
    size = plan.task.dataset.micro_valid_batch_size or BATCH
    chosen = rows.dev if part == "dev" else rows.test
    chosen = chosen if max_batches is None else chosen[: size * max_batches]
    answers: list[str] = []
    loss, counted = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(chosen), size):
            examples = []
            for i, row in enumerate(chosen[start : start + size], start=start):
                where = f"task {plan.name}, {part} row {i + 1}"
                examples.append(task.example(row, np.random.default_rng([seed, i]), False, where))
            answers += task.answers(model, examples, device)
            if with_loss:
                batch = {k: v.to(device) for k, v in task.batch(examples).items()}
                counted += sample_size(batch["labels"], plan.loss, 0)
                logits = task.logits(model, batch)
                loss += float(loss_sum(logits, batch["labels"], plan.loss, 0))
    found: dict[str, float] = {}
    for name, settings in plan.metrics.items():
        truths = [str(row[settings.target_field]) for row in chosen]
        found |= compute(name, settings, answers, truths)
    if with_loss:
        found["loss"] = loss / max(1, counted)
    if plan.task.evaluation.output_dir is not None:
        _keep_answers(plan, Path(plan.task.evaluation.output_dir), part, chosen, answers)
    return found


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
