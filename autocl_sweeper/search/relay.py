"""Search that hands on what earlier tasks learned: their winners first, then one model of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autocl_sweeper.distributions import Choice, Distribution, Space, same
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.ranks import mean_ranks, spearman
from autocl_sweeper.search import in_turn, next_index
from autocl_sweeper.search.cube import sobol
from autocl_sweeper.search.grid import combinations_of
from autocl_sweeper.search.pooled import Axes, Mirror, ask
from autocl_sweeper.search.random import places, uniform
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
        self._own: _Results | None = None  # of the stage that was asked for last
        self._earlier: Sequence[_Results] = ()  # of the stages before it

    def ask(self, stage: StageView) -> Suggestion | None:
        own = self._own
        if own is None or own.stage is not stage:
            own = self._own = self._results_of(stage)
            self._earlier = [self._results_of(earlier) for earlier in stage.earlier]
        for results in (*self._earlier, own):
            results.update()
        index = next_index(stage)
        parent = in_turn(stage, index)
        for opening in self._opening(stage, index)[index : index + 1]:
            if _key(opening.params) not in own.seen:
                begin = opening.source if opening.origin == "own" else parent
                return replace(opening, index=index, parent=begin)
        for params, origin in self._candidates(index, own):
            if _key(params) not in own.seen:
                return Suggestion(index, params, origin, parent=parent)
        return None

    def _results_of(self, stage: StageView) -> _Results:
        return _Results(stage, self._axes, f"{self._name}/{stage.sweep or ''}")

    def _opening(self, stage: StageView, index: int) -> list[Suggestion]:
        """What a stage begins with before it has results of its own."""
        most, left = self._rules.carried, stage.jobs_left
        if index > most:
            return []
        begin: dict[str, Suggestion] = {}
        initial = self._space.initial
        if initial is not None and (stage.number == 1 or not stage.earlier):
            begin[_key(initial)] = Suggestion(0, initial, "init")
        if left is not None:
            most = min(most, max(1, (len(stage.trials) + left) // 2))
        for one in self._carried(stage)[:most]:
            begin.setdefault(_key(one.params), one)
        return [*begin.values()]

    def _carried(self, stage: StageView) -> list[Suggestion]:
        """The parents' own configurations, then winners of earlier stages; equal ones once."""
        if not stage.earlier:
            return []
        homes: list[tuple[Origin, StageView, TrialView]] = [
            *(("own", stage.earlier[-1], parent) for parent in stage.parents),
            *(("carried", home, winner) for home, winner in self._ranked_winners()),
        ]
        found: dict[str, Suggestion] = {}
        for origin, home, trial in homes:
            taken = self._axes.taken(trial.params)
            if (key := _key(taken)) in found:
                continue
            place = places(f"{self._name}/{home.sweep or ''}/{trial.number}")
            params = self._space.params(self._axes.completed(taken, place))
            before = {name.lstrip("+"): value for name, value in trial.params.items()}
            bare = {name.lstrip("+"): value for name, value in params.items()}
            if kept := sum(n in before and same(before[n], value) for n, value in bare.items()):
                carried = Carried(home.task, kept, home.sweep)
                found[key] = Suggestion(0, params, origin, trial.number, carried=carried)
        return [*found.values()]

    def _ranked_winners(self) -> list[tuple[StageView, TrialView]]:
        """The best of earlier stages; those that won often, early or lately, come first."""
        weights: dict[str, float] = {}
        latest: dict[str, tuple[StageView, TrialView]] = {}
        for age, results in enumerate(reversed(self._earlier), start=1):
            best = sorted((one.loss, one.number) for one, _ in results.complete)
            views = {trial.number: trial for trial in results.stage.trials}
            ranks: dict[str, int] = {}
            for rank, (_, number) in enumerate(best[: self._rules.winners], start=1):
                key = _key(self._axes.taken(views[number].params))
                ranks.setdefault(key, rank)  # a configuration with two parents: the better rank
                latest.setdefault(key, (results.stage, views[number]))
            for key, rank in ranks.items():
                weights[key] = weights.get(key, 0.0) + self._rules.decay**age / rank
        return [latest[key] for key in sorted(weights, key=lambda key: -weights[key])]

    def _candidates(self, index: int, own: _Results) -> Iterator[tuple[Params, Origin]]:
        """What may come at this index, best first; the first that was not there before does."""
        rules, name = self._rules, f"{self._name}/{index}"
        fresh = math.floor((index + 1) * rules.fresh) > math.floor(index * rules.fresh)
        recent = self._earlier[-rules.memory :] if rules.memory else ()
        stages = [*(results for results in recent if self._agrees(results, own)), own]
        learned = [one for results in stages for one in results.ranked]
        if len(learned) < rules.startup:
            yield self._space.draw(_sobol(self._space, self._name, index)), "fresh"
        elif not fresh:
            point = self._axes.from_optuna(self._asked(learned, _seed(name)))
            yield self._space.params(point), "model"
            for turn in range(NEIGHBOURS):
                yield self._space.params(self._neighbour(point, turn, f"{name}/{turn}")), "model"
        for turn in range(DRAWS):
            yield self._space.draw(places(f"{name}/fresh/{turn}")), "fresh"
        if self._combinations is not None:
            start = int(uniform(name) * self._combinations.size)
            for step in range(self._combinations.size):
                place = (start + step) % self._combinations.size
                yield self._combinations.at(place), "fresh"

    def _asked(self, learned: Sequence[tuple[_Result, float]], seed: int) -> dict[str, Any]:
        """What TPE suggests after these results, the oldest first, with these values."""
        from optuna.samplers import TPESampler

        for one, share in learned:
            one.frozen.value = share
        # All four are written out: their defaults differ between versions of Optuna.
        sampler = TPESampler(
            multivariate=True,
            constant_liar=False,
            n_startup_trials=self._rules.startup,
            seed=seed,
        )
        return ask([one.frozen for one, _ in learned], sampler, self._axes.distributions)

    def _neighbour(self, point: Params, turn: int, name: str) -> dict[str, Value]:
        """The point with some axes drawn anew: one at first, all of them at last."""
        count = 1 + turn * len(self._space) // NEIGHBOURS
        moved = sorted(self._space, key=lambda axis: uniform(f"{name}/{axis}/turn"))[:count]
        place = places(name)
        return {**point, **{axis: self._space[axis].at(place(axis)) for axis in moved}}

    def _agrees(self, earlier: _Results, own: _Results) -> bool:
        """Whether what an earlier stage found still holds here, as far as one can tell."""
        here = own.complete
        if not earlier.complete or len(here) < self._rules.guard_from:
            return True
        predicted = earlier.predictions([one for one, _ in here], self._rules.bandwidth)
        correlation = spearman(predicted, [share for _, share in here])
        # 1 / sqrt(n - 1) is its standard error where neither says anything of the other. Suggestions soon
        # lie close together, where noise hides that stages agree: only a contradiction counts.
        return correlation * math.sqrt(len(here) - 1) >= -self._rules.guard


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


