"""The sequential top-k strategy, driven by simulated jobs: no process, no clock."""

from __future__ import annotations

import heapq
from collections import Counter

import pytest

from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.decisions import Done, GiveUp, Select, Stage, Start, Wait
from autocl_sweeper.strategy.sequential import SequentialTopK
from autocl_sweeper.types import History, Outcome, State, Suggestion, Trial


def stages(*sizes: int) -> list[Stage]:
    return [
        Stage(place, f"task{place}", ListedSearch([{"x": i} for i in range(size)]))
        for place, size in enumerate(sizes, start=1)
    ]


def simulate(strategy, score, slots=1, duration=lambda trial: 1.0, fails=lambda trial: False):
    """The history of a run to the end on `slots` devices with these durations."""
    history, clock, running = History(), 0.0, []
    while True:
        decision = strategy.next(history)
        if isinstance(decision, Done):
            return history
        if isinstance(decision, Select):
            history.select(decision.stage.number, decision.beam)
        elif isinstance(decision, Start) and len(running) < slots:
            stage, suggestion = decision.stage, decision.suggestion
            number = len(history)
            trial = Trial(number, stage.number, stage.task, suggestion, decision.parent)
            history.start(trial)
            heapq.heappush(running, (clock + duration(trial), trial.number))
        elif isinstance(decision, GiveUp):
            history.give_up(decision.trial, decision.reason)
            if decision.trial in history.ending:
                history.finish(decision.trial, Outcome(State.PRUNED))
                running = [one for one in running if one[1] != decision.trial]
                heapq.heapify(running)
        else:
            assert running, "nothing runs and nothing may start: a deadlock"
            clock, number = heapq.heappop(running)
            trial = history[number]
            failed = fails(trial)
            state = State.FAIL if failed else State.COMPLETE
            history.finish(number, Outcome(state, score=None if failed else score(trial, history)))


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("jobs", [4, 5, 7, 12])
def test_a_stage_runs_its_number_of_jobs_whatever_the_beam_is(jobs, k, pipeline):
    """They are shared among the parents, and those that began early and were given up do not count."""
    searches = [ListedSearch([{"x": index} for index in range(20)]) for _ in range(3)]
    limited = [Stage(n, f"t{n}", one, most=jobs) for n, one in enumerate(searches, start=1)]
    strategy = SequentialTopK(limited, TopK(k), pipeline, width=k)
    score = lambda trial, _: float(trial.suggestion.index * 7 % 5)  # noqa: E731
    history = simulate(strategy, score, 3, lambda trial: 1 + trial.number * 5 % 7)
    for stage in limited:
        kept = [t for t in history.stage(stage.number) if t.number not in history.given_up]
        assert len(kept) == jobs
        shared = Counter(trial.parent for trial in kept)
        assert set(shared) == set(history.beams.get(stage.number - 1, (None,)))
        assert max(shared.values()) - min(shared.values()) <= 1


@pytest.mark.parametrize(
    "sizes, k, jobs",
    [
        ((3, 2, 2, 2), 2, 15),  # AutoCL's own example: 3 + 4 + 4 + 4
        ((3, 2, 2, 2), 1, 9),
        ((1, 3), 2, 4),  # fewer survivors than k in the first stage
        ((5,), 2, 5),
        ((8, 8, 8), 3, 8 + 24 + 24),
    ],
)
def test_the_number_of_jobs_is_parents_times_suggestions(sizes, k, jobs):
    strategy = SequentialTopK(stages(*sizes), TopK(k))
    history = simulate(strategy, lambda trial, _: float(trial.number))
    assert len(history) == jobs


def test_the_beam_equals_an_exhaustive_beam_search_on_paper():
    # Worth of a chain: 10 * first + second; the beam of stage 1 is {2, 1}.
    def worth(trial, history):
        chain = [t.suggestion.params["x"] for t in history.lineage(trial)]
        return sum(x * 10 ** (2 - place) for place, x in enumerate(chain))

    strategy = SequentialTopK(stages(3, 3, 2), TopK(2))
    history = simulate(strategy, worth, slots=3, duration=lambda trial: 1 + trial.number % 3)
    chains = [
        [t.suggestion.params["x"] for t in history.lineage(history[number])]
        for number in history.beams[3]
    ]
    assert chains == [[2, 2, 1], [2, 2, 0]]


def test_fewer_survivors_than_k_go_on_with_those():
    strategy = SequentialTopK(stages(3, 2), TopK(2))
    history = simulate(
        strategy,
        lambda trial, _: 1.0,
        fails=lambda trial: trial.stage == 1 and trial.number != 1,
    )
    assert history.beams[1] == (1,)
    assert [trial.parent for trial in history.stage(2)] == [1, 1]


def test_a_stage_without_survivors_says_so_and_does_not_hang():
    strategy = SequentialTopK(stages(2, 2), TopK(2))
    history = History()
    for number in range(2):
        start = strategy.next(history)
        assert isinstance(start, Start)
        history.start(Trial(number, 1, "task1", start.suggestion, None))
    assert isinstance(strategy.next(history), Wait)
    for number in range(2):
        history.finish(number, Outcome(State.FAIL, reason="no"))
    decision = strategy.next(history)
    assert isinstance(decision, Select) and decision.beam == ()


@pytest.mark.parametrize(
    "maximize, scores, beam",
    [
        (True, [0.1, 0.9, 0.5], (1, 2)),
        (False, [0.1, 0.9, 0.5], (0, 2)),
        (True, [0.5, 0.5, 0.5], (0, 1)),  # ties: the lower number
        (False, [0.5, 0.4, 0.4], (1, 2)),
        (True, [None, 0.2, None], (1,)),  # without a score nobody survives
    ],
)
def test_selection_keeps_the_best_and_breaks_ties_by_number(maximize, scores, beam):
    trials = []
    for number, score in enumerate(scores):
        state = State.FAIL if score is None else State.COMPLETE
        suggestion = Suggestion(0, {})
        trials.append(Trial(number, 1, "t", suggestion, None, outcome=Outcome(state, score=score)))
    assert tuple(t.number for t in TopK(2, maximize)(trials)) == beam


def test_a_limit_ends_a_search_that_would_go_on():
    limited = [Stage(1, "task1", ListedSearch([{"x": i} for i in range(9)]), limit=4)]
    history = simulate(SequentialTopK(limited, TopK(1)), lambda trial, _: 1.0)
    assert [trial.suggestion.params["x"] for trial in history] == [0, 1, 2, 3]


def test_history_refuses_a_number_out_of_turn():
    suggestion = Suggestion(0, {})
    with pytest.raises(ValueError, match="3 starts, but 0 is next"):
        History().start(Trial(3, 1, "t", suggestion, None))
