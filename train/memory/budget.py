"""The hard limit on the GPU memory of a process."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

import torch

from autocl_sweeper.device.pool import SHARE
from train.config.memory import MemorySettings
from train.config.typed import SettingsError

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second: torch before 2.9
EXPANDABLE = "expandable_segments"


def limit_memory(memory: MemorySettings) -> None:
    """Hold this process to its share of the GPU. Raises SettingsError where there is none.

    The smaller of two counts: its own budget, and what it reserves beside other jobs of a sweep. To be
    called before the first tensor is on the GPU: the allocator reads its settings once.
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
    device = int(os.environ.get("LOCAL_RANK", "0"))  # of several processes each has a GPU
    own = 1.0
    if budget is not None and memory.hard_cap:
        own = budget / torch.cuda.get_device_properties(device).total_memory
    is_limited = leased < 1.0 or (budget is not None and memory.hard_cap)
    if is_limited:
        use_expandable_segments(os.environ)
    # An earlier job of this process may have had a limit.
    if is_limited or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_per_process_memory_fraction(min(own, leased, 1.0), device)


def use_expandable_segments(environ: MutableMapping[str, str]) -> None:
    """Ask torch's allocator for segments that grow, unless the environment says something of them.

    The limit is one of reserved memory, of which fragments between segments are a part.
    """
    given = next((name for name in ALLOCATOR if environ.get(name)), ALLOCATOR[0])
    if EXPANDABLE not in environ.get(given, ""):
        environ[given] = ",".join(filter(None, [environ.get(given), f"{EXPANDABLE}:True"]))
