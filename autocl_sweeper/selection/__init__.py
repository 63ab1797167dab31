"""Which trials of a stage become the parents of the next."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from autocl_sweeper.types import State, Trial


@dataclass(frozen=True)
class TopK:
    """The k best complete trials by score, best first; ties go to the one that stands before the other."""

    k: int
    maximize: bool = True
    survivors: Mapping[int, int] = field(
        default_factory=dict
    )  # stage -> its k, where it is another
    monotone: ClassVar[bool] = True  # once k better ones are finished, more can only come above it

    def loss(self, score: float) -> float:
        return -score if self.maximize else score

    def kept(self, finished: Sequence[Trial]) -> int:
        """The k of the stage whose trials are compared."""
        return self.survivors.get(finished[0].stage, self.k) if finished else self.k

    def __call__(self, finished: Sequence[Trial]) -> list[Trial]:
        ranked = [
            (self.loss(trial.score), place, trial)
            for place, trial in enumerate(finished)
            if trial.state is State.COMPLETE and trial.score is not None
        ]
        return [trial for _, _, trial in heapq.nsmallest(self.kept(finished), ranked)]
