"""One file per search: what to try next, given the view of a stage."""

from __future__ import annotations

from collections.abc import Mapping

from autocl_sweeper.distributions import Choice, Distribution, Space
from autocl_sweeper.view import StageView


def next_index(stage: StageView) -> int:
    """The index of the suggestion after the last one of a stage; costs the same at any length."""
    trials = stage.trials
    return trials[-1].suggestion.index + 1 if trials else 0


def space_of(space: Mapping[str, Distribution]) -> Space:
    """The space itself, or one without conditions made of distributions by override key."""
    return space if isinstance(space, Space) else Space(space)


def is_discrete(distribution: Distribution) -> bool:
    """Whether it has finitely many values."""
    return isinstance(distribution, Choice) or distribution.integer


def in_turn(stage: StageView, index: int) -> int | None:
    """The parent of a suggestion that runs with one: the parents in turn, the best first."""
    parents = stage.parents
    return parents[index % len(parents)].number if parents else None
