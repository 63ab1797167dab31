"""Which failures end a sweep: too many of them, a whole round, or all of a stage."""

from __future__ import annotations

from collections.abc import Sequence

from autocl_sweeper.plan import Plan
from autocl_sweeper.plan.rounds import INIT
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.types import History, State, Trial
from autocl_sweeper.verdict import Verdict


class Failures:
    """All that these raise is a SweepStoppedError."""

    def __init__(self, plan: Plan, history: History, verdict: Verdict) -> None:
        self._plan = plan
        self._settings = plan.settings
        self._history = history
        self._verdict = verdict

    def refuse_too_many(self) -> None:
        limit = self._settings.max_failures
        if limit is not None and self._history.failures > limit:
            counted = [t for t in self._history if t.stage <= self._history.open_stage]
            raise self._verdict.too_many(self._history.failures, limit, counted)

    def refuse_round(self, trial: Trial) -> None:
        """Stop when all of a round failed, unless `max_failures` says how many may."""
        settings = self._settings
        if settings.parents != INIT or settings.max_failures is not None:
            return
        if trial.state is not State.FAIL or settings.popsize is None:
            return
        stage = self._plan.stages[trial.stage - 1]
        number, _ = self._plan.round_of(stage, trial.suggestion.index)
        of_round = [
            one
            for one in self._history.stage(trial.stage)
            if self._plan.round_of(stage, one.suggestion.index)[0] == number
        ]
        failed = [one for one in of_round if one.state is State.FAIL]
        if len(failed) == min(settings.popsize, stage.jobs(1) or settings.popsize):
            raise self._verdict.failed_round(number, settings.retries, failed)

    def refuse_stage(self, stage: Stage, beam: Sequence[int]) -> None:
        """Stop where a stage is over and nothing of it survived."""
        if self._plan.ranked and not beam:
            trials = self._history.stage(stage.number)
            raise self._verdict.no_survivor(stage.task, self._settings.retries, trials)
