"""What trials that began early cost, and what early stopping saved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autocl_sweeper.types import History, State, Trial, is_stopped


@dataclass(frozen=True)
class Waste:
    """What trials cost that began early and were given up. `seconds` of jobs, `share` of all."""

    trials: int
    seconds: float
    share: float

    def __str__(self) -> str:
        return (
            f"given up: {self.trials} trials whose parent left the beam,"
            f" {self.seconds:.1f} s of jobs ({self.share:.1%} of all)"
        )


def early_texts(history: History) -> list[str]:
    """Both as sentences, where there is something to say."""
    saved = savings(history)
    found = [str(saved)] if saved.trials else []
    return [*found, str(waste(history))] if history.given_up else found


def waste(history: History) -> Waste:
    def seconds(trials: Iterable[Trial]) -> float:
        return sum(trial.outcome.seconds for trial in trials if trial.outcome is not None)

    lost, spent = seconds(history[number] for number in history.given_up), seconds(history)
    return Waste(len(history.given_up), lost, lost / spent if spent else 0.0)


@dataclass(frozen=True)
class Savings:
    """What early stopping saved: `trials` of `finished` ones were stopped.

    `steps` and `seconds` are estimates: what is missing to the longest and to the mean completed
    trial of the stage; `all_steps` is what all of these trials would have done.
    """

    trials: int
    finished: int
    steps: int
    all_steps: int
    seconds: float

    def __str__(self) -> str:
        share = self.steps / self.all_steps if self.all_steps else 0.0
        return (
            f"stopped early: {self.trials} of {self.finished} trials; about {self.steps} of"
            f" {self.all_steps} steps ({share:.0%}) and {self.seconds:.0f} s of jobs were saved"
        )


def savings(history: History) -> Savings:
    trials = finished = steps = all_steps = 0
    seconds = 0.0
    for stage in range(1, len(history.beams) + 2):
        ended = history.stage(stage)
        stopped = [trial for trial in ended if is_stopped(trial)]
        complete = [trial for trial in ended if trial.state is State.COMPLETE]
        trials, finished = trials + len(stopped), finished + len(stopped) + len(complete)
        full = max((_last_step(history, trial) for trial in complete), default=0)
        missing = [max(0, full - _last_step(history, trial)) for trial in stopped]
        done = sum(_last_step(history, trial) for trial in (*stopped, *complete))
        steps, all_steps = steps + sum(missing), all_steps + sum(missing) + done
        if complete:
            mean = sum(t.outcome.seconds for t in complete if t.outcome) / len(complete)
            seconds += sum(max(0.0, mean - t.outcome.seconds) for t in stopped if t.outcome)
    return Savings(trials, finished, steps, all_steps, seconds)


def _last_step(history: History, trial: Trial) -> int:
    reports = history.reports(trial.number)
    return reports[-1].step if reports else 0
