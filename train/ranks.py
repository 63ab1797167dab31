"""Several processes train one model: the same steps as one process with the same global batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

log = logging.getLogger(__name__)

Result = TypeVar("Result")
PATIENCE = timedelta(days=30)  # for what the first process does alone: it ends or is ended


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


class Shares(torch.utils.data.Sampler[list[int]]):
    """The share of one process of every batch: contiguous, the first ones a row longer.

    All processes draw the same batches, so a step sees the rows it would see in one process. A
    batch of fewer rows than processes is everybody's, which leaves the mean over all rows alone.
    """

    def __init__(self, batches: torch.utils.data.Sampler[list[int]], rank: int, size: int) -> None:
        self.batches = batches
        self.rank, self.size = rank, size

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.batches:
            yield share(rows, self.rank, self.size)


def share(rows: Sequence[int], rank: int, size: int) -> list[int]:
    if len(rows) < size:
        return list(rows)
    each, longer = divmod(len(rows), size)
    begin = rank * each + min(rank, longer)
    return list(rows[begin : begin + each + (rank < longer)])


def weight(items: int, device: torch.device) -> float:
    """What to multiply a mean over `items` of this process with.

    The mean of the products over all processes is then the mean over all items. A collective:
    every process has to call it.
    """
    if size() == 1:
        return 1.0
    total = torch.tensor(items, device=device)
    dist.all_reduce(total)
    return size() * items / int(total)


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over all processes; a collective."""
    if size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / size()


@cache
def _patient_group() -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=PATIENCE)
    return group


def on_first(work: Callable[[], Result]) -> Result:
    """Let the first process do `work` and give all of them what it returned; a collective.

    The others wait as long as it takes: the default limit of a process group is half an hour.
    """
    if size() == 1:
        return work()
    answer = [work() if rank() == 0 else None]
    dist.broadcast_object_list(answer, src=0, group=_patient_group())
    return answer[0]  # type: ignore[return-value]


def arguments(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """`trainer`, arguments of transformers.TrainingArguments, as they fit the devices that are there."""
    # Transformers would look for unused parameters in every step, where all are used.
    fitting = {"ddp_find_unused_parameters": False, **trainer}
    if torch.cuda.is_available():
        return fitting
    fitting["use_cpu"] = True  # unless told, accelerate takes a worker without a GPU to be alone
    for key in ("fp16", "bf16"):
        if fitting.pop(key, False):
            log.warning("trainer.%s=true has no effect on the CPU: training in 32 bits", key)
    return fitting
