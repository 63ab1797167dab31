"""Ranks, ties by their mean, and Spearman's correlation of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Agreement:
    """How far two columns of `n` numbers have the same order: sums over their centred ranks."""

    n: int
    one: float  # of squares
    other: float
    both: float  # of products

    @classmethod
    def of(cls, one: Sequence[float], other: Sequence[float]) -> Agreement:
        middle = (len(one) + 1) / 2
        a, b = ([rank - middle for rank in mean_ranks(side)] for side in (one, other))
        both = sum(x * y for x, y in zip(a, b, strict=True))
        return cls(len(one), sum(x * x for x in a), sum(x * x for x in b), both)

    @property
    def correlation(self) -> float:
        """0 where one side is constant, which says nothing."""
        spread = math.sqrt(self.one * self.other)
        return self.both / spread if spread else 0.0

    def decides(self, limit: float, changes: int) -> bool:
        """Whether the correlation is on the same side of `limit` (0 to 1) after so many changes.

        A change is a row that comes or goes, whatever it holds. Of n rows with it, it moves the
        centred ranks of the others, at most n/2, by 1/2 at most: no sum by more than 3/4 n^2.
        """
        most = 0.75 * changes * (self.n + changes) ** 2
        least_spread = math.sqrt(max(0.0, self.one - most) * max(0.0, self.other - most))
        most_spread = math.sqrt((self.one + most) * (self.other + most))
        above = self.both - most > limit * most_spread
        return above or self.both + most < limit * least_spread


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's correlation of the ranks; 0 where one side is constant."""
    return Agreement.of(one, other).correlation


def mean_ranks(values: Sequence[Any]) -> list[float]:
    """The rank of each value from 1; equal ones share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    begin = 0
    for _, group in groupby(order, values.__getitem__):
        places = list(group)
        for place in places:
            ranks[place] = begin + (len(places) + 1) / 2
        begin += len(places)
    return ranks
