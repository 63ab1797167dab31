"""Bytes that every step of a training needs, whatever its batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers

STATE_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "sgd": 0}  # of a trainable parameter
OTHER_STATES = 8  # assumed in plans for optimizers that are not among them


@dataclass(frozen=True)
class Static:
    """Bytes that every step of a training needs, whatever its batch."""

    parameters: float
    gradients: float
    states: float  # of the optimizer

    @classmethod
    def of(cls, model: torch.nn.Module, states: int) -> Static:
        """states: bytes of the optimizer for each trainable parameter."""
        own = [p for p in model.parameters() if p.device.type != "meta"]
        sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in own]
        gradients = sum(n for n, trained in sizes if trained)
        return cls(sum(n for n, _ in sizes), gradients, states * trainable(model))

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.states

    def __str__(self) -> str:
        return (
            f"{gib(self.parameters)} parameters, {gib(self.gradients)} gradients, "
            f"{gib(self.states)} optimizer states"
        )


def trainable(model: torch.nn.Module) -> int:
    """Number of parameters that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def gib(value: float) -> str:
    return f"{value / 2**30:.3f} GiB"


def made_with() -> dict[str, str]:
    """Versions and the GPU that figures belong to."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"torch": torch.__version__, "transformers": transformers.__version__, "gpu": gpu}
