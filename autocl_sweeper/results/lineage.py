"""Chains of trials: which is best, their accuracy matrices and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocl_sweeper import metrics
from autocl_sweeper.plan import Plan
from autocl_sweeper.plan.rounds import POPULATION
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.types import History, Outcome, State, Trial


@dataclass(frozen=True)
class Lineage:
    """A trial's chain of parents and its numbers. `evaluation`, `test`: accuracy matrices R[i][j].

    `forward`: forward transfer on dev, where jobs are evaluated on tasks to come and the first one
    returned the scores before training, `before_<task>`.
    """

    trials: Sequence[Trial]
    evaluation: Sequence[Sequence[float]] | None
    test: Sequence[Sequence[float]] | None
    forward: float | None = None

    @property
    def score(self) -> float:
        score = self.trials[-1].score
        assert score is not None
        return score


def lineage_of(trial: Trial, history: History, tasks: Sequence[str]) -> Lineage:
    """The lineage of a trial; a matrix is None unless every trial has all the scores it needs."""
    trials = history.lineage(trial)
    last = {one.task: one for one in trials}  # of a task's rounds the last one is its training
    outcomes = [one.outcome for one in last.values() if one.outcome is not None]

    def matrix(scores: Sequence[Mapping[str, float]]) -> list[list[float]] | None:
        complete = all(set(tasks[: stage + 1]) <= set(row) for stage, row in enumerate(scores))
        return metrics.accuracy_matrix(tasks, scores) if tasks and complete else None

    return Lineage(
        trials,
        matrix([outcome.evaluations for outcome in outcomes]),
        matrix([outcome.tests for outcome in outcomes]),
        _forward(tasks, outcomes),
    )


def _forward(tasks: Sequence[str], outcomes: Sequence[Outcome]) -> float | None:
    """Forward transfer of a chain on dev; None unless it has at least two tasks and all scores it needs."""
    scores = [outcome.evaluations for outcome in outcomes]
    before = outcomes[0].numbers if outcomes else {}
    later = [*enumerate(tasks)][1:]
    if not later or len(scores) < len(tasks):
        return None
    if not all(f"before_{task}" in before and task in scores[i - 1] for i, task in later):
        return None
    whole = [[row.get(task, 0.0) for task in tasks] for row in scores]
    return metrics.forward_transfer(whole, [before.get(f"before_{task}", 0.0) for task in tasks])


def final_lineages(plan: Plan, history: History) -> list[Lineage]:
    """The lineages that end in the last stage reached: the survivors, then the others by score."""
    # In a population's open round trials have trained for different times: it does not count yet.
    over = plan.settings.parents == POPULATION
    reached = len(history.beams) if over else history.open_stage
    for stage in reversed(plan.stages[:reached]):
        finished = [
            (plan.selection.loss(trial.score), history.place(trial), trial)
            for trial in history.stage(stage.number)
            if trial.state is State.COMPLETE and trial.score is not None
        ]
        if finished:
            tasks = plan.tasks_until(stage.number)
            beam = {number: place for place, number in enumerate(beam_of(plan, history, stage))}
            ranked = [trial for _, _, trial in sorted(finished)]
            ranked.sort(key=lambda trial: beam.get(trial.number, len(beam)))
            return [lineage_of(trial, history, tasks) for trial in ranked]
    return []


def beam_of(plan: Plan, history: History, stage: Stage) -> Sequence[int]:
    """The survivors of a stage, best first; of an open one, those that would be if it were over."""
    if stage.number in history.beams:
        return history.beams[stage.number]
    trials = sorted(history.stage(stage.number), key=history.place)
    return [trial.number for trial in plan.selection(trials)]


def continual_metrics(
    matrix: Sequence[Sequence[float]], forward: float | None = None
) -> dict[str, float]:
    """Metrics this matrix defines: transfer needs two tasks. forward: what else is known of it."""
    found = {"average_accuracy": metrics.average_accuracy(matrix)}
    if len(matrix) > 1:
        found["backward_transfer"] = metrics.backward_transfer(matrix)
        found["forgetting"] = metrics.forgetting(matrix)
    if forward is not None:
        found["forward_transfer"] = forward
    return found
