"""The sequential top-k strategy of AutoCL: what a sweep does next, from its history alone.

No I/O and no clock, so resuming a sweep is replaying its history, and a test needs no process.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, cast

from autocl_sweeper.errors import SearchError
from autocl_sweeper.order import Durations, Queue
from autocl_sweeper.protocols import IndexedSearch, Selection
from autocl_sweeper.strategy.decisions import (
    Again,
    Decision,
    Done,
    GiveUp,
    Select,
    Stage,
    Start,
    Wait,
    Work,
    views,
)
from autocl_sweeper.types import History, Later, State, Suggestion, Trial, is_stopped
from autocl_sweeper.view import StageView

Run: TypeAlias = tuple[int | None, int, int]
"""What a suggestion runs with: its parent, which repeat it is, and which extra start."""

PARENT_LEFT = "its parent left the beam"
AHEAD = 2  # stages that may begin early; a third kept devices no busier (benchmarks/launchers)


@dataclass(frozen=True)
class SequentialTopK:
    """Stage after stage; the best trials of one become the parents of the next.

    Where suggestions run with every parent, jobs(1) = n_1 and jobs(t) = k_{t-1} * n_t, with k_t the
    survivors of stage t. A device that frees finds work while a stage has any. When it has none and
    its last trials still run, `pipeline` begins the next stage from the provisional beam, the best
    of those that finished. With a monotone selection more can only come above them, so a trial that
    drops out never returns, and its children are given up at once; those that stay are the ones
    that would have started later, so the tree is the same either way. Any other selection waits.

    A stage further ahead begins likewise from the best of the trials that began early. Those may
    lose their own parents, which lets others return to the beam, so its trials are given up when
    their parent is, or when the stage of their parent is the open one.

    The stages of a search that depends on its history begin when the stage before is over, and
    their suggestions come in their order. The others go longest first by `work`; without it in
    their order too.
    """

    stages: Sequence[Stage]
    selection: Selection
    pipeline: bool = False
    work: Work | None = None
    width: int = 1  # of the beam; with `Stage.most` it says how many suggestions may begin early
    carried: Sequence[StageView] | None = ()  # as `views` takes it
    whole_beam: bool = False  # a job needs all survivors of the stage before: none begins early
    _followed: list[_Followed] = field(default_factory=list, init=False, repr=False, compare=False)

    def scheduled(self, pipeline: bool, work: Work | None) -> SequentialTopK:
        return replace(self, pipeline=pipeline, work=work)

    def next(self, history: History) -> Decision:
        if history.open_stage > len(self.stages):
            return Done()
        standings = self._follow(history)
        stage, *ahead = standings[history.open_stage - 1 : history.open_stage + AHEAD]
        if (orphan := self._orphan(stage, ahead)) is not None:
            return GiveUp(orphan, PARENT_LEFT)
        if (start := stage.start(history.beams.get(history.open_stage - 1, (None,)))) is not None:
            return start
        if not stage.running:
            beam = stage.beam()
            if not beam and (best := stage.best_stopped()) is not None:
                return Wait() if best in history.ending else Again(best)
            return Select(stage.stage, tuple(trial.number for trial in beam))
        return self._early(stage, ahead) or Wait()

    def _orphan(self, stage: _Standing, ahead: Sequence[_Standing]) -> int | None:
        """A trial that began early and may not stay."""
        if not self.selection.monotone or not ahead or not ahead[0].stage.chained:
            return None
        beam = {trial.number for trial in stage.beam()}
        orphan = ahead[0].orphan(lambda parent: parent not in beam)
        for later in ahead[1:]:
            if orphan is None:
                orphan = later.orphan(stage.history.given_up.__contains__)
        return orphan

    def _early(self, stage: _Standing, ahead: Sequence[_Standing]) -> Start | None:
        if not self.pipeline or self.whole_beam or not self.selection.monotone:
            return None
        beam = stage.beam()
        for later in ahead:
            if (early := later.start_early(beam)) is not None:
                return early
            beam = later.provisional_beam()
        return None

    def _follow(self, history: History) -> Sequence[_Standing]:
        """What this history says, brought up to date: the same as read from its beginning."""
        if not self._followed or self._followed[0].history is not history:
            self._followed[:] = [_Followed(self, history)]
        return self._followed[0].standings()


class _Followed:
    """A history as the strategy needs it. It follows the changes, so that a step costs little."""

    def __init__(self, strategy: SequentialTopK, history: History) -> None:
        self.history = history
        self._seen = 0
        seen = views(strategy.stages, history, strategy.selection, strategy.carried)
        self._standings = [
            _Standing(strategy, history, stage, view)
            for stage, view in zip(strategy.stages, seen, strict=True)
        ]

    def standings(self) -> Sequence[_Standing]:
        for place in range(self._seen, len(self.history.changes)):
            trial = self.history.changes[place]
            self._standings[trial.stage - 1].note(trial)
        self._seen = len(self.history.changes)
        return self._standings


class _Standing:
    """How one stage stands: what runs, who would survive, what may start."""

    def __init__(
        self, strategy: SequentialTopK, history: History, stage: Stage, view: StageView
    ) -> None:
        self.stage = stage
        self.running: set[int] = set()
        self._strategy = strategy
        self.history = history
        self._view = view
        # Suggestion i of a population has one parent, known when the round before is over.
        population = stage.parents == "population"
        indexed = isinstance(stage.search, IndexedSearch) and not population
        self._indexed = cast(IndexedSearch, stage.search) if indexed else None
        self._answer: tuple[int, Start | Wait | None] = (-1, None)  # at which revision
        self._begun: set[tuple[int, Run]] = set()
        self._children: defaultdict[int | None, set[int]] = defaultdict(set)  # not given up
        self._beam: list[Trial] = []
        self._newcomers: dict[int, Trial] = {}  # complete, and not compared with the beam yet
        self._provisional: list[Trial] | None = None  # the best of them; None: to be worked out
        self._durations = Durations()
        self._queue: Queue[Run] | None = None
        self._early: dict[int, Queue[Run]] = {}  # by parent

    def note(self, trial: Trial) -> None:
        """A trial of this stage changed."""
        self._view.note(trial)
        suggestion = trial.suggestion
        self.running.discard(trial.number)
        if trial.state is State.RUNNING:
            self.running.add(trial.number)
            self._begun.add((suggestion.index, (trial.parent, trial.repeat, trial.extra)))
            self._children[trial.parent].add(trial.number)
        elif is_stopped(trial):  # a result of the stage that nothing starts from
            return
        elif trial.state is State.PRUNED:
            self._children[trial.parent].discard(trial.number)
            if not self._children[trial.parent]:
                del self._children[trial.parent]
            if self._newcomers.pop(trial.number, None) is not None:
                self._provisional = None
        elif trial.state is State.COMPLETE:
            self._newcomers[trial.number] = trial
            if self._provisional is not None:
                self._provisional = self._best([*self._provisional, trial])
            assert trial.outcome is not None
            work = self._work_of(suggestion)
            self._durations.note(suggestion.index, work, trial.outcome.seconds)
            for queue in (self._queue, *self._early.values()):
                if queue is not None:
                    queue.note()

    def beam(self) -> list[Trial]:
        """The survivors if nothing more finished, best first. Needs the beam of the stage before."""
        if not self._strategy.selection.monotone:
            return self._best(self._newcomers.values())
        if self._newcomers:
            self._beam = self._best([*self._beam, *self._newcomers.values()])
            self._newcomers.clear()
        return self._beam

    def best_stopped(self) -> int | None:
        """The early-stopped trial that came furthest; of those as far, the one with the best score."""
        stopped = [trial for trial in self.history.stage(self.stage.number) if is_stopped(trial)]
        loss = self._strategy.selection.loss

        def rank(trial: Trial) -> tuple[int, float, tuple[int, int, int]]:
            score = math.inf if trial.score is None else loss(trial.score)
            step = self.history.reports(trial.number)[-1].step
            return -step, score, self.history.place(trial)

        return min(stopped, key=rank).number if stopped else None

    def provisional_beam(self) -> list[Trial]:
        """The same while the beam of the stage before may change, and with it who belongs here."""
        if self._provisional is None:
            self._provisional = self._best(self._newcomers.values())
        return self._provisional

    def orphan(self, gone: Callable[[int | None], bool]) -> int | None:
        """A trial whose parent is gone."""
        return next((min(kids) for parent, kids in self._children.items() if gone(parent)), None)

    def _best(self, trials: Iterable[Trial]) -> list[Trial]:
        return self._strategy.selection(sorted(trials, key=self.history.place))

    def start(self, parents: Sequence[int | None]) -> Start | Wait | None:
        """What is to start next, given the beam of the stage before."""
        if not self.stage.chained:
            parents = (None,)
        if self._indexed is None:
            if self._answer[0] != self._view.revision:
                self._answer = self._view.revision, self._ask(parents)
            return self._answer[1]
        return self._queued(parents)

    def start_early(self, beam: Sequence[Trial]) -> Start | None:
        """What is to start next while the beam may change: from the best first, it is the surest."""
        if self._indexed is None:
            return None
        if not self.stage.chained:  # it needs nothing of earlier stages
            return self._queued((None,))
        self._early = {
            trial.number: self._early.get(trial.number)
            or self._queue_for((trial.number,), early=True)
            for trial in beam
        }
        starts = (self._first(queue) for queue in self._early.values())
        return next((start for start in starts if start is not None), None)

    def _queued(self, parents: Sequence[int | None]) -> Start | None:
        if self._queue is None:
            self._early.clear()
            self._queue = self._queue_for(parents)
        return self._first(self._queue)

    def _runs(self, parents: Sequence[int | None]) -> list[Run]:
        """What each suggestion runs with, each parent and each extra start as often as it is repeated."""
        extras = [(parents[0], extra) for extra in range(1, self.stage.extra + 1)]
        starts = [*((parent, 0) for parent in parents), *extras]
        return [(parent, r, extra) for parent, extra in starts for r in range(self.stage.seeds)]

    def _queue_for(self, parents: Sequence[int | None], early: bool = False) -> Queue[Run]:
        ordered = self._strategy.work is not None
        work = (lambda index: self._work_of(self._suggestion(index))) if ordered else None
        stage, each = self.stage, len(parents) + self.stage.extra
        if early:  # there may be more parents in the end: what surely runs with every one of them
            each = max(each, self._strategy.width)
        count, rest = stage.suggestions, 0
        if stage.groups is not None and stage.groups < count * each:
            count, rest = divmod(stage.groups, each)
        partial = 0 if early else rest * stage.seeds
        return Queue(count, self._runs(parents), self._durations, work, partial)

    def _first(self, queue: Queue[Run]) -> Start | None:
        found = queue.next(self._begun)
        return found and Start(self.stage, self._suggestion(found[0]), *found[1])

    def _suggestion(self, index: int) -> Suggestion:
        assert self._indexed is not None
        return self._indexed.suggestion(index)

    def _work_of(self, suggestion: Suggestion) -> float:
        work = self._strategy.work
        return 1.0 if work is None else work(suggestion.params, self.stage.task)

    def _ask(self, parents: Sequence[int | None]) -> Start | Wait | None:
        """One suggestion after the other, each with all its parents before the next is asked for."""
        search, trials, seeds = self.stage.search, self._view.trials, self.stage.seeds
        if trials and (repeat := trials[-1].repeat + 1) < seeds:
            again = trials[-1]
            return Start(self.stage, again.suggestion, again.parent, repeat, again.extra)
        if self.stage.groups is not None and len(trials) // seeds >= self.stage.groups:
            return None
        if trials:
            last = trials[-1]
            place = parents.index(last.parent) + 1
            if self.stage.pairing == "every" and not last.extra and place < len(parents):
                return Start(self.stage, last.suggestion, parents[place])
            if last.extra < self.stage.extra:
                return Start(self.stage, last.suggestion, parents[0], extra=last.extra + 1)
            limit = self.stage.limit
            if limit is not None and last.suggestion.index + 1 >= limit:
                return None
        suggestion = search.ask(self._view)
        if isinstance(suggestion, Later):
            if not self.running:
                raise SearchError(
                    f"The search of task '{self.stage.task}' waits for a running trial (Later), but"
                    " none runs.\n  A search without another suggestion answers None. It is a"
                    f" {type(search).__name__}; set another hydra/sweeper/search, or fix it."
                )
            return Wait()
        if suggestion is None:
            return None
        parent = parents[0]
        if self.stage.parents == "population":
            return Start(self.stage, suggestion, parents[suggestion.index % len(parents)])
        if not self.stage.chained:
            return Start(self.stage, suggestion, None)
        if search.pairing == "one" and suggestion.parent is not None:
            parent = suggestion.parent
        if parent not in parents:
            raise SearchError(
                f"The search of task '{self.stage.task}' names trial {parent} as a parent, but the"
                f" beam is {list(parents)}.\n  A suggestion names one of its stage's parents, or"
                f" none. It is a {type(search).__name__}; set another hydra/sweeper/search, or fix"
                " it."
            )
        return Start(self.stage, suggestion, parent)
