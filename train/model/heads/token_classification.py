"""A task of class token_classification: a tag for each word, by the first of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from train.data.tables import Row
from train.data.task_plan import TaskPlan
from train.model.choice import Choice
from train.model.family import IGNORED, moved

OUTSIDE = "O"  # the tag of words that are cut off


@dataclass(frozen=True)
class Sentence:
    """One row as the tokenizer gives it, and for each token the number of its tag."""

    encoding: Mapping[str, list[int]]
    labels: tuple[int, ...]  # IGNORED at all but the first token of a word
    words: int  # with those that are cut off


class TokenClassification(Choice):
    """A `Meeting`: logits are rows x tokens x tags."""

    def __init__(self, plan: TaskPlan, tokenizer: Any) -> None:
        assert plan.answers is not None
        self.plan, self.tokenizer, self.texts = plan, tokenizer, [*plan.answers]

    def example(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Sentence:
        length, tags = self.plan.max_src_length, str(row["tags"]).split()
        words = list(row["tokens"])
        made = self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=length)
        places = made.word_ids(0)
        labels = tuple(
            IGNORED if word is None or word == before else self.texts.index(tags[word])
            for before, word in zip([None, *places], places, strict=False)
        )
        return Sentence(dict(made), labels, len(words))

    def batch(self, examples: Sequence[Sentence]) -> dict[str, torch.Tensor]:
        padded = self.tokenizer.pad([one.encoding for one in examples], return_tensors="pt")
        width = padded["input_ids"].shape[1]
        labels = [[*one.labels, *[IGNORED] * (width - len(one.labels))] for one in examples]
        return {**padded, "labels": torch.tensor(labels)}

    def answers(
        self, model: torch.nn.Module, examples: Sequence[Sentence], device: torch.device
    ) -> list[str]:
        """Tags of each row, apart by blanks."""
        batch = moved(self.batch(examples), device)
        chosen = self.logits(model, batch).argmax(-1).tolist()
        found = []
        for one, likeliest in zip(examples, chosen, strict=True):
            pairs = zip(likeliest, one.labels, strict=False)
            tags = [self.texts[tag] for tag, label in pairs if label != IGNORED]
            found.append(" ".join([*tags, *[OUTSIDE] * (one.words - len(tags))]))
        return found


MEETING = TokenClassification
