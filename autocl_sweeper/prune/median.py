"""The median rule: a trial that was never as good as others on average is stopped.

Golovin et al., "Google Vizier: A Service for Black-Box Optimization" (KDD 2017), section 3.2.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from autocl_sweeper.curves import Curves

COMPLETED = 3  # trials that the median is taken of at least


@dataclass(frozen=True)
class Median:
    """Stops a trial whose best loss is above the median of the completed trials' running means.

    Both are taken over the reports up to the trial's own last step. `warmup`: no trial is stopped
    before so many steps; None: before a ninth of a full training. One that skips the first rung of
    ASHA is stopped after a third of it at the earliest.
    """

    warmup: int | None = None

    def steps(self, max_steps: int) -> tuple[int, ...]:
        """The step from which trials are judged."""
        return (math.ceil(max_steps / 9) if self.warmup is None else self.warmup,)

    def prune(self, curves: Curves, trial: int, max_steps: int) -> str | None:
        own = curves[trial]
        step = own.reports[-1][0]
        first = max(self.steps(max_steps)[0], max_steps / 3 if own.favoured else 0)
        if step < first:
            return None
        means = curves.means(step)
        if len(means) < COMPLETED:
            return None
        finite = [loss for _, loss in own.reports if math.isfinite(loss)]
        best = min(finite, default=math.inf)
        middle = median(means[(len(means) - 1) // 2 : len(means) // 2 + 1])  # they are sorted
        if best <= middle:
            return None
        return (
            f"its best loss {best:.4g} is above the median {middle:.4g} of what {len(means)}"
            f" completed trials had on average up to {step} steps"
        )

    def distrust(self, curves: Curves, max_steps: int) -> str | None:
        return None
