"""Independent random suggestions.

Not Optuna's RandomSampler: that one is a stream, and its n-th draw depends on the n-1 before it.
Here suggestion i is a function of (space, seed, stage, i) and nothing else, so a resumed or
replayed sweep needs no state. The draws come from a hash, which no Python version will change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b

from autocl_sweeper.distributions import Space
from autocl_sweeper.search import Indexed
from autocl_sweeper.search.grid import combinations_of
from autocl_sweeper.types import Origin, Suggestion, Value

PATIENCE = 1000  # draws in a row that were there before; then a discrete space is listed


class RandomSearch(Indexed):
    """Suggestions drawn from the space, independently and uniformly (in the logarithm if `log`).

    The first is the app's own configuration where it lies in the space. None comes twice: a
    space of choices only is permuted; a draw that was there before is drawn again. `size` is the
    number of suggestions, or None with an interval of floats.
    """

    def __init__(self, space: Space, seed: int, stage_name: str) -> None:
        self._space = space
        self._name = f"{seed}/{stage_name}"
        self._combinations = combinations_of(space)
        self.size = None if self._combinations is None else self._combinations.size
        self._drawn: list[Mapping[str, Value]] = [] if space.initial is None else [space.initial]
        self._seen = {repr(params) for params in self._drawn}
        self._draws = 0

    def suggestion(self, index: int) -> Suggestion:
        origin: Origin = "init" if index == 0 and self._space.initial is not None else "fresh"
        if self._space.finite:
            return Suggestion(index, self._permuted(index), origin)
        while len(self._drawn) <= index:
            if (params := self._fresh()) is None:  # `size` counts a value that is listed twice
                return Suggestion(index, self._drawn[index % len(self._drawn)], origin)
            self._seen.add(repr(params))
            self._drawn.append(params)
        return Suggestion(index, self._drawn[index], origin)

    def _permuted(self, index: int) -> Mapping[str, Value]:
        """The initial combination first; where it would have come, the one whose place it took."""
        assert self._combinations is not None
        initial, params = self._space.initial, self._combinations.at(self._shuffled(index))
        if initial is None:
            return params
        if index == 0:
            return initial
        return self._combinations.at(self._shuffled(0)) if params == initial else params

    def _fresh(self) -> Mapping[str, Value] | None:
        for _ in range(PATIENCE):
            name, self._draws = f"{self._name}/{self._draws}", self._draws + 1
            params = self._space.draw(places(name))
            if self._combinations is None or repr(params) not in self._seen:
                return params
        assert self._combinations is not None
        listed = map(self._combinations.at, map(self._shuffled, range(self._combinations.size)))
        return next((params for params in listed if repr(params) not in self._seen), None)

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


def places(name: str) -> Callable[[str], float]:
    """A number in [0, 1) for each axis, from a name."""
    return lambda axis: uniform(f"{name}/{axis}")


def unseen(space: Space, seen: Collection[str], name: str) -> dict[str, Value] | None:
    """Hyper-parameters drawn from the space whose `repr` is not in `seen`; None: there are none.

    For searches whose own would be a repetition. Same arguments, same answer; `name` is the seed.
    """
    for attempt in range(PATIENCE):
        params = space.draw(places(f"{name}/{attempt}"))
        if repr(params) not in seen:
            return params
    if (combinations := combinations_of(space)) is None:
        return None  # intervals without width
    listed = map(combinations.at, range(combinations.size))
    return next((params for params in listed if repr(params) not in seen), None)
