"""Spearman's rank correlation, ties by their mean rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's correlation of the ranks; 0 where one side is constant, which says nothing."""
    ranks = mean_ranks(one), mean_ranks(other)
    middle = (len(one) + 1) / 2
    a, b = ([rank - middle for rank in side] for side in ranks)
    spread = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / spread if spread else 0.0


def mean_ranks(values: Sequence[float]) -> list[float]:
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
