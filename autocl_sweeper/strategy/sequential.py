"""The sequential top-k strategy of AutoCL: what a sweep does next, from its history alone.

No I/O and no clock, so resuming a sweep is replaying its history, and a test needs no process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from autocl_sweeper.order import Durations, Queue
from autocl_sweeper.types import (
    History,
    IndexedSearch,
    Search,
    Selection,
    State,
    Suggestion,
    Trial,
    Value,
)

PARENT_LEFT = "its parent left the beam"
AHEAD = 2  # stages that may begin early; a third kept devices no busier (benchmarks/launchers)


@dataclass(frozen=True)
class Stage:
    """The search on one task. `limit` bounds the suggestions; None takes all the search yields."""

    number: int  # 1 is the first
    task: str
    search: Search
    limit: int | None = None

    @property
    def suggestions(self) -> int:
        """How many there are at most. A search without end needs a limit."""
        return min(n for n in (self.search.size, self.limit) if n is not None)


@dataclass(frozen=True)
class Start:
    """Run `suggestion` from `parent` (None: the initial model)."""

    stage: Stage
    suggestion: Suggestion
    parent: int | None


@dataclass(frozen=True)
class GiveUp:
    """End this trial, or forget its result: it cannot become part of the tree any more."""

    trial: int
    reason: str


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


Decision: TypeAlias = Start | GiveUp | Select | Wait | Done


@dataclass(frozen=True)
class SequentialTopK:
    """Every suggestion with every parent, stage after stage; the best become the next parents.

    jobs(1) = n_1, jobs(t) = k_{t-1} * n_t, with k_t the survivors of stage t. A device that frees
    finds work while a stage has any. When it has none and its last trials still run, `pipeline`
    begins the next stage from the provisional beam, the best of those that finished. More can only
    come above them, so who drops out never returns, and its children are given up at once; those
    that stay are the ones that would have started later, so the tree is the same either way.

    A stage further ahead begins likewise from the best of the trials that began early. Those may
    lose their own parents, which lets others return to the beam, so its trials are given up when
    their parent is, or when the stage of their parent is the open one.

    The stages of a search that depends on its history begin when the stage before is over, and
    their suggestions come in their order. The others go longest first by `work`, (parameters, task)
    -> amount; without it in their order too.
    """

    stages: Sequence[Stage]
    selection: Selection
    pipeline: bool = False
    work: Callable[[Mapping[str, Value], str], float] | None = None
    _views: list[_View] = field(default_factory=list, init=False, repr=False, compare=False)

    def next(self, history: History) -> Decision:
        if history.open_stage > len(self.stages):
            return Done()
        view = self._view(history)
        stage = view.stage(history.open_stage)
        beam = stage.beam()
        ahead = [view.stage(history.open_stage + place) for place in range(1, AHEAD + 1)]
        orphan = ahead[0].orphan({trial.number for trial in beam})
        for later in ahead[1:]:
            orphan = later.bereaved() if orphan is None else orphan
        if orphan is not None:
            return GiveUp(orphan, PARENT_LEFT)
        start = stage.start(history.beams.get(history.open_stage - 1, (None,)))
        if start is not None:
            return start
        if not stage.running:
            return Select(self.stages[history.open_stage - 1], tuple(t.number for t in beam))
        for later in ahead if self.pipeline else ():
            early = later.start_early(beam)
            if early is not None:
                return early
            beam = later.provisional_beam()
        return Wait()

    def _view(self, history: History) -> _View:
        """What this history says, brought up to date: the same as read from its beginning."""
        if not self._views or self._views[0].history is not history:
            self._views[:] = [_View(self, history)]
        self._views[0].follow()
        return self._views[0]


class _View:
    """A history as the strategy needs it. It follows the changes, so that a step costs little."""

    def __init__(self, strategy: SequentialTopK, history: History) -> None:
        self.history = history
        self._seen = 0
        self._stages = [_StageView(strategy, history, stage) for stage in strategy.stages]
        self._nothing = _StageView(strategy, history, None)

    def stage(self, number: int) -> _StageView:
        return self._stages[number - 1] if number <= len(self._stages) else self._nothing

    def follow(self) -> None:
        for place in range(self._seen, len(self.history.changes)):
            trial = self.history.changes[place]
            self.stage(trial.stage).note(trial)
        self._seen = len(self.history.changes)


class _StageView:
    """The trials of one stage; after the last stage (None) there never are any."""

    def __init__(self, strategy: SequentialTopK, history: History, stage: Stage | None) -> None:
        self.running: set[int] = set()
        self._strategy = strategy
        self._history = history
        self._stage = stage
        search = stage.search if stage is not None else None
        self._indexed = search if isinstance(search, IndexedSearch) else None
        self._begun: set[tuple[int, int | None]] = set()
        self._children: defaultdict[int | None, set[int]] = defaultdict(set)  # not given up
        self._beam: list[Trial] = []
        self._newcomers: dict[int, Trial] = {}  # complete, and not compared with the beam yet
        self._provisional: list[Trial] | None = None  # the best of them; None: to be worked out
        self._durations = Durations()
        self._queue: Queue | None = None
        self._early: dict[int, Queue] = {}  # by parent

    def note(self, trial: Trial) -> None:
        """A trial of this stage changed."""
        suggestion = trial.suggestion
        self.running.discard(trial.number)
        if trial.state is State.RUNNING:
            self.running.add(trial.number)
            self._begun.add((suggestion.index, trial.parent))
            self._children[trial.parent].add(trial.number)
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
                    queue.note(suggestion.index)

    def beam(self) -> list[Trial]:
        """The survivors if nothing more finished, best first. Needs the beam of the stage before."""
        if self._newcomers:
            self._beam = self._best([*self._beam, *self._newcomers.values()])
            self._newcomers.clear()
        return self._beam

    def provisional_beam(self) -> list[Trial]:
        """The same while the beam of the stage before may change, and with it who belongs here."""
        if self._provisional is None:
            self._provisional = self._best(self._newcomers.values())
        return self._provisional

    def orphan(self, beam: Collection[int]) -> int | None:
        """A trial whose parent is not in the beam of the stage before."""
        for parent, children in self._children.items():
            if parent not in beam:
                return min(children)
        return None

    def bereaved(self) -> int | None:
        """A trial whose parent was given up."""
        for parent, children in self._children.items():
            if parent in self._history.given_up:
                return min(children)
        return None

    def _best(self, trials: Iterable[Trial]) -> list[Trial]:
        return self._strategy.selection(sorted(trials, key=self._history.place))

    def start(self, parents: Sequence[int | None]) -> Start | None:
        """What is to start next, given the beam of the stage before."""
        if self._indexed is None:
            return self._ask(parents)
        if self._queue is None:
            self._early.clear()
            self._queue = self._queue_for(parents)
        return self._first(self._queue)

    def start_early(self, beam: Sequence[Trial]) -> Start | None:
        """What is to start next while the beam may change: from the best first, it is the surest."""
        if self._indexed is None:
            return None
        self._early = {
            trial.number: self._early.get(trial.number) or self._queue_for((trial.number,))
            for trial in beam
        }
        starts = (self._first(queue) for queue in self._early.values())
        return next((start for start in starts if start is not None), None)

    def _queue_for(self, parents: Sequence[int | None]) -> Queue:
        assert self._stage is not None
        ordered = self._strategy.work is not None
        work = (lambda index: self._work_of(self._suggestion(index))) if ordered else None
        return Queue(self._stage.suggestions, parents, self._durations, work)

    def _first(self, queue: Queue) -> Start | None:
        assert self._stage is not None
        found = queue.next(self._begun)
        return found and Start(self._stage, self._suggestion(found[0]), found[1])

    def _suggestion(self, index: int) -> Suggestion:
        assert self._indexed is not None
        return self._indexed.suggestion(index)

    def _work_of(self, suggestion: Suggestion) -> float:
        if self._strategy.work is None or self._stage is None:
            return 1.0
        return self._strategy.work(suggestion.params, self._stage.task)

    def _ask(self, parents: Sequence[int | None]) -> Start | None:
        """One suggestion after the other, each with all parents before the next is asked for."""
        assert self._stage is not None
        trials = self._history.stage(self._stage.number)
        if trials:
            last = trials[-1]
            place = parents.index(last.parent) + 1
            if place < len(parents):
                return Start(self._stage, last.suggestion, parents[place])
            limit = self._stage.limit
            if limit is not None and last.suggestion.index + 1 >= limit:
                return None
        suggestion = self._stage.search.ask(trials)
        return None if suggestion is None else Start(self._stage, suggestion, parents[0])
