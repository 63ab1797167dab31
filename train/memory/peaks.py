"""Measured peaks of plans, and what they say of plans that keep more.

A block that is kept instead of recomputed adds at most what it keeps to any moment of a step, so a measured
peak bounds those of all plans that recompute less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from train.memory.fit import Features, Fit, determined, fit

ROWS = 64  # distinct feature rows a fit is made of, the last ones
RECOMPUTED, PARTLY, KEPT = range(3)  # what becomes of a block, by how much it keeps
Levels = tuple[int, ...]  # of each block


@dataclass
class Peaks:
    """Peaks that steps were measured to have, static part excluded, by plan and features.

    A plan is the level of each block, and whether the step allocates its gradients.
    """

    rows: dict[tuple[Levels, bool], dict[Features, float]] = field(default_factory=dict)
    fits: dict[tuple[Levels, bool], Fit | None] = field(default_factory=dict)

    def add(self, levels: Levels, fresh: bool, features: Features, peak: float) -> None:
        own = self.rows.setdefault((levels, fresh), {})
        own.pop(features, None)
        own[features] = peak
        if len(own) > ROWS:
            del own[next(iter(own))]
        self.fits.pop((levels, fresh), None)

    def clear(self) -> None:
        self.rows.clear()
        self.fits.clear()

    def of(self, levels: Levels, fresh: bool, features: Features) -> float | None:
        """What this plan took for these very features; None: it did not run."""
        return self.rows.get((levels, fresh), {}).get(features)

    def bounds(
        self, levels: Levels, fresh: bool, features: Features, held: Sequence[Sequence[float]]
    ) -> Iterator[float]:
        """No plan with these levels has a higher peak. held: of each block, its bytes by level."""
        for plan, was_fresh in self.rows:
            less = all(a <= b for a, b in zip(plan, levels, strict=True))
            if was_fresh != fresh or not less:
                continue
            measured = self._at(plan, fresh, features)
            if measured is not None:
                pairs = zip(held, plan, levels, strict=True)
                yield measured + sum(own[b] - own[a] for own, a, b in pairs)

    def _at(self, plan: Levels, fresh: bool, features: Features) -> float | None:
        """The peak of a plan that ran: as measured, or between the sizes that were."""
        known = self.of(plan, fresh, features)
        if known is not None:
            return known
        key = plan, fresh
        if key not in self.fits:
            rows = self.rows[key]
            self.fits[key] = fit([*rows], [*rows.values()]) if determined([*rows]) else None
        found = self.fits[key]
        if found is None or found.extrapolates(features):
            return None
        return found.predict(features) + found.residual
