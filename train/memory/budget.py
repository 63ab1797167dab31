"""The hard limit on the GPU memory of a process."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

import torch

from train.config.memory import MemorySettings
from train.config.typed import SettingsError

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second: torch before 2.9
EXPANDABLE = "expandable_segments"


def limit_memory(memory: MemorySettings) -> None:
    """Hold this process to its share of the GPU. Raises SettingsError where there is none.

    Before the first tensor is on the GPU: the allocator reads its settings once.
    """
    budget = memory.budget_bytes
    if memory.mode == "sizes":
        return
    if budget is None:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            # An earlier job of this process may have had a limit.
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    if not torch.cuda.is_available():
        raise SettingsError(
            f"{memory.named_budget}: limits the memory of a GPU, and this job has none. Leave it null "
            "on the CPU, where memory=gc, fixed and every_n need no budget; memory.mode=sizes plans for "
            "this one here, without training"
        )
    if memory.hard_cap:
        use_expandable_segments(os.environ)
        own = int(os.environ.get("LOCAL_RANK", "0"))  # of several processes each has a GPU
        total = torch.cuda.get_device_properties(own).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total), own)


def use_expandable_segments(environ: MutableMapping[str, str]) -> None:
    """Ask torch's allocator for segments that grow, unless the environment says something of them.

    The limit is one of reserved memory, of which fragments between segments are a part.
    """
    given = next((name for name in ALLOCATOR if environ.get(name)), ALLOCATOR[0])
    if EXPANDABLE not in environ.get(given, ""):
        environ[given] = ",".join(filter(None, [environ.get(given), f"{EXPANDABLE}:True"]))
