"""The trials of a task by round, read from the history: their best, and a row for each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocl_sweeper.plan import Plan
from autocl_sweeper.plan.rounds import POPULATION, Population
from autocl_sweeper.space import bare
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.types import History, State, Trial, Value

OWN = "own"  # the epochs of a job that was passed no number


@dataclass(frozen=True)
class Round:
    """One round of a task."""

    number: int  # from 0
    trials: Mapping[int, Trial]  # by their places, in their order
    over: bool


class Rounds:
    """The rounds of one task of a sweep that goes through rounds. Live: looks at the history."""

    def __init__(self, plan: Plan, history: History, task: str) -> None:
        self.plan = plan
        self.task = task
        self.stages = [stage for stage in plan.stages if stage.task == task]
        self._history = history
        population = Population.of(plan.settings)
        self._epochs_key = bare(population.epochs_key)
        self.is_population = plan.settings.parents == POPULATION

    @property
    def root(self) -> str:
        """The folder of the rounds, relative to the sweep folder; empty or with a slash at its end."""
        return self.plan.root(self.task)

    @property
    def total(self) -> int:
        """How many rounds there will be."""
        if self.is_population:
            return len(self.stages)
        jobs, popsize = self.stages[0].jobs(1) or 0, self.plan.settings.popsize
        return 1 if popsize is None else -(-jobs // popsize)

    def all(self) -> list[Round]:
        """The rounds that have begun, in their order."""
        found: dict[int, dict[int, Trial]] = {}
        for stage in self.stages:
            for trial in self._history.stage(stage.number):
                if trial.number not in self._history.given_up:
                    number, place = self.round_of(trial)
                    found.setdefault(number, {})[place] = trial
        return [
            Round(number, dict(sorted(trials.items())), self._over(number, trials.values()))
            for number, trials in sorted(found.items())
        ]

    def round_of(self, trial: Trial) -> tuple[int, int]:
        """Round and place of a trial."""
        stage = self.plan.stages[trial.stage - 1]
        return self.plan.round_of(stage, trial.suggestion.index)

    def best(self) -> Trial | None:
        """The winner so far.

        In a population one of the last round that is over: only trials of one round have been
        trained for the same time.
        """
        rounds = self.all()
        if self.is_population:
            rounds = [one for one in rounds if one.over][-1:]
        return best_of(self.plan, [trial for one in rounds for trial in one.trials.values()])

    def chain(self, trial: Trial) -> list[Trial]:
        """The lineage of a trial in this task's rounds: first round first."""
        return [one for one in self._history.lineage(trial) if one.task == self.task]

    def name(self, number: int | None) -> str:
        """A trial as 'round/place'; empty for none."""
        if number is None:
            return ""
        trial = self._history[number]
        named = "{}/{}".format(*self.round_of(trial))
        return named if trial.task == self.task else f"{trial.task} {named}"

    def passed(self, trial: Trial) -> int | None:
        """The epochs that a trial's job was passed by the population; None: none."""
        stage = self.plan.stages[trial.stage - 1]
        epochs = {bare(key): value for key, value in stage.passed.items()}.get(self._epochs_key)
        return epochs if isinstance(epochs, int) else None

    def total_epochs(self, trial: Trial) -> int | str:
        """Epochs along a trial's chain; 'own+2' where the app alone knows how many its own are."""
        own, total = "", 0
        for one in self.chain(trial):
            epochs: Value = self.passed(one)
            if epochs is None:
                config = {**self.plan.configs.get(self.task, {}), **one.suggestion.params}
                epochs = config.get(self._epochs_key)
            if isinstance(epochs, int) and not isinstance(epochs, bool):
                total += epochs
            else:
                own = OWN
        return f"{own}+{total}" if own and total else own or total

    def _over(self, number: int, trials: Collection[Trial]) -> bool:
        stage: Stage = self.stages[number if self.is_population else 0]
        if stage.number in self._history.beams:
            return True
        if self.is_population or len(trials) != self.plan.settings.popsize:
            return False
        return all(trial.state is not State.RUNNING for trial in trials)


def best_of(plan: Plan, trials: Iterable[Trial]) -> Trial | None:
    """The best trial that has a score; of equal ones the first."""
    scored = [
        (plan.selection.loss(trial.score), trial.number, trial)
        for trial in trials
        if trial.score is not None
    ]
    return min(scored)[2] if scored else None


def settings_of(trial: Trial) -> str:
    """A trial's hyper-parameters as they are typed: a=1 b=0.001."""
    params = trial.suggestion.params
    return " ".join(f"{bare(key)}={as_text(value)}" for key, value in params.items())


def as_text(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def saved(trial: Trial, folder: Path) -> str | None:
    """A trial's checkpoint, relative to the sweep's folder; None: it has none, or it is gone by now."""
    checkpoint = trial.outcome.checkpoint if trial.outcome else None
    return checkpoint if checkpoint and (folder / checkpoint).exists() else None


def rows_of(rounds: Rounds, folder: Path) -> list[dict[str, Any]]:
    """A row per trial; `folder` is the sweep's."""
    rows = []
    for one in rounds.all():
        for place, trial in one.trials.items():
            outcome = trial.outcome
            model = f"{rounds.root}{model_name(one.number, place)}"
            rows.append(
                {
                    **{bare(key): as_text(v) for key, v in trial.suggestion.params.items()},
                    "round": one.number,
                    "trial": place,
                    "state": trial.state.value,
                    "score": "" if trial.score is None else repr(trial.score),
                    "total epochs": rounds.total_epochs(trial),
                    "parent": rounds.name(trial.parent),
                    "seconds": "" if outcome is None else round(outcome.seconds, 3),
                    "saved_params_dir": model if saved(trial, folder) else "",
                }
            )
    return rows


def log_name(number: int, place: int) -> str:
    return f"round{number}/log-{place}.info"


def model_name(number: int, place: int) -> str:
    return f"round{number}/model-{place}"


LEFT = ["round", "trial", "state", "score"]
RIGHT = ["total epochs", "parent", "seconds", "saved_params_dir"]


def written(rounds: Rounds, folder: Path, delimiter: str) -> str:
    """The table of a task as text, hyper-parameters in the middle, in the order they came up."""
    rows = rows_of(rounds, folder)
    keys = dict.fromkeys(key for row in rows for key in row if key not in (*LEFT, *RIGHT))
    text = io.StringIO()
    columns = [*LEFT, *keys, *RIGHT]
    writer = csv.DictWriter(text, columns, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
