"""A vision transformer that chooses: one image, one answer of a closed set.

The model has a row of its head per number of `ans2label`; of an image's task only the rows of its
answers take part, in the loss and in the choice. Plain text of the instruction is not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.config.sections import ModelSettings
from train.config.task import CLASSES
from train.config.typed import SettingsError
from train.data.pixels import Pixels, pixels_of
from train.data.tables import Row
from train.data.task_plan import TaskPlan
from train.model.choice import Choice, Labelled
from train.model.family import MakeFamily
from train.model.fit import refuse_unread
from train.model.stored import load_base

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class VisionTransformer:
    """The family of `model=vit_tiny`: small, random, with a frozen head.

    The head's rows are orthonormal directions, one per digit. They stand for the embeddings of the
    label words, which O-LoRA does not train either: all that is learned lies in the transformer.
    """

    settings: ModelSettings
    base: Path | None = None

    @property
    def source(self) -> None:
        return None

    def check(self, plans: Iterable[TaskPlan], begins: bool) -> None:
        for plan in plans:
            where = f"task.{plan.name}"
            read = [[s.type for s in t.side("encoder") if s.text is None] for t in plan.templates]
            if plan.answers is None or any(types != ["IMAGE"] for types in read):
                raise SettingsError(
                    f"{where}: model=vit_tiny reads one image and chooses one answer of a closed_set; "
                    f"'{plan.templates[0]}' asks for more. Take model=unify_tiny"
                )
            wrong = [n for n in plan.answers.values() if not 0 <= n < CLASSES]
            if wrong:
                raise SettingsError(
                    f"{where}.preprocess.text.ans2label: {wrong[0]} is no row of the model's head; "
                    f"numbers go from 0 to {CLASSES - 1}"
                )
            refuse_unread(plan, "model=unify_tiny")

    def build(self) -> PreTrainedModel:
        import torch
        from transformers import ViTConfig, ViTForImageClassification

        model = ViTForImageClassification(
            ViTConfig(
                image_size=self.settings.side,
                num_channels=self.settings.channels,
                num_labels=CLASSES,  # type: ignore[call-arg]  # of the base class
                patch_size=self.settings.patch,
                hidden_size=self.settings.hidden_size,
                num_hidden_layers=self.settings.num_hidden_layers,
                num_attention_heads=self.settings.num_attention_heads,
                intermediate_size=self.settings.intermediate_size,
            )
        )
        head: Any = model.classifier
        with torch.no_grad():
            torch.nn.init.orthogonal_(head.weight)
            head.bias.zero_()
        head.requires_grad_(False)
        return model

    def save(self, model: PreTrainedModel | PeftModel, base: Path) -> None:
        model.save_pretrained(str(base))

    def load(self, base: Path) -> PreTrainedModel:
        from transformers import ViTForImageClassification

        return load_base(ViTForImageClassification, base, "vit")

    def meeting(self, plan: TaskPlan) -> ImageChoice:
        return ImageChoice(plan)


FAMILY: MakeFamily = VisionTransformer


class ImageChoice(Choice):
    """A `Meeting`: rows to images, logits over the task's answers."""

    def __init__(self, plan: TaskPlan) -> None:
        assert plan.answers is not None
        self.plan = plan
        self.numbers = plan.answers
        by_number = {number: text for text, number in plan.answers.items()}
        self.texts = [by_number.get(number, "") for number in range(CLASSES)]
        self.classes = sorted(by_number)

    def example(
        self, row: Row, rng: np.random.Generator, training: bool, where: str
    ) -> Labelled[Pixels]:
        template = self.plan.templates[int(rng.integers(len(self.plan.templates)))]
        [slot] = [s for s in template.side("encoder") if s.text is None]
        pixels = pixels_of(self.plan, slot, row, training, where)
        truth = row.get(template.target.name)
        return Labelled(pixels, -1 if truth is None else self.numbers[str(truth)])

    def batch(self, examples: Sequence[Labelled[Pixels]]) -> dict[str, torch.Tensor]:
        import torch

        return {
            "pixel_values": torch.from_numpy(np.stack([one.content for one in examples])),
            "labels": torch.tensor([one.label for one in examples]),
        }

    def logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """n x rows of the head; what is no answer is ruled out and gets no gradient."""
        import torch

        logits: torch.Tensor = model(pixel_values=batch["pixel_values"]).logits
        other = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        other[self.classes] = False
        return logits.float().masked_fill(other, float("-inf"))
