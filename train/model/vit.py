"""How a task that is one image and one answer of a closed set meets a vision transformer.

The model has a row of its head per number of `ans2label`; of an image's task only the rows of its
answers take part, in the loss and in the choice. Plain text of the instruction is not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from train.data.preprocess import Pixels, pixels_of
from train.data.rows import Row
from train.data.task_plan import TaskPlan


@dataclass(frozen=True)
class Image:
    """One row: its image, and the number of its answer; -1 where it has none."""

    pixels: Pixels
    label: int
    row: Row


class ImageChoice:
    """Rows to images, batches to logits over the task's answers, models to answers."""

    def __init__(self, plan: TaskPlan) -> None:
        assert plan.answers is not None
        self.plan = plan
        self.numbers = plan.answers
        self.texts = {number: text for text, number in plan.answers.items()}
        self.classes = sorted(self.texts)

    def example(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Image:
        template = self.plan.templates[int(rng.integers(len(self.plan.templates)))]
        [slot] = [s for s in template.side("encoder") if s.text is None]
        pixels = pixels_of(self.plan, slot, row, training, where)
        truth = row.get(template.target.name)
        return Image(pixels, -1 if truth is None else self.numbers[str(truth)], row)

    def batch(self, examples: Sequence[Image]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.from_numpy(np.stack([one.pixels for one in examples])),
            "labels": torch.tensor([one.label for one in examples]),
        }

    def logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """n x rows of the head; what is no answer is ruled out and gets no gradient."""
        logits: torch.Tensor = model(pixel_values=batch["pixel_values"]).logits
        other = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        other[self.classes] = False
        return logits.float().masked_fill(other, float("-inf"))

    def answers(
        self, model: torch.nn.Module, examples: Sequence[Image], device: torch.device
    ) -> list[str]:
        batch = {key: value.to(device) for key, value in self.batch(examples).items()}
        return [self.texts[i] for i in self.logits(model, batch).argmax(-1).tolist()]
