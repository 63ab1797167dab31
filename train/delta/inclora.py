"""IncLoRA: a new adapter per task on top of its frozen ancestors, and nothing that keeps them apart.

The baseline of that name in the O-LoRA paper, section 5: O-LoRA with lamda_1 = 0. Its penalties are
logged nevertheless, so that both can be compared.
"""

from __future__ import annotations

from dataclasses import replace

from train.config.sections import DeltaSettings
from train.delta.olora import OLoRA


class IncLoRA(OLoRA):
    """O-LoRA whose orthogonal penalty weighs nothing."""

    name = "inclora"

    def __init__(self, settings: DeltaSettings) -> None:
        super().__init__(replace(settings, lamda_1=0.0))


DELTA = IncLoRA
