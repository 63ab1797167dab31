"""Finished sweeps of simulated jobs, for what reads sweep folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from support.lineages import Simulated
from support.plans import plan_of

from autocl_sweeper.types import Cause, Outcome, State, Trial

TASKS = ("a", "b", "c")
FORGOTTEN = {
    1: 0.1,
    2: 0.3,
}  # what learning a later task with this rate takes from each earlier one
LEARNED = {1: 0.9, 2: 1.0}  # the score on a task learned with this rate


def turns(lineage: Sequence[Trial]) -> Outcome:
    """Three tasks whose scores are sums of the two tables above; test is 0.05 below dev."""
    rates = [trial.suggestion.params["lr"] for trial in lineage]
    scores = {
        TASKS[n]: LEARNED[rate] - sum(FORGOTTEN[later] for later in rates[n + 1 :])
        for n, rate in enumerate(rates)
    }
    return Outcome(
        State.COMPLETE,
        score=sum(scores.values()) / len(scores),
        evaluations=scores,
        tests={task: score - 0.05 for task, score in scores.items()},
        seconds=2.0,
        returned="dict",
    )


def crossed(folder: Path) -> Path:
    """2 + 4 + 4 trials: rates 1 and 2 on each of three tasks, from each of two parents."""
    Simulated(folder, plan_of("task=a,b,c", "lr=1,2", handover={"p": "parent"}), turns)
    return folder


def failing(
    folder: Path, reason: str = "exited with 1 after 3 s", tail: Sequence[str] = ()
) -> Path:
    """One task; its second and third trials fail alike but for a number."""

    def ends(lineage: Sequence[Trial]) -> Outcome:
        trial = lineage[-1]
        if trial.number == 0:
            return Outcome(
                State.COMPLETE, score=0.5, evaluations={"a": 0.5}, seconds=1.0, returned="dict"
            )
        why = reason.replace("3", str(trial.number + 3))
        return Outcome(State.FAIL, why, cause=Cause.EXIT, seconds=1.0, log_tail=tuple(tail))

    Simulated(folder, plan_of("task=a", "lr=1,2,3", handover={"p": "parent"}), ends)
    return folder
