"""Survivors from different suggestions, as far as noise allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import fmean
from typing import ClassVar

from autocl_sweeper.selection import TopK
from autocl_sweeper.selection.groups import Group, groups, in_order
from autocl_sweeper.types import Trial


class Diverse(TopK):
    """The k best, but no two from the same suggestion while another is within noise of the second.

    Noise is the standard error of the repeats; without repeats, the standard deviation of what
    suggestion and parent together leave unexplained where suggestions ran with several parents.
    """

    monotone: ClassVar[bool] = False

    def __call__(self, finished: Sequence[Trial]) -> list[Trial]:
        rest = in_order(groups(finished, self.loss))
        unexplained = residual_deviation(rest)
        beam: list[Group] = []
        while rest and len(beam) < self.kept(finished):
            taken = {group.best.suggestion.index for group in beam}
            best = rest[0]
            noise = best.stderr or unexplained
            others = (
                group
                for group in rest
                if group.best.suggestion.index not in taken and group.loss <= best.loss + noise
            )
            if best.best.suggestion.index in taken:
                best = next(others, best)
            beam.append(best)
            rest.remove(best)
        return [group.best for group in beam]


def residual_deviation(candidates: Sequence[Group]) -> float:
    """The standard deviation of scores around effects of suggestion and start that add up; 0: unknown.

    Exact where every suggestion ran with every parent; else the effects are plain means.
    """

    def means(key: Callable[[Group], Hashable]) -> dict[Hashable, float]:
        found: dict[Hashable, list[float]] = {}
        for group in candidates:
            found.setdefault(key(group), []).append(group.loss)
        return {name: fmean(losses) for name, losses in found.items()}

    suggestions = means(lambda group: group.best.suggestion.index)
    parents = means(lambda group: (group.best.parent, group.best.extra))
    freedom = len(candidates) - len(suggestions) - len(parents) + 1
    if freedom < 1 or len(suggestions) == len(candidates):
        return 0.0
    everything = fmean(group.loss for group in candidates)
    residuals = (
        group.loss
        - suggestions[group.best.suggestion.index]
        - parents[group.best.parent, group.best.extra]
        + everything
        for group in candidates
    )
    return math.sqrt(sum(residual**2 for residual in residuals) / freedom)
