"""Independent random suggestions.

Not Optuna's RandomSampler: that one is a stream, and its n-th draw depends on the n-1 before it.
Here suggestion i is a function of (space, seed, stage, i) and nothing else, so a resumed or
replayed sweep needs no state. The draws come from a hash, which no Python version will change.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from hashlib import blake2b
from typing import ClassVar, Literal

from autocl_sweeper.distributions import Distribution
from autocl_sweeper.search import is_discrete, next_index, space_of
from autocl_sweeper.search.grid import Combinations
from autocl_sweeper.types import Origin, Suggestion, Value
from autocl_sweeper.view import StageView

PATIENCE = 1000  # draws in a row that were there before; then a discrete space is listed


class RandomSearch:
    """Suggestions drawn from the space, independently and uniformly (in the logarithm if `log`).

    The first is the app's own configuration where it lies in the space. None comes twice: a
    space of choices only is permuted; a draw that was there before is drawn again. `size` is the
    number of suggestions, or None with an interval of floats.
    """

    pairing: ClassVar[Literal["every", "one"]] = "every"

    def __init__(self, space: Mapping[str, Distribution], seed: int, stage_name: str) -> None:
        self._space = space_of(space)
        self._name = f"{seed}/{stage_name}"
        discrete = all(map(is_discrete, space.values()))
        self._combinations = Combinations(self._space) if discrete else None
        self.size = None if self._combinations is None else self._combinations.size
        initial = self._space.initial
        self._drawn: list[Mapping[str, Value]] = [] if initial is None else [initial]
        self._seen = {repr(params) for params in self._drawn}
        self._draws = 0

    def ask(self, stage: StageView) -> Suggestion | None:
        index = next_index(stage)
        return self.suggestion(index) if self.size is None or index < self.size else None

    def suggestion(self, index: int) -> Suggestion:
        if self._space.finite:
            return Suggestion(index, self._permuted(index), self._origin(index))
        while len(self._drawn) <= index:
            self._add()
        return Suggestion(index, self._drawn[index], self._origin(index))

    def _origin(self, index: int) -> Origin:
        return "init" if index == 0 and self._space.initial is not None else "fresh"

    def _permuted(self, index: int) -> Mapping[str, Value]:
        """The initial combination first; where it would have come, the one whose place it took."""
        assert self._combinations is not None
        initial, params = self._space.initial, self._combinations.at(self._shuffled(index))
        if initial is None:
            return params
        if index == 0:
            return initial
        return self._combinations.at(self._shuffled(0)) if params == initial else params

    def _add(self) -> None:
        for _ in range(PATIENCE):
            name, self._draws = f"{self._name}/{self._draws}", self._draws + 1
            params = self._space.draw(partial(_place, name))
            if self._combinations is None:  # there is always another left, or but one
                self._drawn.append(params)
                return
            if self._keep(params):
                return
        assert self._combinations is not None
        for place in range(self._combinations.size):
            if self._keep(self._combinations.at(self._shuffled(place))):
                return

    def _keep(self, params: Mapping[str, Value]) -> bool:
        if repr(params) in self._seen:
            return False
        self._seen.add(repr(params))
        self._drawn.append(params)
        return True

    def _shuffled(self, index: int) -> int:
        """A permutation of range(size) at one place, without listing it.

        A Feistel network permutes the next power of 4; walking on until the number is in range
        permutes the range itself, in at most 4 steps on average (Black and Rogaway, "Ciphers with
        arbitrary finite domains", 2002).
        """
        assert self.size is not None
        half = max(1, ((self.size - 1).bit_length() + 1) // 2)
        mask = (1 << half) - 1
        number = index
        while True:
            left, right = number >> half, number & mask
            for turn in range(8):
                left, right = right, left ^ (_bits(f"{self._name}/{turn}/{right}") & mask)
            number = left << half | right
            if number < self.size:
                return number


def _bits(text: str) -> int:
    # A task's name may hold any text, even one that is not valid UTF-8.
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass")).digest(), "big")


def uniform(text: str) -> float:
    """A number in [0, 1) from a text: 53 bits, as many as a float holds."""
    return (_bits(text) >> (512 - 53)) / (1 << 53)


def _place(name: str, axis: str) -> float:
    return uniform(f"{name}/{axis}")
