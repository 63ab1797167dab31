"""Suggestions somebody wrote down, as AutoCL's TASK_PARAMS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autocl_sweeper.search import Indexed
from autocl_sweeper.types import Suggestion, Value


class ListedSearch(Indexed):
    """The given suggestions, in their order. `size` is their number."""

    def __init__(self, suggestions: Sequence[Mapping[str, Value]]) -> None:
        self.listed = [dict(params) for params in suggestions]
        self.size = len(self.listed)

    def suggestion(self, index: int) -> Suggestion:
        return Suggestion(index, dict(self.listed[index]))
