"""Population-based training's explore step: a parent's parameters, perturbed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from autocl_sweeper.distributions import Distribution, Interval, Space
from autocl_sweeper.protocols import Search
from autocl_sweeper.search import next_index
from autocl_sweeper.search.random import places
from autocl_sweeper.types import Later, Suggestion, Value
from autocl_sweeper.view import StageView

RESAMPLED = 0.25  # the share of values drawn anew, and the factors of the others:
FACTORS = (0.8, 1.2)  # Jaderberg et al. (arXiv 1711.09846), appendix A


@dataclass(frozen=True)
class Perturbed:
    """Suggestion i takes up the parameters of parent i modulo their number, best parent first.

    Each value is drawn anew with probability .25, else multiplied by 0.8 or 1.2 and moved back into
    its bounds; a listed number steps to a neighbour, a name stays. A whole number moves by
    1 at least. Without parents the suggestions are those of `search`.
    """

    search: Search
    space: Space
    seed: str
    pairing: ClassVar[Literal["every", "one"]] = "one"

    @property
    def size(self) -> int | None:
        return self.search.size

    def ask(self, stage: StageView) -> Suggestion | Later | None:
        parents = stage.parents
        if not parents:
            return self.search.ask(stage)
        index = next_index(stage)
        parent = parents[index % len(parents)]
        old = self.space.point(parent.params)
        name = f"{self.seed}/{stage.task}/{stage.number}/{index}"
        point = {
            axis: _perturbed(one, old.get(axis), places(f"{name}/{axis}"))
            for axis, one in self.space.items()
        }
        params = self.space.params(point)
        return Suggestion(index, params, "own", parent.number, parent.number)


def _perturbed(one: Distribution, old: Value, draw: Callable[[str], float]) -> Value:
    """`old` moved; drawn anew where it is none of the distribution's, as a new key's is."""
    if old is None or draw("anew") < RESAMPLED:
        return one.at(draw("value"))
    up = draw("up") >= 0.5
    if isinstance(one, Interval):
        assert isinstance(old, (int, float))
        new = old * FACTORS[up]
        if one.integer:
            new = round(new) if round(new) != old else old + (1 if up else -1)
        new = min(max(new, one.low), one.high)
        return int(new) if one.integer else float(new)
    if (place := one.place(old)) is None:
        return one.at(0.5)
    if not one.ordered:
        return old
    return one.ranked[min(max(place + (1 if up else -1), 0), len(one.values) - 1)]
