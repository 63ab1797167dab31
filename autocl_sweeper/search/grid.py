"""Every combination, once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search import next_index
from autocl_sweeper.space import Choice, Distribution
from autocl_sweeper.types import Suggestion, Value
from autocl_sweeper.view import StageView


class GridSearch:
    """The full product in `itertools.product` order: the last key changes fastest.

    An empty space has one combination. `size` is the number of suggestions. Every search is made
    with a seed and the name of its stage; a grid has no use for them.
    """

    pairing: ClassVar[Literal["every", "one"]] = "every"

    def __init__(
        self, space: Mapping[str, Distribution], seed: int = 0, stage_name: str = ""
    ) -> None:
        self._axes: dict[str, tuple[Value, ...]] = {}
        for key, distribution in space.items():
            if not isinstance(distribution, Choice):
                raise ConfigurationError(
                    f"{key!r}: {distribution} cannot be listed, and the grid search tries every "
                    "value. Choose values, choice(...) or range(...), or a search that samples: "
                    "hydra/sweeper/search=random"
                )
            self._axes[key] = distribution.values
        self.size = math.prod(map(len, self._axes.values()))

    def ask(self, stage: StageView) -> Suggestion | None:
        index = next_index(stage)
        return self.suggestion(index) if index < self.size else None

    def suggestion(self, index: int) -> Suggestion:
        """The combination at this place of the order, by arithmetic: the grid is never listed."""
        params: dict[str, Value] = {}
        rest = index
        for key, values in reversed(self._axes.items()):
            rest, place = divmod(rest, len(values))
            params[key] = values[place]
        return Suggestion(index, {key: params[key] for key in self._axes})
