"""Search that hands on what earlier tasks learned: their winners first, then one model of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autocl_sweeper.distributions import Choice, Distribution, Space, same
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.ranks import mean_ranks, spearman
from autocl_sweeper.search import next_index
from autocl_sweeper.search.grid import combinations_of
from autocl_sweeper.search.pooled import Axes, ask_tpe, frozen
from autocl_sweeper.search.random import uniform
from autocl_sweeper.types import Carried, Origin, State, Suggestion, Value
from autocl_sweeper.view import StageView, TrialView

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Params = Mapping[str, Value]

DRAWS = 100  # in a row that were there before; then a space without intervals is listed
NEIGHBOURS = 32  # of a suggestion of the model that was there before


@dataclass(frozen=True)
class Rules:
    """The constants of the search, as docs/searches.md explains them."""

    startup: int = 8
    fresh: float = 0.125
    carried: int = 8
    winners: int = 3
    decay: float = 0.9
    memory: int = 4
    guard: float = 1.0
    guard_from: int = 4
    bandwidth: float = 0.03125

    def __post_init__(self) -> None:
        for name in ("startup", "carried", "winners", "memory", "guard_from"):
            least = 0 if name in ("carried", "memory") else 1
            self._check(name, getattr(self, name) >= least, f"at least {least}")
        self._check("fresh", 0 <= self.fresh <= 1, "a share, from 0 to 1")
        self._check("decay", 0 < self.decay <= 1, "above 0 and at most 1")
        self._check("guard", self.guard >= 0, "at least 0 (standard errors)")
        self._check("bandwidth", self.bandwidth > 0, "above 0")

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigurationError(
                f"hydra.sweeper.search.{name}={getattr(self, name)}, but it must be {rule}.\n"
                "  docs/searches.md (`autocl docs`) explains the constants of relay."
            )


class RelaySearch:
    """Each suggestion runs from one parent; parents take turns, best first.

    A stage begins with what its parents had themselves, each with its parent, then with winners of
    earlier stages. The rest comes from TPE on the results of this stage and of those before that
    do not contradict it. A stage without earlier ones begins with the app's own configuration and Sobol
    points. `size` is the number of suggestions, or None with an interval of floats.
    """

    pairing: ClassVar[Literal["every", "one"]] = "one"

    def __init__(self, space: Space, seed: int, stage_name: str, **rules: Any) -> None:
        """`rules`: fields of `Rules`. Raises ConfigurationError."""
        try:
            self._rules = Rules(**rules)
        except TypeError as error:
            known = ", ".join(Rules.__dataclass_fields__)
            raise ConfigurationError(
                f"hydra.sweeper.search: relay does not know all of {sorted(rules)}.\n"
                f"  Its constants are: {known} (docs/searches.md)."
            ) from error
        self._space = _with_single_values_listed(space)
        self._axes = Axes(self._space)
        self._name = f"{seed}/{stage_name}"
        self._combinations = combinations_of(self._space)
        self.size = None if self._combinations is None else self._combinations.size
        self._mirrored: list[_Relayed] = []  # the stage that was asked for last

    def ask(self, stage: StageView) -> Suggestion | None:
        if not self._mirrored or self._mirrored[0].stage is not stage:
            self._mirrored[:] = [_Relayed(stage, self._axes, self._rules, self._name)]
        relayed = self._mirrored[0]
        relayed.update()
        index, seen = next_index(stage), relayed.seen
        parents = [parent.number for parent in stage.parents]
        parent = parents[index % len(parents)] if parents else None
        for opening in self._opening(relayed)[index : index + 1]:
            if _key(opening.params) not in seen:
                own = opening.origin == "own"
                return Suggestion(
                    index,
                    opening.params,
                    opening.origin,
                    opening.source,
                    opening.source if own else parent,
                    opening.carried,
                )
        for params, origin in self._candidates(index, relayed):
            if _key(params) not in seen:
                return Suggestion(index, params, origin, parent=parent)
        return None

    def _opening(self, relayed: _Relayed) -> Sequence[Suggestion]:
        """What a stage begins with before it has results of its own."""
        stage = relayed.stage
        started, left = len(stage.trials), stage.jobs_left
        jobs = None if left is None else started + left
        if relayed.opening is None or relayed.opening[0] != jobs:
            begin: dict[str, Suggestion] = {}
            if self._space.initial is not None and (stage.number == 1 or not stage.earlier):
                begin[_key(self._space.initial)] = Suggestion(0, self._space.initial, "init")
            most = self._rules.carried
            if jobs is not None:
                most = min(most, max(1, jobs // 2))
            for one in self._carried(relayed, most):
                begin.setdefault(_key(one.params), one)
            relayed.opening = jobs, list(begin.values())
        return relayed.opening[1]

    def _carried(self, relayed: _Relayed, most: int) -> Sequence[Suggestion]:
        """The parents' own configurations, then winners of earlier stages; equal ones once."""
        found: dict[str, Suggestion] = {}
        if not relayed.earlier:
            return []
        for parent in relayed.stage.parents:
            home = relayed.earlier[-1].stage
            self._carry(found, "own", home, parent)
        for home, winner in relayed.ranked_winners():
            self._carry(found, "carried", home, winner)
        return [*found.values()][:most]

    def _carry(
        self, found: dict[str, Suggestion], origin: Origin, home: StageView, trial: TrialView
    ) -> None:
        taken = self._axes.taken(trial.params)
        key = _key(taken)
        if key in found:
            return
        place = partial(_place, f"{self._name}/{home.sweep or ''}/{trial.number}")
        params = self._space.params(self._axes.completed(taken, place))
        before = {name.lstrip("+"): value for name, value in trial.params.items()}
        kept = sum(
            name.lstrip("+") in before and same(before[name.lstrip("+")], value)
            for name, value in params.items()
        )
        if kept:
            carried = Carried(home.task, kept, home.sweep)
            found[key] = Suggestion(0, params, origin, trial.number, carried=carried)

    def _candidates(self, index: int, relayed: _Relayed) -> Iterator[tuple[Params, Origin]]:
        """What may come at this index, best first; the first that was not there before does."""
        rules, name = self._rules, f"{self._name}/{index}"
        fresh = math.floor((index + 1) * rules.fresh) > math.floor(index * rules.fresh)
        results = relayed.results()
        if len(results) < rules.startup:
            yield self._space.draw(_sobol(self._space, self._name, index)), "fresh"
        elif not fresh:
            trials = [trial for trial, _ in results]
            values = [value for _, value in results]
            distributions = relayed.distributions
            asked = ask_tpe(trials, values, distributions, rules.startup, _seed(name))
            point = self._axes.from_optuna(asked)
            yield self._space.params(point), "model"
            for turn in range(NEIGHBOURS):
                yield self._space.params(self._neighbour(point, turn, f"{name}/{turn}")), "model"
        for turn in range(DRAWS):
            yield self._space.draw(partial(_place, f"{name}/fresh/{turn}")), "fresh"
        if self._combinations is not None:
            start = int(uniform(name) * self._combinations.size)
            for step in range(self._combinations.size):
                place = (start + step) % self._combinations.size
                yield self._combinations.at(place), "fresh"

    def _neighbour(self, point: Params, turn: int, name: str) -> dict[str, Value]:
        """The point with some axes drawn anew: one at first, all of them at last."""
        count = 1 + turn * len(self._space) // NEIGHBOURS
        moved = sorted(self._space, key=lambda axis: uniform(f"{name}/{axis}/turn"))[:count]
        drawn = {axis: self._space[axis].at(_place(name, axis)) for axis in moved}
        return {**point, **drawn}


