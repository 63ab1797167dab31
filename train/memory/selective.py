"""Blocks that are recomputed in part: outputs of matrix products are kept, all else is recomputed.

What is kept takes no random number, so that masks of dropout are drawn again as they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import flop_registry

from train.memory.planner import Tier

_LINEAR = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
# Name of a tier -> operations whose outputs it keeps.
KEPT: Mapping[str, tuple[Any, ...]] = {
    "linear": _LINEAR,
    "attention": (*_LINEAR, torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default),
}
REPEATS = 3  # timed runs of a block, behind one that is not


def checkpointing(tier: str) -> Callable[..., Any]:
    """torch's non-reentrant checkpoint that keeps the outputs of a tier's operations."""
    contexts = partial(create_selective_checkpoint_contexts, list(KEPT[tier]))
    return partial(checkpoint, use_reentrant=False, context_fn=contexts)


class Outputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that each tier would keep of what runs under it, and the work it would save."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = dict.fromkeys(KEPT, 0)
        self.kept_flops = dict.fromkeys(KEPT, 0)
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        flops = int(formula(*args, **(kwargs or {}), out_val=found)) if formula else 0
        self.flops += flops
        for tier, operations in KEPT.items():
            if func in operations:
                self.bytes[tier] += found.untyped_storage().nbytes()
                self.kept_flops[tier] += flops
        return found

    def tier(self, name: str) -> Tier:
        """A tier with the work of its recomputation as cost."""
        return Tier(name, float(self.flops - self.kept_flops[name]), float(self.flops))


def timed(
    block: torch.nn.Module, functions: Mapping[str, Callable[..., Any] | None], call: Any
) -> dict[str, float]:
    """Seconds of a forward and a backward pass of `block` with each function that checkpoints; None: none.

    call: what `call_of` gave. Gradients, random states and hooks stay as they are.
    """
    args, kwargs, precision = call
    device = next(block.parameters()).device
    before = block.gradient_checkpointing, block.__dict__.get("_gradient_checkpointing_func")
    inputs = [t for t in tensors((args, kwargs)) if t.requires_grad]
    wanted = [*inputs, *(p for p in block.parameters() if p.requires_grad)]
    found = {}
    mixed = torch.autocast(device.type, precision, enabled=precision is not None)
    fork = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with fork, torch.enable_grad(), mixed:
        for name, function in functions.items():
            block.gradient_checkpointing = function is not None  # type: ignore[assignment]
            block._gradient_checkpointing_func = function  # type: ignore[assignment]
            runs = []
            for _ in range(1 + REPEATS):
                began = _now(device)
                output = next(tensors(block.forward(*args, **kwargs)))
                torch.autograd.grad(output.sum(), wanted, allow_unused=True)
                runs.append(_now(device) - began)
            found[name] = median(runs[1:])
    block.gradient_checkpointing, block._gradient_checkpointing_func = before  # type: ignore[assignment]
    return found


def cheapest(seconds: Mapping[str, float], held: Mapping[str, float]) -> Tier | None:
    """The tier that costs least time for each byte it frees; None: recomputing whole blocks costs less.

    seconds, held: of a block that is `kept`, recomputed `whole`, or in a tier; its time and its bytes.
    """
    costs = {name: max(0.0, took - seconds["kept"]) for name, took in seconds.items()}
    freed = {name: held["kept"] - held[name] for name in held if name != "kept"}
    rates = {name: costs[name] / freed[name] for name in freed if freed[name] > 0}
    best = min(rates, key=lambda name: rates[name], default="whole")
    return None if best == "whole" else Tier(best, costs[best], costs["whole"])


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in arguments or in an output."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(one)


def call_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Arguments of a block, cut off from what made them, and the dtype of autocast; None: it is off."""
    kind = next(tensors(args or kwargs)).device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return _detached(args), _detached(kwargs), precision


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: _detached(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_detached(one) for one in value)
    return value


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
