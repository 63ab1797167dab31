"""EWC on one adapter that every task trains on: what old tasks needed moves at a price.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks" (arXiv 1612.00796), eq. 3:

    L   = task loss + lambda / 2 * sum_i F_i (theta_i - theta*_i)^2
    F_i = mean over rows of the old task's training data of (d log p(answer of the row) / d theta_i)^2

theta* is the adapter of the parent. The gradient is squared row by row: squaring that of a batch would let
rows cancel. Fishers of several old tasks are added up around the last theta* (online EWC, arXiv
1805.06370, with gamma 1), so that a checkpoint has one, in fisher.safetensors beside its adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from train.config.sections import DeltaSettings
from train.delta.delta import Model, Penalty
from train.delta.seqlora import SeqLoRA

FISHER = "fisher.safetensors"


class ElasticityOff(RuntimeError):
    """The adapter has moved away from its parent's, and the penalty for it is 0."""


class EWC(SeqLoRA):
    """A delta: the adapter of the tasks so far, and how much each of its weights mattered to them."""

    name = "ewc"
    kind = "ewc"  # an adapter of all tasks so far, with its Fisher

    def __init__(self, settings: DeltaSettings) -> None:
        super().__init__(settings)
        # Fishers by names without the adapter's: of the tasks before, and with this task's.
        self.old: dict[str, torch.Tensor] = {}
        self.fisher: dict[str, torch.Tensor] = {}
        self.star: dict[str, torch.Tensor] = {}
        self.is_on = False

    def attach(self, model: Model, name: str, ancestors: Sequence[str]) -> PeftModel:
        made = super().attach(model, name, ancestors)
        if self.old:
            self.star = {key: p.detach().clone() for key, p in self._weights().items()}
        return made

    def _weights(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's weights, by names that do not change from task to task."""
        assert self.model is not None
        own = f".{self.own}."
        return {n.replace(own, "."): p for n, p in self.model.named_parameters() if own in n}

    @cached_property
    def held(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(theta, theta*, F), found when first asked for: only then the model is on its device."""
        weights = self._weights() if self.star else {}
        return [
            (p, self.star[key].to(p.device).float(), self.old[key].to(p.device))
            for key, p in weights.items()
        ]

    def penalty(self) -> Penalty:
        """Raises ElasticityOff where the weights have moved and it is 0."""
        found = torch.zeros(())
        moved = False
        for weight, star, fisher in self.held:
            away = weight.float() - star
            found = found + (fisher * away.square()).sum() / 2
            moved = moved or (not self.is_on and bool(away.any()))
        if moved:
            if not found.item() > 0:
                raise ElasticityOff(
                    f"the EWC penalty is {found.item()} although the adapter has moved: the Fisher of "
                    "the tasks before is all zero or was not loaded. Check the checkpoint in init_from"
                )
            self.is_on = True
        return Penalty(self.settings.ewc_lambda * found, {"ewc_loss": found})

    def conclude(self, row_losses: Iterable[torch.Tensor]) -> None:
        if self.model is None:
            return
        weights, rows = self._weights(), 0
        total = {key: torch.zeros_like(p, dtype=torch.float32) for key, p in weights.items()}
        for loss in row_losses:
            gradients = torch.autograd.grad(loss, [*weights.values()])
            for squares, gradient in zip(total.values(), gradients, strict=True):
                squares += gradient.float().square()
            rows += 1
        self.fisher = {
            key: value / rows + self.old.get(key, torch.zeros(())).to(value.device)
            for key, value in total.items()
        }

    def save(self, folder: Path) -> None:
        super().save(folder)
        if self.fisher:
            fisher = {k: v.cpu().contiguous() for k, v in self.fisher.items()}
            save_file(fisher, folder / self.own / FISHER)

    def load(self, model: Model, name: str, ancestors: Sequence[str], folder: Path) -> PeftModel:
        self.old = load_file(folder / name / FISHER)
        return super().load(model, name, ancestors, folder)


DELTA = EWC
