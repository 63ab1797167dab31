"""Several processes train one model: the same steps as one process with the same global batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
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
    """Number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes; a collective."""
    if size() == 1:
        return values
    added = values.clone()
    dist.all_reduce(added)
    return added


def count(here: int) -> int | torch.Tensor:
    """The sum over all processes of a number; a collective. Several give a tensor: reading it would wait."""
    if size() == 1:
        return here
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return total(torch.tensor(here, device=device))


def any_of(here: bool) -> bool:
    """True if it is so in any process; a collective."""
    return bool(count(int(here)) > 0)


def add_gradients(model: torch.nn.Module) -> None:
    """Give every process the sum of the gradients of all; a collective, one message per dtype.

    A parameter that this process did not use, because a task of another kind did, counts as 0.
    """
    if size() == 1:
        return
    by_dtype: dict[torch.dtype, list[torch.nn.Parameter]] = {}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_dtype.setdefault(parameter.dtype, []).append(parameter)
    for group in by_dtype.values():
        together = torch.cat([p.grad.flatten() for p in group if p.grad is not None])
        dist.all_reduce(together)
        for p, part in zip(group, torch.split(together, [p.numel() for p in group]), strict=True):
            p.grad = part.view_as(p)


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
    fitting["use_cpu"] = True  # without it accelerate takes a worker without a GPU to be alone
    for key in ("fp16", "bf16"):
        if fitting.pop(key, False):
            log.warning("trainer.%s=true has no effect on the CPU: training in 32 bits", key)
    return fitting