@dataclass
class _Result:
    """A trial with a score as the model and the guard see it."""

    number: int
    run: tuple[int, int | None, int]  # suggestion, parent, extra: repeats have the same
    loss: float
    stopped_at: int | None  # the last step that an early-stopped trial reported; None: complete
    coordinates: list[float]
    frozen: FrozenTrial

    @property
    def order(self) -> tuple[float, ...]:
        """Complete ones first, then those that came further, then the better ones."""
        stopped = self.stopped_at
        return (0, 0, self.loss) if stopped is None else (1, -stopped, self.loss)


class _Mirror:
    """What happened in one stage, in this search's space; follows the changes of its view."""

    def __init__(self, stage: StageView, axes: Axes, distributions: Any, name: str) -> None:
        self.stage = stage
        self._axes = axes
        self._distributions = distributions
        self._name = f"{name}/{stage.sweep or ''}"
        self._revision = 0
        self._keys: dict[int, str] = {}
        self._results: dict[int, _Result] = {}
        self._predicted: dict[int, float] = {}  # of another stage's trials, from this one's results
        self.ranked: Sequence[tuple[_Result, float]] = []  # by number, with rank / n

    def update(self) -> None:
        if self._revision == self.stage.revision:
            return
        for trial in self.stage.changed(self._revision):
            self._note(trial)
        if len(self._keys) != len(self.stage.trials):  # one was given up
            self._keys, self._results = {}, {}
            for trial in self.stage.trials:
                self._note(trial)
        self._revision = self.stage.revision
        self._predicted.clear()
        results = _means(sorted(self._results.values(), key=lambda one: one.number))
        shares = [rank / len(results) for rank in mean_ranks([one.order for one in results])]
        self.ranked = [*zip(results, shares, strict=True)]

    def _note(self, trial: TrialView) -> None:
        number, loss = trial.number, trial.loss
        if number not in self._keys:
            self._keys[number] = _key(trial.params)
        if loss is None or math.isnan(loss) or trial.state not in (State.COMPLETE, State.PRUNED):
            self._results.pop(number, None)
            return
        stopped_at = None
        if trial.state is State.PRUNED:
            stopped_at = max((step for step, _ in trial.reports), default=0)
        place = partial(_place, f"{self._name}/{number}")
        point = self._axes.completed(self._axes.taken(trial.params), place)
        told = frozen(self._axes.to_optuna(point), self._distributions)
        run = trial.suggestion.index, trial.parent, trial.extra
        coordinates = self._axes.coordinates(point)
        self._results[number] = _Result(number, run, loss, stopped_at, coordinates, told)

    @property
    def seen(self) -> set[str]:
        return set(self._keys.values())

    @property
    def complete(self) -> list[tuple[_Result, float]]:
        return [(one, share) for one, share in self.ranked if one.stopped_at is None]

    def predictions(self, others: Sequence[_Result], bandwidth: float) -> list[float]:
        """The mean rank that results near each of `others` had; each is worked out once."""
        import numpy as np

        missing = [one for one in others if one.number not in self._predicted]
        if missing:
            known = np.array([one.coordinates for one, _ in self.complete])
            shares = np.array([share for _, share in self.complete])
            categorical = np.array(self._axes.categorical)
            for one in missing:
                apart = known - np.array(one.coordinates)
                apart[:, categorical] = apart[:, categorical] != 0
                weights = np.exp(-(apart**2).sum(axis=1) / (bandwidth * known.shape[1]))
                self._predicted[one.number] = float(weights @ shares / weights.sum())
        return [self._predicted[one.number] for one in others]


