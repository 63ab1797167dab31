"""Survivors that are good at the current task or at the old ones: no other is better at both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from autocl_sweeper.objective import tasks_until
from autocl_sweeper.selection import TopK
from autocl_sweeper.selection.groups import Group, groups
from autocl_sweeper.types import Trial

Point = tuple[float, ...]


@dataclass(frozen=True)
class Pareto(TopK):
    """The k first by front, then by crowding distance, as in NSGA-II (Deb et al., 2002).

    The axes are the score on the current task and the mean of those on the old ones, from `eval`;
    the first task has the one axis. Survivors of one front stand by their ranked score, best first.
    """

    tasks: Sequence[str] = ()
    monotone: ClassVar[bool] = False

    def __call__(self, finished: Sequence[Trial]) -> list[Trial]:
        candidates = groups(finished, self.loss)
        left = {place: self._point(group) for place, group in enumerate(candidates)}
        survivors: list[Group] = []
        while left and (room := self.kept(finished) - len(survivors)):
            front = nondominated(left)
            distance = crowding(front)
            ranked = sorted((-distance[p], candidates[p].loss, p) for p in front)
            kept = sorted((loss, place) for _, loss, place in ranked[:room])
            survivors += [candidates[place] for _, place in kept]
            left = {place: point for place, point in left.items() if place not in front}
        return [group.best for group in survivors]

    def _point(self, group: Group) -> Point:
        """Losses on the current task and on the old ones."""
        *old, current = tasks_until(self.tasks, group.best.task) or [group.best.task]
        scores = group.evaluations
        axes = [scores[current], *([fmean(scores[task] for task in old)] if old else [])]
        return tuple(map(self.loss, axes))


def nondominated(points: dict[int, Point]) -> dict[int, Point]:
    """The points that no other is at least as good as everywhere and better somewhere."""
    return {
        place: point
        for place, point in points.items()
        if not any(
            other != point and all(o <= p for o, p in zip(other, point, strict=True))
            for other in points.values()
        )
    }


def crowding(front: dict[int, Point]) -> dict[int, float]:
    """Crowding distance by place: how far apart a point's neighbours are, inf at the ends."""
    distance = dict.fromkeys(front, 0.0)
    for axis in range(len(next(iter(front.values())))):
        order = sorted(front, key=lambda place: (front[place][axis], place))
        low, high = front[order[0]][axis], front[order[-1]][axis]
        distance[order[0]] = distance[order[-1]] = math.inf
        for before, place, after in zip(order, order[1:], order[2:], strict=False):
            if high > low:
                distance[place] += (front[after][axis] - front[before][axis]) / (high - low)
    return distance
