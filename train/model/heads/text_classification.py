"""A task of class text_classification: a text or a pair, and the likeliest of its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from train.data.tables import Row
from train.data.task_plan import TaskPlan
from train.model.choice import Choice, Labelled

Text = Labelled[dict[str, list[int]]]  # as the tokenizer gives it


class TextClassification(Choice):
    """A `Meeting`."""

    def __init__(self, plan: TaskPlan, tokenizer: Any) -> None:
        assert plan.answers is not None
        self.plan, self.tokenizer, self.texts = plan, tokenizer, [*plan.answers]

    def example(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Text:
        texts = [one for one in (row["text"], row["pair"]) if one]
        length = self.plan.max_src_length
        made = self.tokenizer(*texts, truncation=True, max_length=length)
        return Labelled(dict(made), self.texts.index(row["label"]))

    def batch(self, examples: Sequence[Text]) -> dict[str, torch.Tensor]:
        padded = self.tokenizer.pad([one.content for one in examples], return_tensors="pt")
        return {**padded, "labels": torch.tensor([one.label for one in examples])}


MEETING = TextClassification
