"""Independent random suggestions.

Not Optuna's RandomSampler: that one is a stream, and its n-th draw depends on the n-1 before it.
Here suggestion i is a function of (space, seed, stage, i) and nothing else, so a resumed or
replayed sweep needs no state. The draws come from a hash, which no Python version will change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import ClassVar, Literal

from autocl_sweeper.search import next_index
from autocl_sweeper.search.grid import GridSearch
from autocl_sweeper.space import Choice, Distribution, Interval
from autocl_sweeper.types import Suggestion, Value
from autocl_sweeper.view import StageView


class RandomSearch:
    """Suggestions drawn from the space, independently and uniformly (in the logarithm if `log`).

    A space of choices only is finite: its combinations come in random order, each once, and then
    no more. With an interval there is no end. `size` is the number of suggestions, or None.
    """

    pairing: ClassVar[Literal["every", "one"]] = "every"

    def __init__(self, space: Mapping[str, Distribution], seed: int, stage_name: str) -> None:
        self._space = dict(space)
        self._name = f"{seed}/{stage_name}"
        finite = all(isinstance(distribution, Choice) for distribution in space.values())
        self._grid = GridSearch(space) if finite else None
        self.size = self._grid.size if self._grid else None

    def ask(self, stage: StageView) -> Suggestion | None:
        index = next_index(stage)
        return self.suggestion(index) if self.size is None or index < self.size else None

    def suggestion(self, index: int) -> Suggestion:
        if self._grid is not None:
            return Suggestion(index, self._grid.suggestion(self._shuffled(index)).params)
        return Suggestion(
            index,
            {
                key: _draw(distribution, _uniform(f"{self._name}/{index}/{key}"))
                for key, distribution in self._space.items()
            },
        )

    def _shuffled(self, index: int) -> int:
        """A permutation of range(size) at one place, without listing it.

        A Feistel network permutes the next power of 4; walking on until the number is in range
        permutes the range itself, in at most 4 steps on average (Black and Rogaway, "Ciphers with
        arbitrary finite domains", 2002).
        """
        assert self._grid is not None
        half = max(1, ((self._grid.size - 1).bit_length() + 1) // 2)
        mask = (1 << half) - 1
        number = index
        while True:
            left, right = number >> half, number & mask
            for turn in range(8):
                left, right = right, left ^ (_bits(f"{self._name}/{turn}/{right}") & mask)
            number = left << half | right
            if number < self._grid.size:
                return number


def _bits(text: str) -> int:
    # A task's name may hold any text, even one that is not valid UTF-8.
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass")).digest(), "big")


def _uniform(text: str) -> float:
    """A number in [0, 1): 53 bits, as many as a float holds."""
    return (_bits(text) >> (512 - 53)) / (1 << 53)


def _draw(distribution: Distribution, u: float) -> Value:
    if isinstance(distribution, Choice):
        return distribution.values[int(u * len(distribution.values))]
    return _draw_number(distribution, u)


def _draw_number(interval: Interval, u: float) -> int | float:
    low, high = interval.low, interval.high
    if interval.integer:
        # Each whole number owns the unit around it, so both ends are as likely as the others.
        low, high = low - 0.5, high + 0.5
    if interval.log:
        drawn = math.exp((1 - u) * math.log(low) + u * math.log(high))
    else:
        drawn = (1 - u) * low + u * high
    if interval.integer:
        return min(max(math.floor(drawn + 0.5), int(interval.low)), int(interval.high))
    return min(max(drawn, low), high)
