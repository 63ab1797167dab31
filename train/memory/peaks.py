"""Measured peaks of plans, and what they say of plans that keep more.

A block that is kept instead of recomputed adds at most what it keeps to any moment of a step, so a measured
peak bounds those of all plans that recompute less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from train.memory.fit import Features, Rows

RECOMPUTED, PARTLY, KEPT = range(3)  # what becomes of a block, by how much it keeps
Levels = tuple[int, ...]  # of each block


@dataclass
class Peaks:
    """Peaks that steps were measured to have, static part excluded, by plan and features.

    A plan is the level of each block, and whether the step allocates its gradients.
    """

    rows: dict[tuple[Levels, bool], Rows] = field(default_factory=dict)

    def add(self, levels: Levels, fresh: bool, features: Features, peak: float) -> None:
        self.rows.setdefault((levels, fresh), Rows()).add(features, peak)

    def of(self, levels: Levels, fresh: bool, features: Features) -> float | None:
        """What this plan took for these very features; None: it did not run."""
        return self.rows.get((levels, fresh), Rows()).measured.get(features)

    def bounds(
        self, levels: Levels, fresh: bool, features: Features, held: Sequence[Sequence[float]]
    ) -> Iterator[float]:
        """No plan with these levels has a higher peak. held: of each block, its bytes by level."""
        for (plan, was_fresh), rows in self.rows.items():
            less = all(a <= b for a, b in zip(plan, levels, strict=True))
            if was_fresh != fresh or not less:
                continue
            measured = _peak_at(rows, features)
            if measured is not None:
                pairs = zip(held, plan, levels, strict=True)
                yield measured + sum(own[b] - own[a] for own, a, b in pairs)


def _peak_at(rows: Rows, features: Features) -> float | None:
    """The peak of a plan that ran: as measured, or between the sizes that were."""
    if features in rows.measured:
        return rows.measured[features]
    if not rows.fit.exact or rows.fit.extrapolates(features):
        return None
    return rows.fit.predict(features) + rows.fit.residual


def in_backward(
    held: Sequence[float], own: Sequence[float], gradients: Sequence[float]
) -> list[float]:
    """Bytes of all blocks while the backward pass is in the first, in the second, and so on.

    held: of each block before its backward pass. own: in it. gradients: added by it; empty: none.
    """
    before = [0.0, *accumulate(held)][:-1]
    behind = [*accumulate(reversed(gradients or [0.0] * len(held)), initial=0.0)][-2::-1]
    return [sum(three) for three in zip(before, own, behind, strict=True)]
