"""What the methods have in common: no penalty, and nothing to do after training, unless they say so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from train.config.sections import DeltaSettings
from train.delta.delta import Penalty


class Method:
    """The base of a delta. The first task of a chain that begins with random weights trains them all."""

    def __init__(self, settings: DeltaSettings) -> None:
        self.settings = settings
        self.model: Any = None  # with the delta, once it is attached
        self.own = ""  # the name it was attached by

    def trains_whole(self, first: bool, pretrained: bool) -> bool:
        wanted = self.settings.first
        return first and (wanted == "full" or (wanted is None and not pretrained))

    def penalty(self) -> Penalty:
        return Penalty(torch.zeros(()), {})

    def conclude(self, row_losses: Iterable[torch.Tensor]) -> None:
        """Nothing is left to do."""

    def report(self) -> dict[str, float]:
        return {}
