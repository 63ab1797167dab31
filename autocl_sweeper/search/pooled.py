"""Trials of several stages in one model: Optuna's multivariate TPE over one stage's space.

TPE models together only what all of its trials have, in the same range: a trial without a key, or with
another range, silently takes that key out. So every trial is entered with this stage's distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from autocl_sweeper.distributions import Choice, Distribution, Space
from autocl_sweeper.types import Value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Point = Mapping[str, Value]


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
        places: list[float] = []
        for (axis, distribution), categorical in zip(
            self.space.items(), self.categorical, strict=True
        ):
            if categorical:
                places.append(float(_rank(distribution, point[axis])))
            else:
                place = distribution.position(point[axis])
                assert place is not None
                places.append(place)
        return places

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every axis."""
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
            axis: _rank(one, point[axis]) if isinstance(one, Choice) else point[axis]
            for axis, one in self.space.items()
        }

    def from_optuna(self, params: Mapping[str, Any]) -> dict[str, Value]:
        return {
            axis: one.ranked[params[axis]] if isinstance(one, Choice) else params[axis]
            for axis, one in self.space.items()
        }


def nearest(distribution: Distribution, value: Value) -> list[Value]:
    """The value of a distribution that is nearest to another sweep's or stage's; empty: none is."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(distribution, Choice):
        place = distribution.place(value)
        if place is not None:
            return [distribution.ranked[place]]
        if not number or not distribution.ordered:
            return []
        return [min(distribution.ranked, key=lambda one: abs(one - value))]  # type: ignore[operator]
    if not number:
        return []
    inside = min(max(value, distribution.low), distribution.high)  # type: ignore[type-var]
    return [round(inside) if distribution.integer else float(inside)]  # type: ignore[arg-type]


def _rank(distribution: Distribution, value: Value) -> int:
    assert isinstance(distribution, Choice)
    place = distribution.place(value)
    assert place is not None
    return place


def frozen(params: dict[str, Any], distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    """A finished trial for `ask_tpe`, which gives it number and value."""
    from optuna.trial import create_trial

    return create_trial(params=params, distributions=distributions, value=0.0)


def ask_tpe(
    trials: Sequence[FrozenTrial],
    values: Sequence[float],
    distributions: dict[str, BaseDistribution],
    startup: int,
    seed: int,
) -> dict[str, Any]:
    """What TPE suggests after these trials, the oldest first, with these values, lower better."""
    import optuna

    for number, (trial, value) in enumerate(zip(trials, values, strict=True)):
        trial.number, trial.value = number, value
    # All four are written out: their defaults differ between versions of Optuna.
    sampler = optuna.samplers.TPESampler(
        multivariate=True, constant_liar=False, n_startup_trials=startup, seed=seed
    )
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce a study
    try:
        study = optuna.create_study(storage=_pool_class()(trials), sampler=sampler)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return dict(study.ask(distributions).params)


@cache
def _pool_class() -> Any:
    """A storage that shows a sampler trials which stay the caller's.

    Adding 1,000 trials to a study copies each of them: 65 ms, four times what the sampler takes.
    """
    from optuna.storages import InMemoryStorage
    from optuna.trial import TrialState

    class Pool(InMemoryStorage):
        def __init__(self, trials: Sequence[FrozenTrial]) -> None:
            super().__init__()
            self._pooled = trials

        def get_all_trials(
            self, study_id: int, deepcopy: bool = True, states: Any = None
        ) -> list[FrozenTrial]:
            complete = states is None or TrialState.COMPLETE in states
            return list(self._pooled) if complete else []

    return Pool
