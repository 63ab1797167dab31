"""One file per search: what to try next, given the view of a stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from autocl_sweeper.types import Suggestion
from autocl_sweeper.view import StageView


class Indexed(ABC):
    """A search whose suggestions depend on their place alone; each runs with every parent."""

    pairing: ClassVar[Literal["every", "one"]] = "every"
    size: int | None  # how many suggestions there are; None: no end of them

    def ask(self, stage: StageView) -> Suggestion | None:
        index = next_index(stage)
        return self.suggestion(index) if self.size is None or index < self.size else None

    @abstractmethod
    def suggestion(self, index: int) -> Suggestion: ...


def next_index(stage: StageView) -> int:
    """The index of the suggestion after the last one of a stage; costs the same at any length."""
    trials = stage.trials
    return trials[-1].suggestion.index + 1 if trials else 0


def in_turn(stage: StageView, index: int) -> int | None:
    """The parent of a suggestion that runs with one: the parents in turn, the best first."""
    parents = stage.parents
    return parents[index % len(parents)].number if parents else None
