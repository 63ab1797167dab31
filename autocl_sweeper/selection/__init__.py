"""Which trials of a stage become the parents of the next."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autocl_sweeper.types import State, Trial


@dataclass(frozen=True)
class TopK:
    """The k best complete trials by score, best first; ties go to the one that stands before the other."""

    k: int
    maximize: bool = True
    monotone: ClassVar[bool] = True  # once k better ones are finished, more can only come above it

    def loss(self, score: float) -> float:
        return -score if self.maximize else score

    def __call__(self, finished: Sequence[Trial]) -> list[Trial]:
        ranked = [
            (self.loss(trial.score), place, trial)
            for place, trial in enumerate(finished)
            if trial.state is State.COMPLETE and trial.score is not None
        ]
        return [trial for _, _, trial in heapq.nsmallest(self.k, ranked)]
