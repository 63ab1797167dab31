"""ASHA, stopping type: at few rungs, only the best of those that came so far go on.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (arXiv 1810.05934), in the form
that stops a running trial instead of pausing it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from autocl_sweeper.curves import Curves

LEAST_CORRELATION = 0.3  # of a rung's losses with the final ones; below it a rung says too little
COMPLETED = 8  # trials that the correlation is taken over at least


@dataclass(frozen=True)
class Asha:
    """Stops a trial at a rung unless it ranks among the best `max(k, n // eta)` of n that came there.

    A rung lies at a share of the steps of a full training. It is judged once, at the first report at
    or beyond it and by that report's loss. A loss that is not finite ranks behind all others.
    """

    k: int
    eta: int = 3
    rungs: tuple[float, ...] = (1 / 9, 1 / 3)  # rising shares, each between 0 and 1
    warmup: int = 0  # no trial is stopped before so many steps

    def steps(self, max_steps: int) -> tuple[int, ...]:
        """The step of each rung: a report there or later is judged."""
        # A share is not exact in binary: 900 steps have their first rung at 100 all the same.
        return tuple(max(1, math.ceil(max_steps * share - 1e-6)) for share in self.rungs)

    def prune(self, curves: Curves, trial: int, max_steps: int) -> str | None:
        reports = curves[trial].reports
        step, loss = reports[-1]
        before = reports[-2][0] if len(reports) > 1 else -1
        for place, rung in enumerate(self.steps(max_steps)):
            first_skipped = place == 0 and curves[trial].favoured
            if not before < rung <= step or first_skipped or step < self.warmup:
                continue
            losses = curves.at(rung).losses
            n, go_on = len(losses), max(self.k, len(losses) // self.eta)
            rank = bisect_left(losses, loss) + 1 if math.isfinite(loss) else n
            if rank > go_on and self.distrust(curves, max_steps) is None:
                return f"rank {rank} of {n} at the rung of {rung} steps, where {go_on} go on"
        return None

    def distrust(self, curves: Curves, max_steps: int) -> str | None:
        for step in self.steps(max_steps):
            rung = curves.at(step)
            if len(rung.completed) < COMPLETED:
                continue
            found = rung.agreement(LEAST_CORRELATION)
            if found.correlation < LEAST_CORRELATION:
                return (
                    f"the scores at {step} steps say little about the final ones (rank correlation"
                    f" {found.correlation:.2f} over {found.n} completed trials, below"
                    f" {LEAST_CORRELATION})"
                )
        return None
