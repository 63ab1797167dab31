"""Bytes that blocks keep for their backward pass, counted while one forward pass runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from train.memory.meter import Meter
from train.memory.planner import Collected
from train.memory.selective import Outputs, call_of, tensors


class Collector:
    """Counts the saved bytes of one kept block, and what recomputed ones hold, in a forward pass.

    The blocks' own forward hooks do it: nothing is run twice. `close` takes them away.
    mark: called when the backward pass comes to a block, and when it leaves the first one.
    counts_outputs: count what tiers would keep of the probe, too.
    """

    def __init__(
        self,
        blocks: Sequence[torch.nn.Module],
        mark: Callable[[], None],
        counts_outputs: bool = False,
    ) -> None:
        self.blocks, self.mark, self.counts_outputs = blocks, mark, counts_outputs
        self.outputs: Outputs | None = None  # of the probe
        self.call: Any = None  # arguments of the probe, where `keeps_call` was set
        self.keeps_call = False
        self.order: list[int] = []  # of the blocks, as the backward pass has come to them
        self.probe = -1
        self.alive: list[torch.Tensor] = []  # so that no storage is reused while it is counted
        self.own: dict[int, int] = {}  # storage -> bytes, of what the probe saves
        self.inputs: dict[int, int] = {}  # block -> bytes of its input
        self.others: dict[int, int] = {}  # storage -> bytes, of all other arguments
        self.fixed: set[int] = set()  # storages of parameters
        self.handles: list[Any] = []
        self.counting: saved_tensors_hooks | None = None
        for i, block in enumerate(self.blocks):
            before = block.register_forward_pre_hook(self._before(i), with_kwargs=True)
            after = block.register_forward_hook(self._after(i), always_call=True)
            self.handles += [before, after]

    def start(self, probe: int) -> None:
        """Begin a forward pass in which block `probe` is kept and all others are recomputed."""
        self.probe = probe
        self.own, self.inputs, self.others = {}, {}, {}
        self.order = []
        self.fixed = {p.untyped_storage().data_ptr() for p in self.blocks[probe].parameters()}

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []

    @property
    def kept(self) -> int:
        """Bytes of the probe; what all blocks are given alike is not among them."""
        return sum(self._unshared())

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor among them."""
        return max(self._unshared(), default=0)

    @property
    def stashes(self) -> dict[int, float]:
        """Bytes of each block when recomputed: its input, and the random state on the CPU."""
        first = next(self.blocks[self.probe].parameters())
        state = torch.get_rng_state().numel() if first.device.type == "cpu" else 0
        return {i: float(n + state) for i, n in self.inputs.items()}

    @property
    def shared(self) -> int:
        """Bytes of arguments other than the input, as a mask, that the probe itself does not keep."""
        return sum(n for place, n in self.others.items() if place not in self.own)

    def _unshared(self) -> Iterator[int]:
        return (n for place, n in self.own.items() if place not in self.others)

    def _before(self, i: int) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first, *rest = [*tensors(args), *tensors(kwargs)]
            if not self.inputs and first.requires_grad:
                first.register_hook(lambda _: self.mark())  # type: ignore[no-untyped-call]
            self.inputs[i] = _bytes(first)
            self.others |= {t.untyped_storage().data_ptr(): _bytes(t) for t in rest}
            if i == self.probe:
                self.counting = saved_tensors_hooks(self._pack, lambda packed: packed)
                self.counting.__enter__()
                if self.keeps_call:
                    self.call = call_of(args, kwargs)
                if self.counts_outputs:
                    self.outputs = Outputs()
                    self.outputs.__enter__()  # type: ignore[no-untyped-call]

        return hook

    def _after(self, i: int) -> Any:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            first = next(tensors(output), None)
            if first is not None and first.requires_grad:
                first.register_hook(partial(self._come, i))  # type: ignore[no-untyped-call]
            if i == self.probe and self.counting is not None:
                if self.outputs is not None:
                    self.outputs.__exit__(None, None, None)  # type: ignore[no-untyped-call]
                self.counting.__exit__(None, None, None)
                self.counting = None
                self.alive = []  # the backward pass frees them as ever

        return hook

    def _come(self, i: int, gradient: torch.Tensor) -> None:
        self.order.append(i)
        self.mark()

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in self.fixed:
            self.own[place] = _bytes(tensor)
            self.alive.append(tensor.detach())
        return tensor.detach()  # the tensor itself would keep its own graph alive


def collected(found: Collector, static: float, meter: Meter, fresh: bool) -> Collected:
    """What a step under collection has shown, whose peaks the meter has read.

    static: bytes before the step. fresh: the step allocated its gradients.
    """
    head, *parts = [peak - static for peak in meter.parts]
    peak = max([head, *parts])
    # At most the peak, where a block has no part of its own.
    at = [0.0 if i in found.order else peak for i in range(len(found.blocks))]
    for i, part in zip(found.order, parts, strict=False):  # the tail is no block's
        at[i] = max(at[i], part)
    stashes = found.stashes
    outputs = {} if found.outputs is None else found.outputs.bytes
    return Collected(
        probe=found.probe,
        kept=float(found.kept),
        held=stashes,
        largest=float(found.largest),
        shared=float(found.shared),
        peak=peak,
        head=head if parts else None,
        backward=at if parts else (),
        tail=parts[-1] if len(parts) > len(found.order) else None,
        partly={tier: stashes[found.probe] + n for tier, n in outputs.items()},
        fresh=fresh,
    )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()
