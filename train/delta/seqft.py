"""SeqFT: every task trains the whole model, one after the other.

The baseline of that name in the O-LoRA paper, section 5. How much it forgets hangs on the learning rate:
on the four-task benchmark 1e-3 leaves 22 % and 1e-4 leaves 76 % (MIGU, arXiv 2406.17245, table 9).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from train.config.sections import DeltaSettings
from train.delta.delta import Penalty

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class SeqFT:
    """No delta: there is nothing to attach, to save or to load but whole models."""

    name = "seqft"
    kind = "whole"

    def __init__(self, settings: DeltaSettings) -> None:
        self.settings = settings

    def trains_whole(self, first: bool, pretrained: bool) -> bool:
        return True

    def attach(
        self, model: PreTrainedModel | PeftModel, name: str, ancestors: Sequence[str]
    ) -> PeftModel:
        raise AssertionError("seqft trains the whole model: nothing is attached")

    def penalty(self) -> Penalty:
        return Penalty(torch.zeros(()), {})

    def conclude(self, row_losses: Iterable[torch.Tensor]) -> None:
        """Nothing is left to do."""

    def report(self) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        raise AssertionError("seqft trains the whole model: no delta is saved")

    def load(
        self, model: PreTrainedModel | PeftModel, name: str, ancestors: Sequence[str], folder: Path
    ) -> PeftModel:
        raise AssertionError("seqft trains the whole model: no delta is loaded")


DELTA = SeqFT
