"""How good a model is at a task: the metrics of its configuration, on dev or test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from train.data.rows import Row, Rows
from train.data.task_metrics import compute
from train.loop.criterion import loss_sum, sample_size
from train.model.family import Meeting

BATCH = 256


def evaluate(
    model: torch.nn.Module,
    task: Meeting,
    rows: Sequence[Row],
    part: str,
    batch_size: int = BATCH,
    max_batches: int | None = None,
    with_loss: bool = False,
) -> dict[str, float]:
    """Logged name -> value, in the order of the task's metrics; `loss` last, if wanted.

    What is random in an instruction is drawn from `dataset.fixed_validation_seed`, by row, so every
    evaluation of a row is alike.
    """
    plan, device = task.plan, next(model.parameters()).device
    seed = plan.task.dataset.fixed_validation_seed or 0
    chosen = rows if max_batches is None else rows[: batch_size * max_batches]
    answers: list[str] = []
    loss, counted = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(chosen), batch_size):
            examples = [
                task.example(
                    row,
                    np.random.default_rng([seed, i]),
                    False,
                    f"task {plan.name}, {part} row {i + 1}",
                )
                for i, row in enumerate(chosen[start : start + batch_size], start=start)
            ]
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
        target = plan.templates[0].target.name
        _keep_answers(
            Path(plan.task.evaluation.output_dir), plan.name, part, target, chosen, answers
        )
    return found


@dataclass(frozen=True)
class Scores:
    """The scores of a model, by task."""

    dev: Mapping[str, float]  # of tasks with rows for selection
    test: Mapping[str, float]  # of tasks with rows for the report
    metrics: Mapping[str, Mapping[str, float]]  # all metrics on dev; each task's first is its score


@dataclass(frozen=True)
class Evaluation:
    """A model, and the tasks it is evaluated on, by name."""

    model: torch.nn.Module
    tasks: Mapping[str, Meeting]
    rows: Mapping[str, Rows]

    def scores(self, names: Sequence[str]) -> Scores:
        """Scores on all rows of dev and test."""
        metrics = {n: self._metrics(n, "dev") for n in names if self.tasks[n].plan.is_scored}
        dev = {name: found[self._score(name)] for name, found in metrics.items()}
        test = {n: self._metrics(n, "test")[self._score(n)] for n in names if self.rows[n].test}
        return Scores(dev, test, metrics)

    def validation(self, names: Sequence[str], max_batches: int | None) -> dict[str, float]:
        """What a validation on dev rows is logged as: metrics and losses, see `means`."""
        found = {name: self._metrics(name, "dev", max_batches, True) for name in names}
        return means(found, {name: self._score(name) for name in names})

    def _metrics(
        self, name: str, part: str, max_batches: int | None = None, with_loss: bool = False
    ) -> dict[str, float]:
        task, rows = self.tasks[name], self.rows[name]
        chosen = rows.dev if part == "dev" else rows.test
        size = task.plan.task.dataset.micro_valid_batch_size or BATCH
        return evaluate(self.model, task, chosen, part, size, max_batches, with_loss)

    def _score(self, name: str) -> str:
        return self.tasks[name].plan.logged[0]


def means(
    by_task: Mapping[str, Mapping[str, float]], scores: Mapping[str, str]
) -> dict[str, float]:
    """What a validation of several tasks is logged as.

    Each name as the plain mean over the tasks that have it, `score` as the mean of every task's own
    (`scores`: task -> its name), and behind the task's name each by itself where there are several.
    """
    names = dict.fromkeys(name for found in by_task.values() for name in found)
    logged: dict[str, float] = {}
    for name in names:
        values = [found[name] for found in by_task.values() if name in found]
        logged[name] = sum(values) / len(values)
    logged["score"] = sum(by_task[task][name] for task, name in scores.items()) / len(scores)
    if len(by_task) > 1:
        logged |= {f"{t}_{name}": v for t, found in by_task.items() for name, v in found.items()}
    return logged


def _keep_answers(
    folder: Path, task: str, part: str, target: str, rows: Sequence[Row], answers: Sequence[str]
) -> None:
    """One JSON object per row: what was answered, and the row's columns that are text or numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {
                "answer": answer,
                "target": row.get(target),
                "row": {k: v for k, v in row.items() if isinstance(v, (str, int, float))},
            }
        )
        for row, answer in zip(rows, answers, strict=True)
    ]
    aside = folder / f".{task}_{part}.jsonl"
    aside.write_text("\n".join(lines) + "\n")
    aside.replace(folder / f"{task}_{part}.jsonl")
