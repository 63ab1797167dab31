"""A search in rounds: a population is suggested, its losses are told, then comes the next one.

The population moves through a cube and knows nothing of stages: `Population` is the whole of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias

from autocl_sweeper.distributions import Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search import in_turn, next_index
from autocl_sweeper.search.cube import Cube, Point, seed_of
from autocl_sweeper.search.random import uniform
from autocl_sweeper.search.unseen import size_of, unseen
from autocl_sweeper.types import Later, Origin, State, Suggestion, Value
from autocl_sweeper.view import StageView, TrialView

POPSIZE = 5  # AutoDL Finetuner's
STEPS_ASIDE = 64  # tries of a point beside one that was there before


class Population(Protocol):
    """Points of [-1, 1]^n in rounds. Same seed and same losses, same points."""

    def ask(self) -> list[Point] | None:
        """The points of the next round; None: the search is over."""
        ...

    def tell(self, points: Sequence[Point], losses: Sequence[float | None]) -> None:
        """How the round went; None: a failed trial. `points` as they were tried."""
        ...


Make: TypeAlias = Callable[[int], Population]
"""A population, not begun yet, from a seed."""


@dataclass(frozen=True)
class _Member:
    """A suggestion of a round: what is tried, and the point it came from."""

    point: Point
    params: dict[str, Value]
    origin: Origin


# What became of a suggestion: its parameters and its loss. None: it never ran, or has no loss.
_Result: TypeAlias = "tuple[dict[str, Value] | None, float | None]"


class RoundsSearch:
    """Suggestions of a population, each with one parent; the parents in turn, the best first.

    A suggestion of the next round waits until all trials of this one have ended. The first point
    of the first round is the app's own configuration, where it lies in the space. A point whose
    parameters ran before in the stage takes a step aside.

    With `rounds_are_stages` the stages of the same task just before this one are the rounds before.
    Their trials are trained for different lengths, so losses of different rounds are never
    compared: the population gets each trial's rank in its own round instead.
    """

    pairing: ClassVar[Literal["every", "one"]] = "one"

    def __init__(
        self,
        space: Space,
        cube: Cube,
        make: Make,
        popsize: int,
        seed: int,
        stage_name: str,
        rounds_are_stages: bool = False,
    ) -> None:
        self.size = size_of(space)
        self.popsize = popsize
        self._space = space
        self._cube = cube
        self._make = make
        self._seed = seed
        self._name = stage_name
        self._rounds_are_stages = rounds_are_stages
        self._told: list[list[_Result]] = []  # what the population knows
        self._population: Population | None = None
        self._asked: list[_Member] | None = None  # the round after it; None: not worked out yet
        self._points: list[Point] = []  # as the population gave them for that round

    def ask(self, stage: StageView) -> Suggestion | Later | None:
        index = next_index(stage)
        number, place = divmod(index, self.popsize)
        if self._rounds_are_stages:
            finished = [_results(view, 0, self.popsize) for view in _rounds_before(stage)]
            before: list[list[_Result]] = []
            if number:  # a stage is one round
                return None
        else:
            by_index = _by_index(stage)
            if any(_runs(by_index.get(i, ())) for i in range(number * self.popsize)):
                return Later()
            finished = before = [
                _results(stage, first, self.popsize, by_index)
                for first in range(0, number * self.popsize, self.popsize)
            ]
        seen = {repr(params) for results in before for params, _ in results}
        members = self._round(f"{self._seed}/{self._name}", finished, seen)
        if place >= len(members):
            return None
        member = members[place]
        return Suggestion(index, member.params, member.origin, parent=in_turn(stage, index))

    def _round(self, name: str, finished: list[list[_Result]], seen: set[str]) -> list[_Member]:
        """The suggestions after these rounds, which are told where they are not known yet."""
        if self._population is None or self._told != finished[: len(self._told)]:
            self._population, self._told, self._asked = self._make(seed_of(name)), [], None
        for number in range(len(self._told), len(finished)):
            tried = {repr(params) for results in finished[:number] for params, _ in results}
            members = self._members(name, number, set() if self._rounds_are_stages else tried)
            self._population.tell(*self._outcome(members, finished[number]))
            self._told.append(finished[number])
            self._asked = None
        return self._members(name, len(finished), seen)

    def _members(self, name: str, number: int, seen: set[str]) -> list[_Member]:
        if self._asked is None:
            assert self._population is not None
            self._asked, self._points = [], self._population.ask() or []
            for place, point in enumerate(self._points):
                member: _Member | None
                if number == place == 0 and self._space.initial is not None:
                    member = _Member(point, self._space.initial, "init")  # not rounded
                else:
                    member = self._member(f"{name}/{number}/{place}", point, seen)
                if member is None:
                    break
                seen.add(repr(member.params))
                self._asked.append(member)
        return self._asked

    def _member(self, name: str, point: Point, seen: set[str]) -> _Member | None:
        """A point that was not there before: itself, one beside it, or any; None: none is left."""
        moved = point
        for step in range(STEPS_ASIDE):
            params = self._cube.params(moved)
            if repr(params) not in seen:
                return _Member(moved, params, "model")
            reach = (step + 1) / STEPS_ASIDE
            moved = tuple(
                min(max(u + reach * (2 * uniform(f"{name}/{step}/{axis}") - 1), -1.0), 1.0)
                for axis, u in enumerate(point)
            )
        fresh = unseen(self._space, seen, name)
        if fresh is None:
            return None
        place = self._cube.point(fresh)
        assert place is not None
        return _Member(place, fresh, "fresh")

    def _outcome(
        self, members: Sequence[_Member], results: Sequence[_Result]
    ) -> tuple[list[Point], list[float | None]]:
        """The points of a round and their losses, as the population is told them."""
        points = [*self._points]  # where the space had no more suggestions nothing ran
        losses: list[float | None] = [None] * len(points)
        for place, (member, (params, loss)) in enumerate(zip(members, results, strict=False)):
            point: Point | None = member.point
            if params is not None and params != member.params:  # the journal knows what ran
                point = self._cube.point(params)
            if point is not None:
                points[place], losses[place] = point, loss
        if self._rounds_are_stages:
            order = sorted({loss for loss in losses if loss is not None})
            losses = [None if loss is None else float(order.index(loss)) for loss in losses]
        return points, losses


def _rounds_before(stage: StageView) -> list[StageView]:
    """The stages of the same task just before this one, oldest first; none of another sweep."""
    rounds: list[StageView] = []
    for view in reversed(stage.earlier):
        if view.task != stage.task or view.number != stage.number - len(rounds) - 1:
            break
        rounds.append(view)
    return rounds[::-1]


def _by_index(stage: StageView) -> dict[int, list[TrialView]]:
    found: defaultdict[int, list[TrialView]] = defaultdict(list)
    for trial in stage.trials:
        found[trial.suggestion.index].append(trial)
    return found


def _runs(trials: Sequence[TrialView]) -> bool:
    return any(trial.state is State.RUNNING for trial in trials)


def _results(
    stage: StageView, first: int, count: int, by_index: dict[int, list[TrialView]] | None = None
) -> list[_Result]:
    """What became of the suggestions from `first` on; the mean loss of one that ran repeatedly."""
    trials_of = _by_index(stage) if by_index is None else by_index
    results: list[_Result] = []
    for index in range(first, first + count):
        trials = trials_of.get(index, [])
        losses = [
            one.loss for one in trials if one.state is State.COMPLETE and one.loss is not None
        ]
        params = dict(trials[0].params) if trials else None
        results.append((params, sum(losses) / len(losses) if losses else None))
    return results


def check_popsize(popsize: int | None, search: str, least: int) -> int:
    """The size of a population, 5 by default. Raises ConfigurationError for one that is too small."""
    size = POPSIZE if popsize is None else popsize
    if size < least:
        raise ConfigurationError(
            f"hydra.sweeper.popsize={size}, but the search '{search}' needs a population of at least"
            f" {least}.\n  Set hydra.sweeper.popsize={least} or more; null stands for {POPSIZE}."
        )
    return size
