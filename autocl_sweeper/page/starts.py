"""Merged starts: which trials a start was merged from, with which weights, and what that brought."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autocl_sweeper.overview import Overview
from autocl_sweeper.page.words import clean
from autocl_sweeper.types import Trial

MOST_ROWS = 24


@dataclass(frozen=True)
class MergedStart:
    """A row of the heat map."""

    trial: int
    weights: Sequence[float | None]  # by source; null: not merged from it
    effective: float  # sources: 1 / sum of squares of weights that sum to 1
    score: float | None
    ahead: float | None  # of the best trial of the stage that started from its parent alone
    seconds: float


@dataclass(frozen=True)
class StageStarts:
    """The merged starts of a stage, best first."""

    stage: int
    task: str
    sources: Sequence[tuple[str, int | None]]  # name, and the trial's number where it is one
    rows: Sequence[MergedStart]
    more: int


def merged_starts(sweep: Overview) -> list[StageStarts]:
    """The stages that have merged starts."""
    found = []
    for stage in sorted({trial.stage for trial in sweep.history}):
        ranked = [t for t in sweep.ranked(stage) if t.outcome is not None and _merged(t)]
        if ranked:
            found.append(_of(sweep, stage, ranked))
    return found


def _merged(trial: Trial) -> dict[str, float]:
    return dict(trial.outcome.merged_from) if trial.outcome else {}


def _of(sweep: Overview, stage: int, ranked: Sequence[Trial]) -> StageStarts:
    names = [*dict.fromkeys(name for trial in ranked for name in _merged(trial))]
    plain = [t for t in sweep.ranked(stage) if not _merged(t) and t.score is not None]
    best = min(map(sweep.loss, plain), default=None)
    rows = []
    for trial in ranked[:MOST_ROWS]:
        weights, score = _merged(trial), trial.score
        ahead = None if best is None or score is None else best - sweep.loss(trial)
        squares = math.fsum(w * w for w in weights.values())
        effective = math.fsum(weights.values()) ** 2 / squares if squares > 0 else 0.0
        seconds = trial.outcome.seconds if trial.outcome else 0.0
        by_source = [weights.get(name) for name in names]
        rows.append(MergedStart(trial.number, by_source, effective, score, ahead, seconds))
    numbers = {str(trial.number): trial.number for trial in sweep.history}
    sources = [(clean(name), numbers.get(name)) for name in names]
    return StageStarts(stage, clean(ranked[0].task), sources, rows, len(ranked) - len(rows))
