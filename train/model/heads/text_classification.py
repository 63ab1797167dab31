"""A task of class text_classification: a text or a pair, and the likeliest of its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from train.data.tables import Row
from train.data.task_plan import TaskPlan
from train.model.choice import Choice


@dataclass(frozen=True)
class Text:
    """One row as the tokenizer gives it, and the number of its label."""

    encoding: Mapping[str, list[int]]
    label: int


class TextClassification(Choice):
    """A `Meeting`."""

    def __init__(self, plan: TaskPlan, tokenizer: Any) -> None:
        assert plan.answers is not None
        self.plan, self.tokenizer, self.texts = plan, tokenizer, [*plan.answers]

    def example(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Text:
        texts = [one for one in (row["text"], row["pair"]) if one]
        length = self.plan.max_src_length
        made = self.tokenizer(*texts, truncation=True, max_length=length)
        return Text(dict(made), self.texts.index(row["label"]))

    def batch(self, examples: Sequence[Text]) -> dict[str, torch.Tensor]:
        padded = self.tokenizer.pad([one.encoding for one in examples], return_tensors="pt")
        return {**padded, "labels": torch.tensor([one.label for one in examples])}


MEETING = TextClassification
