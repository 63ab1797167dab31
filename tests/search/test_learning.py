"""Searches that learn: what a stage shows them, when they wait, with which parents they run."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
from support.lineages import Simulated, completed
from support.plans import plan_of
from support.searches import Doubling

from autocl_sweeper.errors import SearchError
from autocl_sweeper.journal import read
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.decisions import Done, Select, Stage, Start, Wait, views
from autocl_sweeper.strategy.sequential import SequentialTopK
from autocl_sweeper.types import History, Later, Outcome, Report, State, Suggestion, Trial

LISTED = Stage(1, "a", ListedSearch([{"x": 3}, {"x": 5}, {"x": 4}]))


def run(strategy):
    """To the end on one device, with x as the score."""
    history = History()
    while not isinstance(decision := strategy.next(history), Done):
        if isinstance(decision, Select):
            history.select(decision.stage.number, decision.beam)
            continue
        stage, number = decision.stage, len(history)
        history.start(Trial(number, stage.number, stage.task, decision.suggestion, decision.parent))
        score = float(decision.suggestion.params["x"])
        history.finish(number, Outcome(State.COMPLETE, score=score))
    return history


def second_stage(history):
    return [(trial.suggestion.params["x"], trial.parent) for trial in history.stage(2)]


def test_with_one_parent_each_suggestion_runs_once_from_the_parent_it_names():
    # The beam is 1 (x = 5), 2 (x = 4): 10 from the first, then 20 from the second, and so on.
    strategy = SequentialTopK([LISTED, Stage(2, "b", Doubling(), limit=4)], TopK(2))
    history = run(strategy)
    assert history.beams[1] == (1, 2)
    assert second_stage(history) == [(10, 1), (20, 2), (40, 1), (80, 2)]
    assert [trial.suggestion.origin for trial in history.stage(2)] == ["own"] * 4
    assert [trial.suggestion.source for trial in history.stage(2)] == [1, 3, 4, 5]


def test_with_every_parent_the_same_search_runs_each_suggestion_from_all_of_the_beam():
    strategy = SequentialTopK([LISTED, Stage(2, "b", Doubling("every"), limit=2)], TopK(2))
    # 10 with both; the better result is the same, so its double comes with both again.
    assert second_stage(run(strategy)) == [(10, 1), (10, 2), (20, 1), (20, 2)]


def test_a_suggestion_that_names_no_parent_runs_with_the_best_one():
    class Nameless(Doubling):
        def ask(self, stage):
            asked = super().ask(stage)
            return replace(asked, parent=None) if isinstance(asked, Suggestion) else asked

    strategy = SequentialTopK([LISTED, Stage(2, "b", Nameless(), limit=2)], TopK(2))
    assert second_stage(run(strategy)) == [(10, 1), (20, 1)]


def test_a_search_that_says_later_is_asked_again_when_a_trial_has_ended():
    search = Doubling(at_once=2)
    stage = Stage(1, "a", search, limit=4)
    strategy, history = SequentialTopK([stage], TopK(1), pipeline=True), History()
    for number in (0, 1):
        history.start(Trial(number, 1, "a", strategy.next(history).suggestion, None))
    assert [strategy.next(history), strategy.next(history)] == [Wait(), Wait()]
    asked = search.asked
    assert strategy.next(history) == Wait() and search.asked == asked  # nothing has changed
    for number in (0, 1):
        assert strategy.next(history) == Wait()
        history.finish(number, Outcome(State.COMPLETE, score=1.0))
    assert strategy.next(history) == Start(stage, Suggestion(2, {"x": 2}, "own", source=0), None)


def test_no_stage_begins_early_while_the_search_before_it_has_more_to_come():
    stages = [Stage(1, "a", Doubling(at_once=2), limit=4), Stage(2, "b", LISTED.search)]
    strategy, history = SequentialTopK(stages, TopK(1), pipeline=True), History()
    for number in (0, 1):
        history.start(Trial(number, 1, "a", strategy.next(history).suggestion, None))
    history.finish(0, Outcome(State.COMPLETE, score=1.0))
    assert strategy.next(history) == Wait()


def sweep(folder, pairing, devices, records=()):
    """A real sweep over simulated devices; what every trial got, and the beams."""
    plan = plan_of(
        "task=a,b",
        task_params={"a": [{"x": 3}, {"x": 5}, {"x": 4}]},
        search={"factory": "support.searches.doubling", "pairing": pairing, "at_once": 2},
        popsize=5,
    )

    def end(lineage):
        number, x = lineage[-1].number, lineage[-1].suggestion.params["x"]
        return completed(float(x - number % 3), folder, seconds=1 + number % 3)

    history = Simulated(folder, plan, end, devices, records).history
    return [(t.suggestion, t.parent, t.score) for t in history], history.beams


@pytest.mark.parametrize("pairing, jobs", [("one", 3 + 5), ("every", 3 + 10)])
@pytest.mark.parametrize("devices", [1, 3])
def test_a_sweep_that_learns_goes_on_from_every_line_of_its_journal_to_the_same_trials(
    pairing, jobs, devices, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    whole = sweep(tmp_path / "whole", pairing, devices)
    assert len(whole[0]) == jobs
    records = read(tmp_path / "whole")
    for length in range(1, len(records)):
        assert sweep(tmp_path / str(length), pairing, devices, records[:length]) == whole, length


def test_a_stage_shows_its_search_parents_trials_reports_and_the_stages_before():
    stages = [LISTED, Stage(2, "b", Doubling(), limit=4)]
    history = History()
    selection = TopK(2, maximize=False)
    first, second = views(stages, history, selection)

    def change(trial):
        (first if trial.stage == 1 else second).note(trial)

    for number, x in enumerate((3, 5, 4)):
        history.start(Trial(number, 1, "a", Suggestion(number, {"x": x}), None))
        change(history.finish(number, Outcome(State.COMPLETE, score=float(x), seconds=2.0)))
    assert first.jobs_left == 0 and list(first.parents) == [] and first.earlier == ()
    history.select(1, (0, 2))
    assert (second.number, second.task, second.jobs_left, second.revision) == (2, "b", 4, 0)
    assert [(p.number, p.score, p.params) for p in second.parents] == [
        (0, 3.0, {"x": 3}),
        (2, 4.0, {"x": 4}),
    ]
    assert [trial.seconds for trial in second.earlier[0].trials] == [2.0] * 3

    for number in (3, 4):
        history.start(Trial(number, 2, "b", Suggestion(number - 3, {"x": 6}), parent=0))
        change(history[number])
    (running, _), before = second.trials, second.revision
    assert (running.state, running.loss, running.reports, running.seconds) == (
        State.RUNNING, None, [], 0.0,
    )  # fmt: skip
    for step, score in ((10, 0.5), (20, math.nan)):
        history.report(Report(3, step, score))
        change(history[3])
    change(history.give_up(4, "it lost its parent"))
    assert second.revision == before + 3 and second.jobs_left == 3
    assert [trial.number for trial in second.changed(before)] == [3]
    (step, loss), (_, diverged) = running.reports  # as it is now
    assert (step, loss) == (10, 0.5) and math.isnan(diverged)
    change(history.finish(3, Outcome(State.COMPLETE, score=0.25, seconds=9.0)))
    assert [trial.number for trial in second.trials] == [3]
    assert (running.state, running.loss, running.seconds) == (State.COMPLETE, 0.25, 9.0)


@pytest.mark.parametrize("maximize, loss", [(True, -0.5), (False, 0.5)])
def test_a_loss_is_lower_for_what_is_better(maximize, loss):
    history, selection = History(), TopK(1, maximize)
    (view,) = views([LISTED], history, selection)
    history.start(Trial(0, 1, "a", Suggestion(0, {"x": 3}), None))
    history.report(Report(0, 1, 0.5))
    view.note(history.finish(0, Outcome(State.COMPLETE, score=0.5)))
    assert view.trials[0].loss == loss and view.trials[0].reports == [(1, loss)]


def test_a_search_that_waits_for_nothing_or_names_a_stranger_is_refused():
    class Broken:
        size, pairing, answer = None, "one", Later()

        def ask(self, stage):
            return self.answer

    search = Broken()
    strategy = SequentialTopK([Stage(1, "boolq", search, limit=4)], TopK(1))
    with pytest.raises(
        SearchError, match=r"(?s)'boolq' waits for a running trial .* none runs.*Broken"
    ):
        strategy.next(History())
    search.answer = Suggestion(0, {}, parent=7)
    with pytest.raises(
        SearchError, match=r"'boolq' names trial 7 as a parent, but the beam is \[None"
    ):
        strategy.next(History())
