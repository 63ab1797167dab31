"""Accuracy and forgetting of the chains of a sweep, as coloured tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autocl_sweeper import metrics
from autocl_sweeper.overview import Overview
from autocl_sweeper.page.scale import Scale
from autocl_sweeper.page.words import clean
from autocl_sweeper.results.lineage import lineage_of
from autocl_sweeper.types import State, Trial

MOST_CHAINS = 24


@dataclass(frozen=True)
class Matrix:
    """One chain on one split. `rows[i][j]`: score on task j after task i."""

    title: str
    tasks: Sequence[str]
    rows: Sequence[Sequence[float]]

    @property
    def means(self) -> list[float]:
        return [sum(row) / len(row) for row in self.rows]

    @property
    def forgotten(self) -> list[float]:
        """What each task but the last lost from its best score before the last task."""
        last = len(self.rows) - 1
        return [
            max(self.rows[i][j] for i in range(j, last)) - self.rows[last][j] for j in range(last)
        ]

    @property
    def forgetting(self) -> float | None:
        return metrics.forgetting(self.rows) if len(self.rows) > 1 else None

    @property
    def transfer(self) -> float | None:
        return metrics.backward_transfer(self.rows) if len(self.rows) > 1 else None


@dataclass(frozen=True)
class Chain:
    """A chain through the last stage reached, with its dev scores there."""

    trials: Sequence[Trial]
    scores: Sequence[float]
    forgetting: float | None

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Matrices:
    dev: Matrix | None
    test: Matrix | None
    chains: Sequence[Chain]
    more_chains: int
    scale: Scale


def tasks_of(chain: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(trial.task for trial in chain))


def matrices(sweep: Overview) -> Matrices:
    best = sweep.chain
    tasks = tasks_of(best)
    dev = test = None
    if len(tasks) > 1:
        lineage = lineage_of(best[-1], sweep.history, tasks)
        names = [clean(task) for task in tasks]
        if lineage.evaluation:
            dev = Matrix("Best chain, dev data (what selection saw)", names, lineage.evaluation)
        if lineage.test:
            test = Matrix("Best chain, test data (never used to select)", names, lineage.test)
    chains = _chains(sweep, best[-1].stage) if dev is not None else []
    cells = [value for one in (dev, test) if one for row in one.rows for value in row]
    cells += [value for chain in chains for value in chain.scores]
    kept = chains[:MOST_CHAINS]
    # Scores by task are better when higher, whatever the ranked number is.
    return Matrices(dev, test, kept, len(chains) - len(kept), Scale.of(cells, True))


def _chains(sweep: Overview, stage: int) -> list[Chain]:
    found = []
    for trial in sweep.ranked(stage):
        if trial.state is not State.COMPLETE or trial.number in sweep.history.given_up:
            continue
        trials = sweep.history.lineage(trial)
        if rows := lineage_of(trial, sweep.history, tasks_of(trials)).evaluation:
            found.append(Chain(trials, rows[-1], Matrix("", (), rows).forgetting))
    return found


def most_forgotten(matrix: Matrix) -> tuple[str, float] | None:
    """The task that lost most, and what."""
    value, task = max(zip(matrix.forgotten, matrix.tasks, strict=False), default=(0.0, ""))
    return (task, value) if value > 0 else None
