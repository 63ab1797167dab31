"""The curves of every stage, brought up to date from the history, and the rule asked about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from autocl_sweeper.protocols import Curve, Pruner
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
        self._stages: dict[int, dict[int, Curve]] = {}
        self._points: dict[int, list[tuple[int, float]]] = {}  # by trial; curves hold them
        self._attempts: dict[int, int] = {}  # whose points those are
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
        return self._rules[stage].distrust(self._stages.get(stage, {}), full)

    def beyond(self, stage: int) -> tuple[int, int] | None:
        """The last rung, where no trial reached it though one completed, and the last step reported.

        The step is -1 where nothing was reported.
        """
        self._follow()
        if stage not in self._rules:
            return None
        full, curves = self.full_steps(stage), self._stages.get(stage, {})
        rung = 0 if full is None else self._rules[stage].steps(full)[-1]
        last = -1
        for curve in curves.values():  # mostly the first one has been there
            if curve.reports and (last := max(last, curve.reports[-1][0])) >= rung:
                return None
        completed = any(curve.final is not None for curve in curves.values())
        return (rung, last) if completed else None

    def full_steps(self, stage: int) -> int | None:
        """The steps of a full training in a stage with a rule; None: not known yet."""
        self._follow()
        return (self._max_steps or self._first.get(stage)) if stage in self._rules else None

    def _follow(self) -> None:
        changes = self._history.changes
        for place in range(self._seen, len(changes)):
            self._note(changes[place])
        self._seen = len(changes)

    def _note(self, trial: Trial) -> None:
        curves, number = self._stages.setdefault(trial.stage, {}), trial.number
        reports = self._history.reports(number)
        if trial.state is State.COMPLETE and reports:
            self._first.setdefault(trial.stage, reports[-1].step)
        if number in self._history.given_up or trial.state is State.FAIL:
            curves.pop(number, None)
            return
        if number not in curves or self._attempts[number] != trial.attempt:
            self._points[number], self._attempts[number] = [], trial.attempt
            curves[number] = Curve(self._points[number], trial.suggestion.origin in FAVOURED)
        points = self._points[number]
        points += [(one.step, self._loss(one.score)) for one in reports[len(points) :]]
        if trial.state is State.COMPLETE and trial.score is not None:
            curves[number] = replace(curves[number], final=self._loss(trial.score))
