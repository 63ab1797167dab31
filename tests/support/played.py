"""Stages played without jobs: a search is asked, its trials end as a test wants, every step is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autocl_sweeper.protocols import Search
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.decisions import Stage, views
from autocl_sweeper.types import History, Later, Outcome, Report, State, Suggestion, Trial
from autocl_sweeper.view import StageView

Ends = Callable[[Mapping[str, Any], int], "float | State | None"]
"""(params, suggestion index) -> loss; None: it fails. A state: it ends in it without a score."""


class Played:
    """The last of some stages, minimised; the ones before it are over.

    `earlier`: the trials of each, as (params, loss). `beam`: how many trials of the stage before
    are parents.
    """

    def __init__(
        self,
        search: Search,
        earlier: Sequence[Sequence[tuple[Mapping[str, Any], float | None]]] = (),
        beam: int = 0,
        tasks: Sequence[str] = (),
    ) -> None:
        count = len(earlier) + 1
        names = tasks or ["t"] * count
        self.search = search
        self.history = History()
        self.steps: list[tuple[str, Any]] = []
        stages = [Stage(n + 1, names[n], search) for n in range(count)]
        seen = views(stages, self.history, TopK(1, maximize=False))
        self._views = {view.number: view for view in seen}
        self.stage: StageView = seen[-1]
        for number, trials in enumerate(earlier, start=1):
            for index, (params, loss) in enumerate(trials):
                trial = self._begin(Suggestion(index, params), number)
                self.end(trial.number, loss)
            ranked = [t.number for t in self._views[number].trials if t.loss is not None]
            best = sorted(ranked, key=lambda n: (self.history[n].score, n))
            self.history.select(number, best[:beam])

    def ask(self) -> Suggestion | Later | None:
        return self.search.ask(self.stage)

    def start(self, suggestion: Suggestion) -> int:
        number = self._begin(suggestion, self.stage.number).number
        self.steps.append(("start", suggestion))
        return number

    def _begin(self, suggestion: Suggestion, stage: int) -> Trial:
        trial = Trial(len(self.history), stage, "t", suggestion, suggestion.parent)
        self.history.start(trial)
        self._views[stage].note(trial)
        return trial

    def report(self, number: int, step: int, loss: float) -> None:
        self.history.report(Report(number, step, loss))
        self._views[self.history[number].stage].note(self.history[number])
        self.steps.append(("report", (number, step, loss)))

    def end(self, number: int, loss: float | State | None) -> None:
        state = loss if isinstance(loss, State) else State.FAIL if loss is None else State.COMPLETE
        score = None if isinstance(loss, State) else loss
        trial = self.history.finish(number, Outcome(state, score=score))
        self._views[trial.stage].note(trial)
        if trial.stage == self.stage.number:
            self.steps.append(("end", (number, loss)))

    def again(self, number: int) -> None:
        """A failed trial has another attempt."""
        before = self.history[number]
        trial = Trial(number, before.stage, "t", before.suggestion, before.parent, attempt=2)
        self.history.start(trial)
        self._views[trial.stage].note(trial)
        self.steps.append(("again", number))

    def run(self, ends: Ends, at_most: int, devices: int = 1) -> list[Suggestion]:
        """Suggestions in their order; with several devices the oldest job ends first."""
        made: list[Suggestion] = []
        running: list[int] = []
        while len(made) < at_most:
            asked = self.ask() if len(running) < devices else Later()
            if asked is None:
                break
            if isinstance(asked, Suggestion):
                running.append(self.start(asked))
                made.append(asked)
                continue
            assert running, "it waits for a trial, but none runs"
            number = running.pop(0)
            suggestion = self.history[number].suggestion
            self.end(number, ends(suggestion.params, suggestion.index))
        for number in running:
            suggestion = self.history[number].suggestion
            self.end(number, ends(suggestion.params, suggestion.index))
        return made


def replayed(
    steps: Sequence[tuple[str, Any]], make: Callable[[], Search], **more: Any
) -> list[Any]:
    """What a search that is made anew says where each of these suggestions was made."""
    said = []
    for place, (kind, _) in enumerate(steps):
        if kind == "start":
            played = Played(make(), **more)
            for earlier, what in steps[:place]:
                if earlier == "start":
                    played.start(what)
                elif earlier == "report":
                    played.report(*what)
                elif earlier == "again":
                    played.again(what)
                else:
                    played.end(*what)
            said.append(played.ask())
    return said
