"""The stages of a sweep, and the decisions a strategy makes about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from autocl_sweeper.protocols import Search, Selection
from autocl_sweeper.types import History, Suggestion, Value
from autocl_sweeper.view import StageView

Work: TypeAlias = Callable[[Mapping[str, Value], str], float]
"""(parameters, task) -> how much work a job is."""


@dataclass(frozen=True)
class Stage:
    """The search on one task. `limit` bounds its suggestions, `most` its jobs; None: no bound.

    `parents`: a suggestion starts from survivors of the stage before as the search's pairing says
    (`beam`), from the initial model (`init`), or suggestion i from survivor i modulo their number
    (`population`, whose stages are the rounds of a task).
    Each suggestion runs `seeds` times with a parent; a group of these runs is begun whole or not at
    all. `survivors`: of this stage, where they are not as many as elsewhere.
    """

    number: int  # 1 is the first
    task: str
    search: Search
    limit: int | None = None
    most: int | None = None
    seeds: int = 1
    survivors: int | None = None
    parents: str = "beam"
    round: int = 0  # of a population, counted from 0 for each task
    passed: Mapping[str, Value] = field(default_factory=dict)  # override keys beside a suggestion's
    extra: int = 0  # starts beside those of the parents, which each suggestion runs with too

    @property
    def chained(self) -> bool:
        """Whether its trials start from those of the stage before."""
        return self.parents != "init"

    @property
    def pairing(self) -> Literal["every", "one"]:
        return self.search.pairing if self.parents == "beam" else "one"

    @property
    def groups(self) -> int | None:
        """Groups of runs that `most` allows."""
        return None if self.most is None else self.most // self.seeds

    @property
    def suggestions(self) -> int:
        """How many there are at most. A search without end needs a bound."""
        return min(n for n in (self.search.size, self.limit, self.groups) if n is not None)

    def jobs(self, parents: int) -> int | None:
        """Jobs with so many parents; None without a bound."""
        pairs = (parents if self.pairing == "every" else 1) + self.extra
        bounds = [n * pairs for n in (self.search.size, self.limit) if n is not None]
        groups = min((n for n in (*bounds, self.groups) if n is not None), default=None)
        return None if groups is None else groups * self.seeds


@dataclass(frozen=True)
class Start:
    """Run `suggestion` from `parent` (None: the initial model), for the `repeat`-th time from 0.

    extra: see `Trial`.
    """

    stage: Stage
    suggestion: Suggestion
    parent: int | None
    repeat: int = 0
    extra: int = 0


@dataclass(frozen=True)
class GiveUp:
    """End this trial, or forget its result: it cannot become part of the tree any more."""

    trial: int
    reason: str


@dataclass(frozen=True)
class Again:
    """Run this early-stopped trial again, to its end: its stage has no other result."""

    trial: int


@dataclass(frozen=True)
class Select:
    """The stage is over: `beam` survives, best first. It is empty when nothing may survive."""

    stage: Stage
    beam: tuple[int, ...]


@dataclass(frozen=True)
class Wait:
    """Nothing to start before a running trial ends."""


@dataclass(frozen=True)
class Done:
    """Every stage is over."""


Decision: TypeAlias = Start | GiveUp | Again | Select | Wait | Done


def views(
    stages: Sequence[Stage],
    history: History,
    selection: Selection,
    carried: Sequence[StageView] | None = (),
) -> list[StageView]:
    """A view of each stage, all of them empty until they are noted the trials of `history`.

    `carried`: stages of another sweep, which come before the first one; None: a stage sees none of
    the stages before it either.
    """
    found: list[StageView] = []
    for stage in stages:
        if carried is not None:
            earlier = (*carried, *found)
        else:  # but the rounds before, which are of the same search
            rounds = stage.parents == "population"
            earlier = tuple(view for view in found if rounds and view.task == stage.task)
        view = StageView(
            stage.number,
            stage.task,
            history,
            selection.loss,
            stage.jobs,
            earlier,
            has_parents=stage.chained,
        )
        found.append(view)
    return found
