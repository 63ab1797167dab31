"""A suggestion that was not made before, for searches whose own would be a repetition."""

from __future__ import annotations

from collections.abc import Collection

from autocl_sweeper.distributions import Space
from autocl_sweeper.search import is_discrete
from autocl_sweeper.search.grid import Combinations
from autocl_sweeper.search.random import uniform
from autocl_sweeper.types import Value

PATIENCE = 1000  # draws in a row that were there before; then a discrete space is listed


def unseen(space: Space, seen: Collection[str], name: str) -> dict[str, Value] | None:
    """Hyper-parameters drawn from the space whose `repr` is not in `seen`; None: there are none.

    Same arguments, same answer; `name` is the seed.
    """
    for attempt in range(PATIENCE):
        params = space.draw(lambda axis, n=attempt: uniform(f"{name}/{n}/{axis}"))  # type: ignore[misc]
        if repr(params) not in seen:
            return params
    if not all(map(is_discrete, space.values())):
        return None  # intervals without width
    combinations = Combinations(space)
    listed = map(combinations.at, range(combinations.size))
    return next((params for params in listed if repr(params) not in seen), None)


def size_of(space: Space) -> int | None:
    """How many suggestions a space has at most; None with an interval of floats."""
    return Combinations(space).size if all(map(is_discrete, space.values())) else None
