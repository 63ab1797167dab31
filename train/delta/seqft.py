"""SeqFT: every task trains the whole model, one after the other.

The baseline of that name in the O-LoRA paper, section 5. How much it forgets hangs on the learning rate:
on the four-task benchmark 1e-3 leaves 22 % and 1e-4 leaves 76 % (MIGU, arXiv 2406.17245, table 9).
"""

from __future__ import annotations

from train.delta.delta import Delta


class SeqFT(Delta):
    """No delta: there is nothing to attach, to save or to load but whole models."""

    name = "seqft"
    kind = "whole"

    def trains_whole(self, first: bool, pretrained: bool) -> bool:
        return True


DELTA = SeqFT