@dataclass
class _Relayed:
    """A stage and those before it as its search uses them."""

    stage: StageView
    axes: Axes
    rules: Rules
    name: str
    opening: tuple[int | None, Sequence[Suggestion]] | None = None  # with how many jobs, and it
    distributions: Any = field(init=False)

    def __post_init__(self) -> None:
        self.distributions = self.axes.distributions()
        self._own = self._mirror(self.stage)
        self.earlier = [self._mirror(stage) for stage in self.stage.earlier]

    def _mirror(self, stage: StageView) -> _Mirror:
        return _Mirror(stage, self.axes, self.distributions, self.name)

    def update(self) -> None:
        for mirror in (*self.earlier, self._own):
            mirror.update()

    @property
    def seen(self) -> set[str]:
        return self._own.seen

    def results(self) -> list[tuple[FrozenTrial, float]]:
        """What the model learns from, oldest first: trial and rank / n in its stage."""
        recent = self.earlier[-self.rules.memory :] if self.rules.memory else []
        stages = [*(mirror for mirror in recent if self._agrees(mirror)), self._own]
        return [(one.frozen, share) for mirror in stages for one, share in mirror.ranked]

    def _agrees(self, earlier: _Mirror) -> bool:
        """Whether what an earlier stage found still holds here, as far as one can tell."""
        own = self._own.complete
        if not earlier.complete or len(own) < self.rules.guard_from:
            return True
        predicted = earlier.predictions([one for one, _ in own], self.rules.bandwidth)
        correlation = spearman(predicted, [share for _, share in own])
        # 1 / sqrt(n - 1) is its standard error where neither says anything of the other. Suggestions soon
        # lie close together, where noise hides that stages agree: only a contradiction counts.
        return correlation * math.sqrt(len(own) - 1) >= -self.rules.guard

    def ranked_winners(self) -> list[tuple[StageView, TrialView]]:
        """The best of earlier stages; those that won often, early or lately, come first."""
        weights: dict[str, float] = {}
        latest: dict[str, tuple[StageView, TrialView]] = {}
        for age, mirror in enumerate(reversed(self.earlier), start=1):
            best = sorted((one.loss, one.number) for one, _ in mirror.complete)
            views = {trial.number: trial for trial in mirror.stage.trials}
            ranks: dict[str, int] = {}
            for rank, (_, number) in enumerate(best[: self.rules.winners], start=1):
                key = _key(self.axes.taken(views[number].params))
                ranks.setdefault(key, rank)  # a configuration with two parents: the better rank
                latest.setdefault(key, (mirror.stage, views[number]))
            for key, rank in ranks.items():
                weights[key] = weights.get(key, 0.0) + self.rules.decay**age / rank
        order = sorted(weights, key=lambda key: -weights[key])
        return [latest[key] for key in order]