class _Results:
    """What happened in one stage, in this search's space; follows the changes of its view."""

    def __init__(self, stage: StageView, axes: Axes, name: str) -> None:
        self.stage = stage
        self._axes = axes
        self._name = name
        self._mirror = Mirror(stage, self._row)
        self._revision = -1
        self._predicted: dict[int, float] = {}  # of another stage's trials, from this one's results
        self.seen: set[str] = set()
        self.ranked: list[tuple[_Result, float]] = []  # by number, with rank / n

    def update(self) -> None:
        if self._revision == self.stage.revision:
            return
        self._revision = self.stage.revision
        self._predicted.clear()
        rows = self._mirror.rows()
        self.seen = {key for key, _ in rows}
        results = _means([result for _, result in rows if result is not None])
        ranks = mean_ranks([one.order for one in results])
        self.ranked = [(one, rank / len(ranks)) for one, rank in zip(results, ranks, strict=True)]

    def _row(self, trial: TrialView) -> tuple[str, _Result | None]:
        from optuna.trial import create_trial

        key, loss = _key(trial.params), trial.loss
        if loss is None or math.isnan(loss) or trial.state not in (State.COMPLETE, State.PRUNED):
            return key, None
        stopped_at = None
        if trial.state is State.PRUNED:
            stopped_at = max((step for step, _ in trial.reports), default=0)
        place = places(f"{self._name}/{trial.number}")
        point = self._axes.completed(self._axes.taken(trial.params), place)
        told, distributions = self._axes.to_optuna(point), self._axes.distributions
        frozen = create_trial(params=told, distributions=distributions, value=0.0)
        run = trial.suggestion.index, trial.parent, trial.extra
        coordinates = self._axes.coordinates(point)
        return key, _Result(trial.number, run, loss, stopped_at, coordinates, frozen)

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


def _seed(name: str) -> int:
    """A seed as Optuna and NumPy take it: 32 bits."""
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**32


def _sobol(space: Space, name: str, index: int) -> Any:
    """The scrambled Sobol point at an index, as axis -> place."""
    if not space:
        return {}.__getitem__
    sequence = sobol(len(space), _seed(name))
    if index:
        sequence.fast_forward(index)
    return dict(zip(space, sequence.random(1)[0].tolist(), strict=True)).__getitem__
