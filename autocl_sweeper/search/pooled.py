"""Trials as Optuna's samplers take them, of one stage or of several in one model.

TPE models together only what all of its trials have, in the same range: a trial without a key, or with
another range, silently takes that key out. So every trial is entered with this stage's distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from autocl_sweeper.distributions import Choice, Distribution, Space, is_number
from autocl_sweeper.types import Value
from autocl_sweeper.view import StageView, TrialView

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

Point = Mapping[str, Value]
Row = TypeVar("Row")


class Axes:
    """The axes of a space as models see them: Optuna's distributions, or places in the unit cube.

    Numbers and ordered choices count by size (those by their rank), other choices by their index.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._spelled = {key.lstrip("+"): key for axis in space for key in space.keys_of(axis)}
        self.categorical = [isinstance(d, Choice) and not d.ordered for d in space.values()]

    def taken(self, params: Mapping[str, Value]) -> dict[str, Value]:
        """Values of the axes that params set, moved into this space; an axis without one is left out."""
        known = {key.lstrip("+"): value for key, value in params.items()}
        named = {key: known[bare] for bare, key in self._spelled.items() if bare in known}
        moved = {
            axis: nearest(self.space[axis], value)
            for axis, value in self.space.point(named).items()
        }
        return {axis: found[0] for axis, found in moved.items() if found}

    def completed(self, point: Point, place: Callable[[str], float]) -> dict[str, Value]:
        """A value for every axis; `place` gives each missing one a number in [0, 1)."""
        return {
            axis: point[axis] if axis in point else distribution.at(place(axis))
            for axis, distribution in self.space.items()
        }

    def coordinates(self, point: Point) -> list[float]:
        """Where a complete point lies in the unit cube; the index of a choice without an order."""
        told = self.to_optuna(point)
        return [
            float(told[axis]) if categorical else one.position(point[axis]) or 0.0
            for (axis, one), categorical in zip(self.space.items(), self.categorical, strict=True)
        ]

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every axis; of a choice by place: it takes no lists, and True for 1."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        found: dict[str, BaseDistribution] = {}
        for axis, one in self.space.items():
            if isinstance(one, Choice):
                last = len(one.values) - 1
                indices = CategoricalDistribution(tuple(range(last + 1)))
                found[axis] = IntDistribution(0, last) if one.ordered else indices
            elif one.integer:
                found[axis] = IntDistribution(int(one.low), int(one.high), log=one.log)
            else:
                found[axis] = FloatDistribution(one.low, one.high, log=one.log)
        return found

    def to_optuna(self, point: Point) -> dict[str, Any]:
        return {
            axis: one.place(point[axis]) if isinstance(one, Choice) else point[axis]
            for axis, one in self.space.items()
        }

    def from_optuna(self, params: Mapping[str, Any]) -> dict[str, Value]:
        return {
            axis: one.ranked[params[axis]] if isinstance(one, Choice) else params[axis]
            for axis, one in self.space.items()
        }


def nearest(distribution: Distribution, value: Value) -> list[Value]:
    """The value of a distribution that is nearest to another sweep's or stage's; empty: none is."""
    if isinstance(distribution, Choice):
        place = distribution.place(value)
        if place is not None:
            return [distribution.ranked[place]]
        if not is_number(value) or not distribution.ordered:
            return []
        return [min(distribution.ranked, key=lambda one: abs(one - value))]  # type: ignore[operator]
    if not is_number(value):
        return []
    inside = min(max(value, distribution.low), distribution.high)
    return [round(inside) if distribution.integer else float(inside)]


class Mirror(Generic[Row]):
    """What `make` gives for each trial of a stage, worked out again where the trial changed."""

    def __init__(self, stage: StageView, make: Callable[[TrialView], Row]) -> None:
        self.stage = stage
        self._make = make
        self._revision = 0
        self._rows: dict[int, Row] = {}

    def rows(self) -> list[Row]:
        for trial in self.stage.changed(self._revision):
            self._rows[trial.number] = self._make(trial)
        self._revision = self.stage.revision
        return [self._rows[trial.number] for trial in self.stage.trials]


def ask(
    trials: Sequence[FrozenTrial],
    sampler: BaseSampler,
    distributions: Mapping[str, BaseDistribution],
) -> dict[str, Any]:
    """What a sampler suggests after these trials, the oldest first, lower values better."""
    import optuna

    for number, trial in enumerate(trials, start=1):  # 0 is the trial that it is asked for
        trial.number = number
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce a study
    try:
        study = optuna.create_study(storage=_pool_class()(trials), sampler=sampler)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return dict(study.ask(dict(distributions)).params)


@cache
def _pool_class() -> Any:
    """A storage that shows a sampler trials which stay the caller's.

    Adding 1,000 trials to a study copies each of them: 65 ms, four times what the sampler takes.
    """
    from optuna.storages import InMemoryStorage

    class Pool(InMemoryStorage):
        def __init__(self, trials: Sequence[FrozenTrial]) -> None:
            super().__init__()
            self._pooled = trials

        def get_all_trials(
            self, study_id: int, deepcopy: bool = True, states: Any = None
        ) -> list[FrozenTrial]:
            return [one for one in self._pooled if states is None or one.state in states]

    return Pool
