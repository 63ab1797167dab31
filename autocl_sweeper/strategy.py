"""The sequential top-k strategy of AutoCL: what a sweep does next, from its history alone.

No I/O and no clock, so resuming a sweep is replaying its history, and a test needs no process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from autocl_sweeper.types import History, Search, Selection, Suggestion, Trial


@dataclass(frozen=True)
class Stage:
    """The search on one task. `limit` bounds the suggestions; None takes all the search yields."""

    number: int  # 1 is the first
    task: str
    search: Search
    limit: int | None = None


@dataclass(frozen=True)
class Start:
    """Run `suggestion` from `parent` (None: the initial model)."""

    stage: Stage
    suggestion: Suggestion
    parent: int | None


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


Decision: TypeAlias = Start | Select | Wait | Done


@dataclass(frozen=True)
class SequentialTopK:
    """Every suggestion with every parent, stage after stage; the best become the next parents.

    jobs(1) = n_1, jobs(t) = k_{t-1} * n_t, with k_t the survivors of stage t. The suggestions come
    one by one, each with all parents before the next, so a device that frees always finds work
    while a stage has any.
    """

    stages: Sequence[Stage]
    selection: Selection

    def next(self, history: History) -> Decision:
        for stage in self.stages[len(history.beams) :]:
            parents: Sequence[int | None] = history.beams.get(stage.number - 1, (None,))
            start = self._next_start(stage, parents, history.stage(stage.number))
            if start is not None:
                return start
            if history.running():
                return Wait()
            survivors = self.selection(history.stage(stage.number))
            return Select(stage, tuple(trial.number for trial in survivors))
        return Done()

    def _next_start(
        self, stage: Stage, parents: Sequence[int | None], trials: Sequence[Trial]
    ) -> Start | None:
        if trials:
            last = trials[-1]
            place = parents.index(last.parent) + 1
            if place < len(parents):
                return Start(stage, last.suggestion, parents[place])
            if stage.limit is not None and last.suggestion.index + 1 >= stage.limit:
                return None
        suggestion = stage.search.ask(trials)
        return None if suggestion is None else Start(stage, suggestion, parents[0])
