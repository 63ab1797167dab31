"""Suggestions somebody wrote down, as AutoCL's TASK_PARAMS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from autocl_sweeper.search import next_index
from autocl_sweeper.types import Suggestion, Value
from autocl_sweeper.view import StageView


class ListedSearch:
    """The given suggestions, in their order. `size` is their number."""

    pairing: ClassVar[Literal["every", "one"]] = "every"

    def __init__(self, suggestions: Sequence[Mapping[str, Value]]) -> None:
        self.listed = [dict(params) for params in suggestions]
        self.size = len(self.listed)

    def ask(self, stage: StageView) -> Suggestion | None:
        index = next_index(stage)
        return self.suggestion(index) if index < self.size else None

    def suggestion(self, index: int) -> Suggestion:
        return Suggestion(index, dict(self.listed[index]))
