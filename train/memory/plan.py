"""Which blocks of a step are recomputed: the cheapest plan whose predicted peak fits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one step with N equal blocks, by what keeps them."""

    blocks: int  # N
    kept: float  # a: of a block that keeps all for its backward pass
    stash: float  # h: of a block that is recomputed: its input and random state
    outside: float  # o: all outside the blocks, temporaries included
    shared: float = 0.0  # s: kept once if any block is recomputed, as the attention mask
    selective: float | None = None  # b: of a block that keeps its matmuls alone; None: no such tier

    def peak(self, full: int, selective: int = 0) -> float:
        """Bytes at the peak, static part excluded: first `full` blocks recomputed, then `selective`.

        The recomputation of a block needs all of it once, which is why N are no better than N - 1.
        """
        some = full + selective
        assert 0 <= some <= self.blocks
        b = self.kept if self.selective is None else self.selective
        held = full * self.stash + selective * b + (self.blocks - some) * self.kept
        if full == self.blocks:
            held = full * self.stash + self.kept
        return self.outside + (self.shared if some else 0.0) + held

    @property
    def least(self) -> float:
        """The smallest peak that any plan has."""
        return min(self.peak(k) for k in {0, self.blocks - 1})


@dataclass(frozen=True)
class Plan:
    """First `full` blocks recomputed whole, the next `selective` in part, the rest kept."""

    full: int
    selective: int
    peak: float  # predicted, static part excluded

    @property
    def empty(self) -> bool:
        return not self.full + self.selective


def prefix_plan(step: StepBytes, available: float) -> Plan | None:
    """The fewest first blocks, at most N - 1, that bring the peak to `available`; None: too little.

    available: bytes for all but the static part.
    """
    for k in range(max(1, step.blocks)):
        if step.peak(k) <= available:
            return Plan(k, 0, step.peak(k))
    return None


def tiered_plan(
    step: StepBytes, available: float, full_cost: float = 1.0, selective_cost: float = 0.0
) -> Plan | None:
    """The cheapest of all plans of both tiers that fits; of equal cost the one with the lower peak.

    Costs: what recomputing a block takes in each tier, in any unit of work or time.
    """
    if step.selective is None:
        return prefix_plan(step, available)
    found: list[tuple[float, float, Plan]] = []
    for full in range(max(1, step.blocks)):
        for selective in range(max(1, step.blocks) - full):
            peak = step.peak(full, selective)
            if peak <= available:
                cost = full * full_cost + selective * selective_cost
                found.append((cost, peak, Plan(full, selective, peak)))
    return min(found, key=lambda one: one[:2])[2] if found else None


def unequal_peak(
    kept: Sequence[float],
    stash: Sequence[float],
    largest: Sequence[float],
    recomputed: Collection[int],
    outside: float,
    shared: float,
    gradients: Sequence[float] = (),
    partly: Mapping[int, float] = MappingProxyType({}),
) -> float:
    """A first value for the peak of blocks that differ. Measured peaks have to correct it.

    largest: bytes of the largest single tensor each block keeps. recomputed: indices of blocks.
    gradients: bytes that the backward pass of each block adds for its parameters; none where they are
    there before the step. partly: index -> bytes of a block that is recomputed in part.
    """
    n = range(len(kept))
    held = [stash[i] if i in recomputed else partly.get(i, kept[i]) for i in n]
    own = [
        stash[i] + kept[i] + largest[i] if i in recomputed or i in partly else kept[i] for i in n
    ]
    peak = max([sum(held), *in_backward(held, own, gradients)])
    return outside + (shared if recomputed or partly else 0.0) + peak


def in_backward(
    held: Sequence[float], own: Sequence[float], gradients: Sequence[float] = ()
) -> list[float]:
    """Bytes of all blocks while the backward pass is in the first, in the second, and so on.

    held: of each block before its backward pass. own: in it. gradients: added by it.
    """
    before = [0.0, *accumulate(held)][:-1]
    behind = [*accumulate(reversed(gradients or [0.0] * len(held)), initial=0.0)][-2::-1]
    return [sum(three) for three in zip(before, own, behind, strict=True)]
