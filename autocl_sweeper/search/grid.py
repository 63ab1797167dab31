"""Every combination, once."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate, product

from autocl_sweeper.distributions import Choice, Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search import Indexed
from autocl_sweeper.types import Suggestion, Value


class GridSearch(Indexed):
    """The full product in `itertools.product` order: the last key changes fastest.

    An empty space has one combination. `size` is the number of suggestions. Every search is made
    with a seed and the name of its stage; a grid has no use for them.
    """

    def __init__(self, space: Space, seed: int = 0, stage_name: str = "") -> None:
        for key, distribution in space.items():
            if not isinstance(distribution, Choice):
                raise ConfigurationError(
                    f"{key!r}: {distribution} cannot be listed, and the grid search tries every "
                    "value.\n  Give it values, choice(...) or range(...), or choose a search that "
                    "takes intervals: hydra/sweeper/search=relay, tpe or random."
                )
        self._combinations = Combinations(space)
        self.size = self._combinations.size

    def suggestion(self, index: int) -> Suggestion:
        return Suggestion(index, self._combinations.at(index))


class Combinations:
    """The combinations of a space of discrete axes, each once, by arithmetic: none is listed.

    The axes that conditions look at come first where there are any: each of their combinations is a
    branch with the axes that are there in it.
    """

    def __init__(self, space: Space) -> None:
        self._values = {axis: one.values for axis, one in space.items() if one.values is not None}
        self._space = space
        asked = {other for others in space.when.values() for other in others}
        first = [axis for axis in space if asked & {*space.keys_of(axis)}]
        branches: dict[str, tuple[dict[str, Value], list[str]]] = {}
        for chosen in product(*(self._values[axis] for axis in first)):
            point = {axis: values[0] for axis, values in self._values.items()}
            point.update(zip(first, chosen, strict=True))
            there = space.params(point)
            rest = [a for a in space if a not in first and there.keys() & {*space.keys_of(a)}]
            controls = {axis: point[axis] for axis in first}
            seen = {k: there[k] for a in first for k in space.keys_of(a) if k in there}
            branches.setdefault(repr(seen), (controls, rest))
        self._branches = list(branches.values())
        sizes = [math.prod(len(self._values[a]) for a in rest) for _, rest in self._branches]
        self._ends = list(accumulate(sizes))
        self.size = self._ends[-1]

    def at(self, index: int) -> dict[str, Value]:
        branch = bisect_right(self._ends, index)
        controls, axes = self._branches[branch]
        point = {axis: values[0] for axis, values in self._values.items()} | controls
        rest = index - (self._ends[branch - 1] if branch else 0)
        for axis in reversed(axes):
            rest, place = divmod(rest, len(self._values[axis]))
            point[axis] = self._values[axis][place]
        return self._space.params(point)


def combinations_of(space: Space) -> Combinations | None:
    """The combinations of a space; None with an interval of floats."""
    return Combinations(space) if all(one.values is not None for one in space.values()) else None


def size_of(space: Space) -> int | None:
    """How many suggestions a space has at most; None with an interval of floats."""
    combinations = combinations_of(space)
    return None if combinations is None else combinations.size
