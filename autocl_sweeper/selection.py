"""Which trials of a stage become the parents of the next."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from autocl_sweeper.types import State, Trial


@dataclass(frozen=True)
class TopK:
    """The k best complete trials by score, best first; ties go to the one that stands before the other."""

    k: int
    maximize: bool = True

    def __call__(self, finished: Sequence[Trial]) -> list[Trial]:
        return heapq.nsmallest(self.k, filter(_has_score, finished), key=self.rank)

    def rank(self, trial: Trial) -> float:
        """Sorts better trials first."""
        assert trial.score is not None
        return -trial.score if self.maximize else trial.score


def _has_score(trial: Trial) -> bool:
    return trial.state is State.COMPLETE and trial.score is not None
