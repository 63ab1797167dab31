"""The curves of every stage, brought up to date from the history, and the rule asked about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from autocl_sweeper.curves import Curve, Curves
from autocl_sweeper.protocols import Pruner
from autocl_sweeper.types import History, State, Trial

FAVOURED = ("init", "own", "carried")  # origins of suggestions that did well before


class EarlyStopping:
    """One sweep's trials as its rules see them: a table per stage, with lower losses better.

    Failed and given-up trials are not in it, nor is what a trial reported before it ran again.
    `rules`: by stage; one without a rule stops no trial. `max_steps`: the steps of a full training;
    None: those of the first trial that completes in its stage, before which none is stopped.
    """

    def __init__(
        self,
        rules: Mapping[int, Pruner],
        max_steps: int | None,
        history: History,
        loss: Callable[[float], float],
    ) -> None:
        self._rules = rules
        self._max_steps = max_steps
        self._history = history
        self._loss = loss
        self._seen = 0
        self._stages: dict[int, Curves] = {}
        self._attempts: dict[int, int] = {}  # by trial: whose reports are in its curve
        self._first: dict[int, int] = {}  # stage -> last step of its first completed trial

    def judge(self, trial: Trial) -> str | None:
        """Why a running trial is stopped for its last report; None: it goes on."""
        self._follow()
        full = self.full_steps(trial.stage)
        if full is None or trial.number in self._history.stopped:
            return None  # it was stopped once and now runs to its end
        return self._rules[trial.stage].prune(self._stages[trial.stage], trial.number, full)

    def distrust(self, stage: int) -> str | None:
        """Why no trial of a stage is to be stopped; None: the rule holds."""
        self._follow()
        full = self.full_steps(stage)
        if full is None:
            return None
        return self._rules[stage].distrust(self._curves(stage), full)

    def beyond(self, stage: int) -> tuple[int, int] | None:
        """The last rung, where no trial reached it though one completed, and the last step reported.

        The step is -1 where nothing was reported.
        """
        self._follow()
        if stage not in self._rules:
            return None
        full, curves = self.full_steps(stage), self._curves(stage)
        rung = 0 if full is None else self._rules[stage].steps(full)[-1]
        if curves.at(rung).losses:
            return None
        last = max((c.reports[-1][0] for c in curves.values() if c.reports), default=-1)
        completed = any(curve.final is not None for curve in curves.values())
        return (rung, last) if completed else None

    def full_steps(self, stage: int) -> int | None:
        """The steps of a full training in a stage with a rule; None: not known yet."""
        self._follow()
        return (self._max_steps or self._first.get(stage)) if stage in self._rules else None

    def _curves(self, stage: int) -> Curves:
        return self._stages.setdefault(stage, Curves())

    def _follow(self) -> None:
        changes = self._history.changes
        for place in range(self._seen, len(changes)):
            self._note(changes[place])
        self._seen = len(changes)

    def _note(self, trial: Trial) -> None:
        curves, number = self._curves(trial.stage), trial.number
        reports = self._history.reports(number)
        if trial.state is State.COMPLETE and reports:
            self._first.setdefault(trial.stage, reports[-1].step)
        if number in self._history.given_up or trial.state is State.FAIL:
            curves.pop(number, None)
            return
        if number not in curves or self._attempts[number] != trial.attempt:
            self._attempts[number] = trial.attempt
            curves[number] = Curve([], trial.suggestion.origin in FAVOURED)
        for one in reports[len(curves[number].reports) :]:
            curves.report(number, one.step, self._loss(one.score))
        if trial.state is State.COMPLETE and trial.score is not None:
            curves[number] = replace(curves[number], final=self._loss(trial.score))
