"""The hard limit on the GPU memory of a process."""

from __future__ import annotations

import torch

from train.config.memory import MemorySettings
from train.config.typed import SettingsError


def limit_memory(memory: MemorySettings) -> None:
    """Hold this process to its share of the GPU. Raises SettingsError where there is none."""
    budget = memory.budget_bytes
    if budget is None or memory.mode == "sizes":
        return
    if not torch.cuda.is_available():
        raise SettingsError(
            f"{memory.named_budget}: limits the memory of a GPU, and this job has none. Leave it null "
            "on the CPU, where memory=gc, fixed and every_n need no budget; memory.mode=sizes plans for "
            "this one here, without training"
        )
    if memory.hard_cap:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total))
