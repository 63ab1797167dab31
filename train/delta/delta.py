"""The joint for deltas, the changes of a model by a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from train.config.sections import DeltaSettings

Model: TypeAlias = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Penalty:
    """A term of the loss of an update, and its parts by the names they are logged under."""

    weighted: torch.Tensor  # a scalar
    parts: Mapping[str, torch.Tensor]  # scalars without their weights; the same names every time


class Delta:
    """The part one task trains on top of a model, under a name of its own in the chain.

    Where a task trains the whole model (`trains_whole`), the delta is not attached, and not saved.
    """

    name: str  # as in `delta._name`
    kind: str  # of the files it saves: methods with one kind may follow each other in a chain

    def __init__(self, settings: DeltaSettings) -> None:
        self.settings = settings
        self.model: Any = None  # with the delta, once it is attached
        self.own = ""  # the name it was attached by

    def trains_whole(self, first: bool, pretrained: bool) -> bool:
        """True where a task trains the whole model: unless set, the first on random weights.

        first: of its chain. pretrained: the chain began with weights that were there already.
        """
        wanted = self.settings.first
        return first and (wanted == "full" or (wanted is None and not pretrained))

    def attach(self, model: Model, name: str, ancestors: Sequence[str]) -> PeftModel:
        """The model with a new delta, the only trainable part, on top of its active `ancestors`.

        Draws from torch's global generator. The delta changes nothing yet.
        """
        raise NotImplementedError

    def penalty(self) -> Penalty:
        """The penalty of this update, in float32 whatever autocast is on.

        When it is computed decides in which order autograd adds its gradients to the task's (the last
        computed comes first), and with it the last bit of a step.
        """
        return Penalty(torch.zeros(()), {})

    def conclude(self, row_losses: Iterable[torch.Tensor]) -> None:
        """The task is trained: the last thing before saving.

        row_losses: cross entropy of each training row, summed over what counts, with its graph. Nothing
        is computed for a method that does not iterate over it.
        """

    def report(self) -> dict[str, float]:
        """Numbers of the training so far, for its log and its results."""
        return {}

    def save(self, folder: Path) -> None:
        """Write the attached delta to a folder of its name in `folder`."""
        raise NotImplementedError

    def load(self, model: Model, name: str, ancestors: Sequence[str], folder: Path) -> PeftModel:
        """The model with the delta `save` wrote to `folder`, frozen, active together with `ancestors`.

        Raises ValueError where it does not fit the model, and what the libraries raise on damage.
        """
        raise NotImplementedError


def norm(tensors: Iterable[torch.Tensor]) -> float:
    """The Frobenius norm of all of them together."""
    return torch.stack([one.square().sum() for one in tensors]).sum().sqrt().item()


def refuse_misfit(saved: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises ValueError where the tensors that were saved are not those that are in the model."""
    if different := sorted(saved.keys() ^ found.keys()):
        raise ValueError(f"its weights do not fit the model: {different[:3]}")


def delta_of(settings: DeltaSettings) -> Delta:
    """The method `delta._name` names: `DELTA` of its module."""
    make: Callable[[DeltaSettings], Delta] = import_module(f"train.delta.{settings.kind}").DELTA
    return make(settings)
