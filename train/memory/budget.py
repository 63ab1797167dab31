"""The hard limit on the GPU memory of a process."""

from __future__ import annotations

import os

import torch

from autocl_sweeper.device.pool import SHARE
from train.config.memory import MemorySettings
from train.config.typed import SettingsError


def limit_memory(memory: MemorySettings) -> None:
    """Hold this process to its share of the GPU. Raises SettingsError where there is none.

    The smaller of two counts: its own budget, and what it reserves beside other jobs of a sweep.
    """
    if memory.mode == "sizes":
        return
    budget, leased = memory.budget_bytes, float(os.environ.get(SHARE, 1.0))
    if not torch.cuda.is_available():
        if budget is None:
            return
        raise SettingsError(
            f"{memory.named_budget}: limits the memory of a GPU, and this job has none. Leave it null "
            "on the CPU, where memory=gc, fixed and every_n need no budget; memory.mode=sizes plans for "
            "this one here, without training"
        )
    own = 1.0
    if budget is not None and memory.hard_cap:
        own = budget / torch.cuda.get_device_properties(0).total_memory
    if min(own, leased) < 1.0 or (budget is not None and memory.hard_cap):
        torch.cuda.set_per_process_memory_fraction(min(own, leased, 1.0))
