"""Five kinds of tasks with random weights and random batches whose sizes are like those of real data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

Size = Literal["tiny", "base"]


@dataclass(frozen=True)
class Family:
    """How the batches of a task are sized. Lengths are log-normal; a batch is as long as its longest row."""

    name: str
    like: str  # the data whose sizes these are
    rows: int  # of a batch with a model of base size
    tiny_rows: int
    median: float  # tokens of a row
    sigma: float
    shortest: int  # of a batch
    longest: int
    budget_gib: float | None = None  # of the published comparison


FAMILIES: Mapping[str, Family] = {
    one.name: one
    for one in (
        Family("multiple-choice", "SWAG", 64, 4, 32, 0.33, 40, 142, 6.0),
        Family("question-answering", "SQuAD", 12, 1, 160, 0.35, 146, 512, 8.0),
        Family("text-classification", "QQP", 32, 2, 28, 0.45, 30, 332, 6.0),
        Family("token-classification", "CoNLL-2003", 64, 2, 18, 0.65, 20, 180, 6.0),
        Family("object-detection", "COCO", 2, 1, 0, 0, 96, 256),  # pixels of a side
    )
}
BLOCKS = 12  # of every model
CHOICES = 4  # of a question; rows count all of them
CELL = 16  # pixels of a patch: sides of images are multiples of it


def lengths(family: Family, steps: int, seed: int = 0, rows: int | None = None) -> list[int]:
    """Length of each batch, the longest one among them. rows: of a batch; base size by default."""
    drawn = np.random.default_rng(seed)
    if not family.median:
        cells = drawn.integers(
            family.shortest // CELL, family.longest // CELL, steps, endpoint=True
        )
        found = [int(n) * CELL for n in cells]
    else:
        each = drawn.lognormal(math.log(family.median), family.sigma, (steps, rows or family.rows))
        found = [int(n) for n in each.max(axis=1).clip(family.shortest, family.longest)]
    found[steps // 2] = family.longest
    return found


def batch(family: Family, rows: int, length: int, seed: int, vocabulary: int) -> dict[str, Any]:
    """Keyword arguments of the model for one micro-batch."""
    drawn = torch.Generator().manual_seed(seed)

    def numbers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=drawn)

    if family.name == "object-detection":
        pixels = torch.rand(rows, 3, length, length, generator=drawn)
        boxes = torch.rand(2, 4, generator=drawn) * 0.4 + 0.1
        labels = [{"class_labels": numbers(2, 2), "boxes": boxes.clone()} for _ in range(rows)]
        return {"pixel_values": pixels, "labels": labels}
    ids = numbers(vocabulary, rows, length)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # otherwise no mask is made
    made = {"input_ids": ids, "attention_mask": mask}
    if family.name == "multiple-choice":
        made = {name: one.view(-1, CHOICES, length) for name, one in made.items()}
        return {**made, "labels": numbers(CHOICES, rows // CHOICES)}
    if family.name == "question-answering":
        return {
            **made,
            "start_positions": numbers(length, rows),
            "end_positions": numbers(length, rows),
        }
    shape = (rows, length) if family.name == "token-classification" else (rows,)
    return {**made, "labels": numbers(2, *shape)}


def batches(
    family: Family, rows: int, sizes: Sequence[int], vocabulary: int
) -> list[dict[str, Any]]:
    return [batch(family, rows, length, i, vocabulary) for i, length in enumerate(sizes)]


def model(family: Family, size: Size, attention: str = "eager") -> torch.nn.Module:
    """A model with random weights, the same ones each time.

    tiny: blocks like bert-base's with a twelfth of its width and heads.
    """
    import transformers as hf

    torch.manual_seed(0)
    common: dict[str, Any] = {"num_labels": 2, "attn_implementation": attention}
    small: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256}
    common["num_hidden_layers"] = BLOCKS
    if family.name == "object-detection":
        yolos = hf.YolosConfig(
            **(small if size == "tiny" else {}), **common, num_detection_tokens=20,
            image_size=[family.longest] * 2, patch_size=CELL,
        )  # fmt: skip
        return hf.YolosForObjectDetection(yolos)
    small["vocab_size"] = 128
    config = hf.BertConfig(**(small if size == "tiny" else {}), **common)
    made: torch.nn.Module = {
        "multiple-choice": hf.BertForMultipleChoice,
        "question-answering": hf.BertForQuestionAnswering,
        "text-classification": hf.BertForSequenceClassification,
        "token-classification": hf.BertForTokenClassification,
    }[family.name](config)
    return made
