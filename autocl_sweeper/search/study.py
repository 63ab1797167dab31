"""A search by one of Optuna's samplers: a study in memory follows the stage and is asked anew."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autocl_sweeper.distributions import Choice, Distribution, Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search import in_turn, next_index
from autocl_sweeper.search.cube import seed_of
from autocl_sweeper.search.grid import size_of
from autocl_sweeper.search.random import uniform, unseen
from autocl_sweeper.types import Origin, State, Suggestion, Value
from autocl_sweeper.view import StageView, TrialView

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

ATTEMPTS = 5  # proposals that were there before; then one is drawn from what is left


class SamplerSearch:
    """What a sampler proposes for the stage as it is, each with one parent, the parents in turn.

    The first suggestion is the app's own configuration where it lies in the space; random ones
    follow until `startup` trials have ended in one of the states the sampler learns from. Every
    suggestion has a sampler of its own, with a seed of its own, so none depends on the ones asked
    before. A proposal that was there before is asked again, then drawn from what is left.
    """

    pairing: ClassVar[Literal["every", "one"]] = "one"

    def __init__(
        self,
        space: Space,
        name: str,
        sampler: Callable[[int], BaseSampler],
        startup: int,
        learns_from: Collection[State],
    ) -> None:
        if startup < 1:
            raise ConfigurationError(
                f"hydra.sweeper.search.n_startup_trials={startup}, but it must be at least 1."
            )
        self.size = size_of(space)
        self._space = space
        self._name = name
        self._sampler = sampler
        self._startup = startup
        self._learns_from = learns_from
        self._study = StageStudy(space, name)

    def ask(self, stage: StageView) -> Suggestion | None:
        index = next_index(stage)
        parent = in_turn(stage, index)
        initial = self._space.initial
        if index == 0 and initial is not None:
            return Suggestion(index, initial, "init", parent=parent)
        study = self._study
        study.follow(stage)
        for attempt in range(ATTEMPTS if self._space else 0):
            params = study.ask(self._sampler(seed_of(self._name, index, attempt)))
            if repr(params) not in study.seen:
                learned = study.count(self._learns_from) >= self._startup
                origin: Origin = "model" if learned else "fresh"
                return Suggestion(index, params, origin, parent=parent)
        rest = unseen(self._space, study.seen, f"{self._name}/{index}")
        return None if rest is None else Suggestion(index, rest, "fresh", parent=parent)


class StageStudy:
    """A mirror of one stage, brought up to date by its changes alone.

    Every trial has a value for every axis, or Optuna would leave the axis out of its joint model:
    one that a condition took away is drawn from the seed. Numbers of a list go by their rank.
    Failed trials are FAIL, stopped ones PRUNED with what they reported, and trials outside the
    space are left out.
    """

    def __init__(self, space: Space, name: str) -> None:
        """`name` is the seed of values that are drawn."""
        self._space = space
        self._name = name
        self._distributions = {axis: _distribution(one) for axis, one in space.items()}
        self._stage: StageView | None = None
        self._revision = 0
        self._states: dict[int, State] = {}  # of the trials in the study
        self._ids: dict[int, int] = {}  # theirs in Optuna's storage
        self._seen: dict[str, None] = {}  # the parameters of all trials, those outside too
        self._storage: Any = None
        self._study: Any = None

    def follow(self, stage: StageView) -> None:
        """Take in what changed since the last time; a trial that runs again makes it begin anew."""
        if stage is not self._stage or not self._take(stage):
            self._begin()
            self._stage, self._revision = stage, stage.revision
            for trial in stage.trials:
                self._add(trial)

    @property
    def seen(self) -> Mapping[str, None]:
        """The `repr` of the parameters of every trial, whatever became of it."""
        return self._seen

    def count(self, states: Collection[State]) -> int:
        """How many trials of the study are in one of these states."""
        return sum(self._states[number] in states for number in self._ids)

    def ask(self, sampler: BaseSampler) -> dict[str, Value]:
        """What a sampler proposes next. The study stays as it was."""
        from optuna.trial import TrialState

        self._study.sampler = sampler
        asked = self._study.ask(self._distributions)
        self._study.tell(asked, state=TrialState.FAIL)  # the stage says what becomes of it
        point = {axis: _value(one, asked.params[axis]) for axis, one in self._space.items()}
        return self._space.params(point)

    def _take(self, stage: StageView) -> bool:
        """Whether the changes could be taken in."""
        changed, self._revision = stage.changed(self._revision), stage.revision
        for trial in changed:
            if trial.number not in self._states:
                self._add(trial)
            elif self._states[trial.number] is State.RUNNING:
                self._end(trial)
            elif self._states[trial.number] is not trial.state:
                return False
        return len(self._states) == len(stage.trials)  # none was given up

    def _begin(self) -> None:
        from optuna import load_study
        from optuna.logging import WARNING, get_verbosity, set_verbosity
        from optuna.storages import InMemoryStorage
        from optuna.study import StudyDirection

        self._states, self._ids, self._seen = {}, {}, {}
        self._storage = InMemoryStorage()
        verbosity = get_verbosity()
        set_verbosity(WARNING)  # it would announce each study
        self._storage.create_new_study([StudyDirection.MINIMIZE], "stage")
        set_verbosity(verbosity)
        self._study = load_study(study_name="stage", storage=self._storage)

    def _add(self, trial: TrialView) -> None:
        from optuna.trial import TrialState, create_trial

        self._states[trial.number] = State.RUNNING
        self._seen[repr(dict(trial.params))] = None
        params = self._params(trial)
        if params is not None:
            running = create_trial(
                state=TrialState.RUNNING, params=params, distributions=self._distributions
            )
            study = self._storage.get_study_id_from_name("stage")
            self._ids[trial.number] = self._storage.create_new_trial(study, running)
        self._end(trial)

    def _end(self, trial: TrialView) -> None:
        from optuna.trial import TrialState

        state = self._states[trial.number] = trial.state
        if state is State.RUNNING or trial.number not in self._ids:
            return
        number, loss = self._ids[trial.number], trial.loss
        if state is State.COMPLETE and loss is not None:
            self._storage.set_trial_state_values(number, TrialState.COMPLETE, [loss])
        elif state is State.PRUNED and trial.reports:
            for step, reported in trial.reports:
                self._storage.set_trial_intermediate_value(number, step, reported)
            self._storage.set_trial_state_values(number, TrialState.PRUNED)
        else:
            self._storage.set_trial_state_values(number, TrialState.FAIL)

    def _params(self, trial: TrialView) -> dict[str, Any] | None:
        """Its values as Optuna has them; None: one lies outside the space."""
        point = self._space.point(trial.params)
        params: dict[str, Any] = {}
        for axis, distribution in self._space.items():
            if axis in point:
                value = point[axis]
            else:
                value = distribution.at(uniform(f"{self._name}/{trial.suggestion.index}/{axis}"))
            if distribution.position(value) is None:
                return None
            place = distribution.place(value) if isinstance(distribution, Choice) else value
            params[axis] = place
        return params


def _distribution(one: Distribution) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(one, Choice):  # by place: Optuna takes no lists, and True for 1
        last = len(one.values) - 1
        return IntDistribution(0, last) if one.ordered else CategoricalDistribution(range(last + 1))
    if one.integer:
        return IntDistribution(int(one.low), int(one.high), log=one.log)
    return FloatDistribution(one.low, one.high, log=one.log)


def _value(one: Distribution, proposed: Any) -> Value:
    if isinstance(one, Choice):
        return one.ranked[int(proposed)]
    return int(proposed) if one.integer else float(proposed)
