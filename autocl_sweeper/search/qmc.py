"""Scrambled Sobol points: they fill a space more evenly than random ones.

Not Optuna's QMCSampler: it counts in an attribute of its study, so a study that is made anew gives
the first point again. Here suggestion i is a function of (space, seed, stage, i) and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autocl_sweeper.distributions import Space
from autocl_sweeper.search import Indexed, next_index
from autocl_sweeper.search.cube import seed_of, sobol
from autocl_sweeper.search.grid import size_of
from autocl_sweeper.search.random import PATIENCE, unseen
from autocl_sweeper.types import Suggestion, Value
from autocl_sweeper.view import StageView


class QMCSearch(Indexed):
    """The points of a scrambled Sobol sequence, each axis of the space one of its dimensions.

    The first suggestion is the app's own configuration where it lies in the space. None comes
    twice: a point that gives a combination that was there before is left out. `size` is the number
    of suggestions, or None with an interval of floats.
    """

    def __init__(self, space: Space, seed: int, stage_name: str) -> None:
        self._space = space
        self._name = f"{seed}/{stage_name}"
        self.size = size_of(space)
        initial = space.initial
        self._drawn: list[Suggestion] = [] if initial is None else [Suggestion(0, initial, "init")]
        self._seen = {repr(one.params) for one in self._drawn}
        self._points: Any = None

    def ask(self, stage: StageView) -> Suggestion | None:
        index = next_index(stage)
        return self._at(index) if self.size is None or index < self.size else None

    def suggestion(self, index: int) -> Suggestion:
        found = self._at(index)
        if found is None:  # values that are listed twice make `size` larger than what there is
            found = replace(self._drawn[index % len(self._drawn)], index=index)
        return found

    def _at(self, index: int) -> Suggestion | None:
        while len(self._drawn) <= index:
            params = self._next()
            if params is None:
                return None
            self._seen.add(repr(params))
            self._drawn.append(Suggestion(len(self._drawn), params, "fresh"))
        return self._drawn[index]

    def _next(self) -> Mapping[str, Value] | None:
        if self._space:
            self._points = self._points or sobol(len(self._space), seed_of(self._name))
            for _ in range(PATIENCE):
                point = dict(zip(self._space, self._points.random(1)[0].tolist(), strict=True))
                params = self._space.draw(point.__getitem__)
                if repr(params) not in self._seen:
                    return params
        return unseen(self._space, self._seen, self._name)
