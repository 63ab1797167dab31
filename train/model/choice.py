"""What the meetings that choose one of a task's answers have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from train.model.family import inputs_of, moved

if TYPE_CHECKING:
    import torch


Content = TypeVar("Content")


@dataclass(frozen=True)
class Labelled(Generic[Content]):
    """One row: what the model reads of it, and the place of its answer; -1 where it has none."""

    content: Content
    label: int


class Choice:
    """The end of a `Meeting`: a logit for each answer, the likeliest as the answer."""

    texts: list[str]  # the answers, by their place among the logits

    def batch(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Rows x answers."""
        logits: torch.Tensor = model(**inputs_of(batch)).logits
        return logits

    def answers(
        self, model: torch.nn.Module, examples: Sequence[Any], device: torch.device
    ) -> list[str]:
        batch = moved(self.batch(examples), device)
        return [self.texts[i] for i in self.logits(model, batch).argmax(-1).tolist()]
