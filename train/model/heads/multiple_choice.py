"""A task of class multiple_choice: every ending is read behind its context, the likeliest one chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from train.data.tables import Row
from train.data.task_plan import TaskPlan
from train.model.choice import Choice, Labelled
from train.model.family import moved

Choices = Labelled[list[dict[str, list[int]]]]  # as the tokenizer gives them


class MultipleChoice(Choice):
    """A `Meeting`: batches of rows x choices x tokens."""

    def __init__(self, plan: TaskPlan, tokenizer: Any) -> None:
        self.plan, self.tokenizer = plan, tokenizer

    def example(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Choices:
        choices = list(row["choices"])
        contexts, length = [row["context"]] * len(choices), self.plan.max_src_length
        made = self.tokenizer(contexts, choices, truncation=True, max_length=length)
        each = [{key: made[key][i] for key in made} for i in range(len(choices))]
        return Labelled(each, int(row["label"]))

    def batch(self, examples: Sequence[Choices]) -> dict[str, torch.Tensor]:
        each = [one for example in examples for one in example.content]
        padded = self.tokenizer.pad(each, return_tensors="pt")
        batch = {key: value.unflatten(0, (len(examples), -1)) for key, value in padded.items()}
        return {**batch, "labels": torch.tensor([example.label for example in examples])}

    def answers(
        self, model: torch.nn.Module, examples: Sequence[Choices], device: torch.device
    ) -> list[str]:
        batch = moved(self.batch(examples), device)
        return [str(i) for i in self.logits(model, batch).argmax(-1).tolist()]


MEETING = MultipleChoice
