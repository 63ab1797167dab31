"""One file per search: what to try next, given the view of a stage."""

from __future__ import annotations

from autocl_sweeper.view import StageView


def next_index(stage: StageView) -> int:
    """The index of the suggestion after the last one of a stage; costs the same at any length."""
    trials = stage.trials
    return trials[-1].suggestion.index + 1 if trials else 0
