"""A task on an encoder: the text is read once, and the answer it points to most is chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from train.data.tables import Row
from train.data.task_plan import TaskPlan
from train.data.vocabulary import Vocabulary
from train.model.choice import Choice, Labelled
from train.model.family import inputs_of
from train.model.text_answer import TextReader, padded

Ids = Labelled[tuple[int, ...]]  # with the tokenizer's marks
SHARPNESS = 20.0  # of the choice: what a cosine is multiplied by, as sentence-transformers does


class TextChoice(TextReader, Choice):
    """A `Meeting`: rows to ids, logits over the task's answers."""

    def __init__(self, plan: TaskPlan, vocabulary: Vocabulary) -> None:
        super().__init__(plan, vocabulary)
        assert plan.answers is not None
        self.texts = [*plan.answers]

    def example(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Ids:
        made = self.read(row, rng, training, where)
        truth = row.get(self.plan.templates[0].target.name)
        label = -1 if truth is None else self.texts.index(str(truth))
        return Labelled(made.source or (self.vocabulary.eos,), label)

    def batch(self, examples: Sequence[Ids]) -> dict[str, torch.Tensor]:
        return {
            "input_ids": padded([one.content for one in examples], self.vocabulary.pad),
            "attention_mask": padded([[1] * len(one.content) for one in examples], 0),
            "labels": torch.tensor([one.label for one in examples]),
        }

    def logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """n x answers: SHARPNESS * cosine of the mean hidden state and the answer's direction."""
        hidden = model(**inputs_of(batch)).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1)
        read = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        return SHARPNESS * read @ directions(self.texts, read.shape[-1]).to(read).T


def directions(answers: Sequence[str], size: int) -> torch.Tensor:
    """answers x size: a unit vector for each, drawn by the SHA-256 of its text.

    In hundreds of dimensions such vectors are nearly orthogonal, and the same text has the same one in
    every task, process and machine: there is nothing to train, to save or to hand over.
    """
    return torch.from_numpy(np.stack([_direction(answer, size) for answer in answers])).float()


@cache
def _direction(answer: str, size: int) -> Any:
    seed = int.from_bytes(hashlib.sha256(answer.encode()).digest()[:8], "little")
    drawn = np.random.default_rng(seed).standard_normal(size)
    return drawn / np.linalg.norm(drawn)
