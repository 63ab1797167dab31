"""Searches that learn, for tests of the strategy, and views of stages to ask a search with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autocl_sweeper.distributions import Distribution
from autocl_sweeper.protocols import Search
from autocl_sweeper.search import next_index
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.decisions import Stage, views
from autocl_sweeper.types import History, Later, State, Suggestion, Trial
from autocl_sweeper.view import StageView


@dataclass
class Doubling:
    """Doubles `x` of the best trial of the generations before or, at first, of the best parent.

    With pairing "one" each suggestion names its parent, the parents in turn. A generation has
    `at_once` suggestions; the next one waits for its end. `asked` counts the questions.
    """

    pairing: Literal["every", "one"] = "one"
    at_once: int = 1
    size: int | None = None
    asked: int = 0

    def ask(self, stage: StageView) -> Suggestion | Later | None:
        self.asked += 1
        index = next_index(stage)
        generation = index - index % self.at_once
        before = [trial for trial in stage.trials if trial.suggestion.index < generation]
        if any(trial.state is State.RUNNING for trial in before):
            return Later()
        known = [trial for trial in before if trial.loss is not None] or list(stage.parents)
        if not known:
            return Suggestion(index, {"x": 1}, origin="init")
        best = min(known, key=lambda trial: (trial.loss, trial.number))
        parent = None
        if self.pairing == "one" and stage.parents:
            parent = stage.parents[index % len(stage.parents)].number
        return Suggestion(index, {"x": 2 * best.params["x"]}, "own", best.number, parent)


def doubling(
    space: Mapping[str, Distribution], seed: int, stage_name: str, **options: Any
) -> Doubling:
    """A Doubling as `hydra.sweeper.search.factory` makes it."""
    return Doubling(**options)


class Asked:
    """A search and a first stage in which these suggestions run."""

    def __init__(self, search: Search, *suggestions: Suggestion) -> None:
        self.search = search
        self._history = History()
        (self._view,) = views([Stage(1, "t", search)], self._history, TopK(1))
        for suggestion in suggestions:
            self.start(suggestion)

    def start(self, suggestion: Suggestion) -> None:
        trial = Trial(len(self._history), 1, "t", suggestion, None)
        self._history.start(trial)
        self._view.note(trial)

    def next(self) -> Suggestion | Later | None:
        return self.search.ask(self._view)