def _means(results: Sequence[_Result]) -> list[_Result]:
    """One result for the repeats of a suggestion, with their mean loss."""
    runs: dict[tuple[Any, ...], list[_Result]] = {}
    for one in results:
        runs.setdefault((one.run, one.stopped_at), []).append(one)
    if len(runs) == len(results):
        return [*results]
    return [
        replace(repeats[0], loss=sum(one.loss for one in repeats) / len(repeats))
        for repeats in runs.values()
    ]


def _with_single_values_listed(space: Space) -> Space:
    """An interval of one number is a choice of one value: then a space may be finite."""
    axes: dict[str, Distribution] = {}
    for axis, one in space.items():
        single = not isinstance(one, Choice) and one.low == one.high
        axes[axis] = Choice((one.at(0.5),)) if single else one
    return Space(axes, space.when, space.zips, space.init)


def _key(params: Params) -> str:
    return repr(sorted(params.items()))


def _place(name: str, axis: str) -> float:
    return uniform(f"{name}/{axis}")


def _seed(name: str) -> int:
    """A seed as Optuna and NumPy take it: 32 bits."""
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**32


def _sobol(space: Space, name: str, index: int) -> Any:
    """The scrambled Sobol point at an index, as axis -> place."""
    if not space:
        return {}.__getitem__
    import numpy as np
    from scipy.stats import qmc

    # `seed` has another name in newer SciPys; a generator is taken by position in none of them.
    sequence = qmc.Sobol(len(space), scramble=True, seed=np.random.default_rng(_seed(name)))
    if index:
        sequence.fast_forward(index)
    places = dict(zip(space, sequence.random(1)[0].tolist(), strict=True))
    return places.__getitem__
