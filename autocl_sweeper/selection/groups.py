"""Runs of one suggestion with one parent as one candidate, and ties that are no more than noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import ClassVar

from autocl_sweeper.selection import TopK
from autocl_sweeper.types import State, Trial


@dataclass(frozen=True)
class Group:
    """The completed runs of a suggestion with a parent. `best` has the checkpoint of them all."""

    best: Trial
    loss: float  # of the mean score
    stderr: float  # of the mean; 0 for one run
    seconds: float  # the mean
    evaluations: dict[str, float]  # task -> mean, of the tasks that every run has


def groups(finished: Sequence[Trial], loss: Callable[[float], float]) -> list[Group]:
    """One per suggestion and start that has a completed run, in the order of the first of these."""
    runs: dict[tuple[int, int | None, int], list[tuple[float, Trial]]] = {}
    for trial in finished:
        if trial.state is State.COMPLETE and trial.score is not None:
            start = trial.suggestion.index, trial.parent, trial.extra
            runs.setdefault(start, []).append((trial.score, trial))
    return [_group(together, loss) for together in runs.values()]


def _group(runs: Sequence[tuple[float, Trial]], loss: Callable[[float], float]) -> Group:
    scores = [score for score, _ in runs]
    outcomes = [trial.outcome for _, trial in runs if trial.outcome is not None]
    shared = set.intersection(*(set(outcome.evaluations) for outcome in outcomes))
    return Group(
        min(runs, key=lambda one: loss(one[0]))[1],
        loss(fmean(scores)),
        stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0,
        fmean(outcome.seconds for outcome in outcomes),
        {task: fmean(o.evaluations[task] for o in outcomes) for task in sorted(shared)},
    )


def in_order(candidates: Sequence[Group]) -> list[Group]:
    """Best first. Those within one standard error of the best of the rest go by what they cost."""
    rest = sorted(candidates, key=lambda group: group.loss)  # stable: equal ones keep their order
    ordered = []
    while rest:
        best = rest[0]
        close = [group for group in rest if group.loss <= best.loss + best.stderr]
        if best.stderr > 0:
            best = min(close, key=lambda group: (group.seconds, group.best.suggestion.index))
        ordered.append(best)
        rest.remove(best)
    return ordered


class TopKGroups(TopK):
    """The k best suggestions by the mean of their runs, each as its best run.

    Whether two are within noise shows when all their runs are over, so the stage is awaited.
    """

    monotone: ClassVar[bool] = False

    def __call__(self, finished: Sequence[Trial]) -> list[Trial]:
        ordered = in_order(groups(finished, self.loss))
        return [group.best for group in ordered[: self.kept(finished)]]
