"""Searches that take each parent one step further: chains that never compete on their way."""

from __future__ import annotations

from typing import ClassVar, Literal

from autocl_sweeper.distributions import Space
from autocl_sweeper.protocols import Search
from autocl_sweeper.search import next_index
from autocl_sweeper.search.random import places
from autocl_sweeper.types import Later, Suggestion
from autocl_sweeper.view import StageView


class ContinuedChains:
    """Each parent once, with its own configuration. `first` is the search of the first stage."""

    pairing: ClassVar[Literal["every", "one"]] = "one"
    size: ClassVar[None] = None  # as many as there are parents

    def __init__(self, first: Search) -> None:
        self._first = first

    def ask(self, stage: StageView) -> Suggestion | Later | None:
        index, parents = next_index(stage), stage.parents
        if not parents:  # nothing ran yet: what it may look like
            return self._first.ask(stage)
        if index >= len(parents):
            return None
        parent = parents[index]
        return Suggestion(index, dict(parent.params), "own", parent.number, parent.number)


class DrawnChains:
    """Each parent once, each with a draw of its own; on the first stage draws without end.

    A draw is a function of seed, stage and place; two may be equal in a space of choices.
    """

    pairing: ClassVar[Literal["every", "one"]] = "one"
    size: ClassVar[None] = None

    def __init__(self, space: Space, seed: int, stage_name: str) -> None:
        self._space = space
        self._name = f"{seed}/{stage_name}"

    def ask(self, stage: StageView) -> Suggestion | None:
        index, parents = next_index(stage), stage.parents
        if parents and index >= len(parents):
            return None
        params = self._space.draw(places(f"{self._name}/chain {index}"))
        return Suggestion(index, params, "fresh", parent=parents[index].number if parents else None)
