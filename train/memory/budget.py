"""The hard limit on the GPU memory of a process."""

from __future__ import annotations

import torch

from train.config.sections import MemorySettings
from train.config.typed import SettingsError


def limit_memory(memory: MemorySettings) -> None:
    """Hold this process to its share of the GPU. Raises SettingsError where there is none."""
    if memory.budget_mib is None:
        return
    if not torch.cuda.is_available():
        raise SettingsError(
            f"memory.budget_mib={memory.budget_mib}: limits the memory of a GPU, and this job has "
            "none. Leave it null on the CPU"
        )
    total_mib = torch.cuda.get_device_properties(0).total_memory / 2**20
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory.budget_mib / total_mib))
