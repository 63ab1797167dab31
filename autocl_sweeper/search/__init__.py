"""One file per search: what to try next, given the trials of the stage."""

from __future__ import annotations

from collections.abc import Sequence

from autocl_sweeper.types import Trial


def next_index(history: Sequence[Trial]) -> int:
    """The index of the suggestion after the last one of a stage; costs the same at any length."""
    return history[-1].suggestion.index + 1 if history else 0
