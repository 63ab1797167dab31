"""SeqFT: every task trains the whole model, one after the other.

The baseline of that name in the O-LoRA paper, section 5. How much it forgets hangs on the learning rate:
on the four-task benchmark 1e-3 leaves 22 % and 1e-4 leaves 76 % (MIGU, arXiv 2406.17245, table 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from train.delta.method import Method

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class SeqFT(Method):
    """No delta: there is nothing to attach, to save or to load but whole models."""

    name = "seqft"
    kind = "whole"

    def trains_whole(self, first: bool, pretrained: bool) -> bool:
        return True

    def attach(
        self, model: PreTrainedModel | PeftModel, name: str, ancestors: Sequence[str]
    ) -> PeftModel:
        raise AssertionError("seqft trains the whole model: nothing is attached")

    def save(self, folder: Path) -> None:
        raise AssertionError("seqft trains the whole model: no delta is saved")

    def load(
        self, model: PreTrainedModel | PeftModel, name: str, ancestors: Sequence[str], folder: Path
    ) -> PeftModel:
        raise AssertionError("seqft trains the whole model: no delta is loaded")


DELTA = SeqFT
