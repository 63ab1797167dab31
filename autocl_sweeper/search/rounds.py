"""A search in rounds: a population is suggested, its losses are told, then comes the next one.

The population moves through a cube and knows nothing of stages: `Population` is the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search import in_turn, next_index
from autocl_sweeper.search.cube import Cube, Point, seed_of
from autocl_sweeper.search.grid import size_of
from autocl_sweeper.search.random import uniform, unseen
from autocl_sweeper.types import Later, Origin, State, Suggestion, Value
from autocl_sweeper.view import StageView

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


Make: TypeAlias = Callable[..., Population]
"""(centre, size, seed, begin=whether the centre is the first point) -> a population."""


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
        cube: Cube,
        make: Make,
        popsize: int,
        seed: int,
        stage_name: str,
        rounds_are_stages: bool = False,
    ) -> None:
        self.size = size_of(cube.space)
        self.popsize = popsize
        self._space = cube.space
        self._cube = cube
        self._make = make
        self._name = f"{seed}/{stage_name}"
        self._rounds_are_stages = rounds_are_stages
        self._told: list[list[_Result]] = []  # what the population knows
        self._population: Population | None = None
        self._asked: list[_Member] | None = None  # the round after it; None: not worked out yet
        self._points: list[Point] = []  # as the population gave them for that round

    def ask(self, stage: StageView) -> Suggestion | Later | None:
        index = next_index(stage)
        number, place = divmod(index, self.popsize)
        if self._rounds_are_stages:
            if number:  # a stage is one round
                return None
            finished = [_results(view, self.popsize) for view in _rounds_before(stage)]
        else:
            begun = number * self.popsize
            if any(t.state is State.RUNNING and t.suggestion.index < begun for t in stage.trials):
                return Later()
            results = _results(stage, begun)
            finished = [results[i : i + self.popsize] for i in range(0, begun, self.popsize)]
        members = self._round(finished)
        if place >= len(members):
            return None
        member = members[place]
        return Suggestion(index, member.params, member.origin, parent=in_turn(stage, index))

    def _round(self, finished: list[list[_Result]]) -> list[_Member]:
        """The suggestions after these rounds, which are told where they are not known yet."""
        if self._population is None or self._told != finished[: len(self._told)]:
            start = None if self._space.initial is None else self._cube.point(self._space.initial)
            centre = (0.0,) * self._cube.dimensions if start is None else start
            seed, begin = seed_of(self._name), start is not None
            self._population = self._make(centre, self.popsize, seed, begin=begin)
            self._told, self._asked = [], None
        while len(self._told) < len(finished):
            results = finished[len(self._told)]
            members = self._members(self._population)
            self._population.tell(*self._outcome(members, results))
            self._told.append(results)
            self._asked = None
        return self._members(self._population)

    def _members(self, population: Population) -> list[_Member]:
        if self._asked is None:
            before = [] if self._rounds_are_stages else self._told
            seen = {repr(params) for results in before for params, _ in results}
            number = len(self._told)
            self._asked, self._points = [], population.ask() or []
            for place, point in enumerate(self._points):
                member: _Member | None
                if number == place == 0 and self._space.initial is not None:
                    member = _Member(point, self._space.initial, "init")  # not rounded
                else:
                    member = self._member(f"{self._name}/{number}/{place}", point, seen)
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


def _results(stage: StageView, count: int) -> list[_Result]:
    """What became of the first suggestions; the mean loss of one that ran repeatedly."""
    params: dict[int, dict[str, Value]] = {}
    losses: dict[int, list[float]] = {}
    for trial in stage.trials:
        index = trial.suggestion.index
        params.setdefault(index, dict(trial.params))
        if trial.state is State.COMPLETE and trial.loss is not None:
            losses.setdefault(index, []).append(trial.loss)
    return [
        (params.get(i), sum(losses[i]) / len(losses[i]) if i in losses else None)
        for i in range(count)
    ]


def check_popsize(popsize: int | None, search: str, least: int) -> int:
    """The size of a population, 5 by default. Raises ConfigurationError for one that is too small."""
    size = POPSIZE if popsize is None else popsize
    if size < least:
        raise ConfigurationError(
            f"hydra.sweeper.popsize={size}, but the search '{search}' needs a population of at least"
            f" {least}.\n  Set hydra.sweeper.popsize={least} or more; null stands for {POPSIZE}."
        )
    return size
