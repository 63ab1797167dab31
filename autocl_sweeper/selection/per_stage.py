"""A selection that keeps another number of trials in some stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autocl_sweeper.protocols import Selection
from autocl_sweeper.types import Trial


@dataclass(frozen=True)
class PerStage:
    """`make(k)` with the k of the stage whose trials are compared: `survivors`, or `k` elsewhere."""

    make: Callable[[int], Selection]
    k: int
    survivors: Mapping[int, int]

    @property
    def monotone(self) -> bool:
        return self.make(self.k).monotone

    def loss(self, score: float) -> float:
        return self.make(self.k).loss(score)

    def __call__(self, finished: Sequence[Trial]) -> list[Trial]:
        k = self.survivors.get(finished[0].stage, self.k) if finished else self.k
        return self.make(k)(finished)
