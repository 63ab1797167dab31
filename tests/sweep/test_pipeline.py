"""The next stage begins early, and the tree is the same: against the sweep that waits at each stage.

Jobs run in virtual time. Their durations, scores and failures come from their lineage alone, so a
trial is known by the places of its chain's suggestions, whatever its number is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from support.bench import Bench, wait_until
from support.pipelined import COMMAND, check_the_tree, started
from support.searches import Doubling
from support.virtual import Run, World

from autocl_sweeper.errors import TooManyFailuresError
from autocl_sweeper.journal import fold
from autocl_sweeper.results.early import waste as cost_of
from autocl_sweeper.results.result_file import RESULT_FILE, ResultFile
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.decisions import Select, Stage, Start, Wait
from autocl_sweeper.strategy.sequential import PARENT_LEFT, SequentialTopK
from autocl_sweeper.sweep import books
from autocl_sweeper.types import History, Outcome, State, Suggestion, Trial

# As many and forty more are slow.
SEEDS = [*range(60), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(60, 160))]


@pytest.fixture(autouse=True)
def few_files(no_fsync, monkeypatch):
    monkeypatch.setattr(books, "write_best", lambda *_: None)
    monkeypatch.setattr(books, "write_table", lambda *_: None)


@pytest.fixture(params=SEEDS)
def world(request):
    return World(request.param)


def test_the_tree_is_that_of_the_sweep_that_waits_at_every_stage(world, tmp_path):
    waiting = Run(world, tmp_path / "waits", pipeline=False)
    early = Run(world, tmp_path / "early", pipeline=True, longest=world.longest)
    assert early.table() == waiting.table()
    assert early.beams() == waiting.beams()
    assert early.best() == waiting.best()
    assert not waiting.history.given_up
    # With a barrier and in the order submitted, the canonical order is that of the numbers.
    for beam in waiting.history.beams.values():
        ranks = [(waiting.plan.selection.loss(waiting.history[n].score), n) for n in beam]
        assert ranks == sorted(ranks)

    assert early.idle == [] and waiting.idle == []
    assert early.late == []
    orphans = {
        trial.number
        for trial in early.history
        if trial.parent is not None and trial.parent not in early.history.beams[trial.stage - 1]
    }
    assert set(early.history.given_up) == orphans
    pruned = [trial for trial in early.history if trial.state is State.PRUNED]
    assert {trial.number for trial in pruned} == orphans
    assert {trial.outcome.reason for trial in pruned} <= {PARENT_LEFT}
    assert not early.history.ending and not early.history.running()

    last = {span.number: span for span in early.executor.busy}
    wasted = sum(span.end_s - span.begin_s for n, span in last.items() if n in orphans)
    all_of_it = sum(span.end_s - span.begin_s for span in last.values())
    waste = cost_of(early.history)
    assert waste.trials == len(orphans)
    assert waste.seconds == pytest.approx(wasted)
    assert waste.share == pytest.approx(wasted / all_of_it)


@pytest.mark.parametrize(
    "seed", [9, 18, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (12, 37))]
)
def test_a_sweep_goes_on_from_every_line_of_its_journal_to_the_same_tree(seed, tmp_path):
    world = World(seed)
    whole = Run(world, tmp_path / "whole", pipeline=True, longest=world.longest)
    assert whole.history.given_up
    records = whole.records()
    result_file = (whole.folder / RESULT_FILE).read_text()
    for length in range(1, len(records)):
        folder = tmp_path / str(length)
        again = Run(world, folder, True, world.longest, records[:length])
        assert again.table() == whole.table(), length
        assert again.beams() == whole.beams(), length
        numbers = [trial.number for trial in again.history]
        assert numbers == list(range(len(numbers)))
        before = fold(records[:length]).history
        for trial in before:  # what had ended has ended; what was given up stays so
            if trial.number in before.given_up:
                assert trial.number in again.history.given_up
            elif trial.state is not State.RUNNING:
                after = again.history[trial.number]
                assert after == trial or trial.number in again.history.given_up
        # Its files say the same as those made from its journal alone.
        text = (folder / RESULT_FILE).read_text()
        ResultFile(folder, again.plan).rebuild(again.records(), again.history)
        assert (folder / RESULT_FILE).read_text() == text
        assert titles(text) == titles(result_file)


def titles(text):
    return [line for line in text.splitlines() if line.startswith("---")]


@pytest.mark.parametrize("seed", range(10))
def test_a_decision_depends_on_the_history_and_on_nothing_else(seed, tmp_path, monkeypatch):
    """The strategy remembers what it has read; one that reads all of it anew decides the same."""
    remembering = SequentialTopK.next

    def compare(strategy, history):
        decision = remembering(strategy, history)
        assert remembering(replace(strategy), history) == decision
        return decision

    monkeypatch.setattr(SequentialTopK, "next", compare)
    world = World(seed)
    assert Run(world, tmp_path / "early", pipeline=True, longest=True).history.beams


def test_a_sweep_begun_early_ends_the_same_when_it_goes_on_without(tmp_path):
    world = World(12)
    whole = Run(world, tmp_path / "whole", pipeline=True)
    records = whole.records()
    begun = [place for place, record in enumerate(records) if record["event"] == "give_up"]
    for place in begun:
        again = Run(world, tmp_path / str(place), False, False, records[:place])
        assert again.table() == whole.table()
        assert again.history.given_up


def test_the_result_file_keeps_each_tasks_lines_together_and_leaves_out_what_was_given_up(tmp_path):
    world = World(12)
    run = Run(world, tmp_path / "early", pipeline=True)
    assert run.history.given_up
    stage, told = 0, []
    for line in (run.folder / RESULT_FILE).read_text().splitlines():
        if line.startswith("---"):
            stage += 1
            assert line == f"-------------t{stage - 1} beginner---------------"
        else:
            record = json.loads(line)
            assert record["stage"] == stage
            told += [record["trial"]] if "trial" in record else []
    counting = {trial.number for trial in run.history} - set(run.history.given_up)
    assert sorted(told) == sorted(counting)


class Script(World):
    """Three trials, then one from the best: seconds, score and failure by lineage."""

    def __init__(self, told):
        super().__init__(0)
        self.sizes, self.top_k, self.devices, self.maximize = [3, 1], 1, 3, True
        self.retries, self.failing, self.grace_s = 0, 0.0, 0.0
        self.told = told

    def plan(self, pipeline, longest=False):
        plan = super().plan(pipeline)
        return replace(plan, settings=replace(plan.settings, max_failures=0))

    def outcome(self, lineage, attempt):
        seconds, score = self.told[lineage]
        state = State.FAIL if score is None else State.COMPLETE
        numbers = {} if score is None else {"score": score}
        return Outcome(state, numbers=numbers, returned="float", seconds=seconds)


def test_failures_of_trials_that_are_given_up_count_for_nothing(tmp_path):
    told = {(0,): (1, 0.1), (1,): (2, 0.2), (2,): (9, 0.9), (2, 0): (1, 0.5)}
    fails_early = {(0, 0): (0.5, None), (1, 0): (0.5, None)}
    run = Run(Script(told | fails_early), tmp_path / "stays", pipeline=True)
    assert run.history.failures == 0
    assert [run.chain(run.history[n]) for n in run.history.given_up] == [(0, 0), (1, 0)]
    assert cost_of(run.history).seconds == 1.0

    told[(2,)] = (9, 0.0)  # now 1 stays the best, and so the failure of its child counts
    with pytest.raises(TooManyFailuresError, match=r"1 trials failed .*max_failures=0"):
        Run(Script(told | fails_early), tmp_path / "counts", pipeline=True)


def test_a_stage_whose_search_learns_begins_when_its_parents_are_sure():
    listed, learner = ListedSearch([{"x": 1}, {"x": 3}]), Doubling(pairing="every")
    for search in (listed, learner):
        stages = [Stage(1, "a", listed), Stage(2, "b", search, limit=2)]
        strategy, history = SequentialTopK(stages, TopK(1), pipeline=True), History()
        for number in range(2):
            history.start(Trial(number, 1, "a", strategy.next(history).suggestion, None))
        history.finish(0, Outcome(State.COMPLETE, score=0.5))
        early = strategy.next(history)
        if search is listed:
            assert early == Start(stages[1], listed.suggestion(0), parent=0)
            continue
        assert isinstance(early, Wait) and not learner.asked
        history.finish(1, Outcome(State.COMPLETE, score=0.9))
        assert strategy.next(history) == Select(stages[0], (1,))
        history.select(1, (1,))
        doubled = Suggestion(0, {"x": 6}, "own", source=1)
        assert strategy.next(history) == Start(stages[1], doubled, parent=1)


class BestPair:
    """The two neighbours in time with the highest sum: a trial that is out may return."""

    monotone = False

    def loss(self, score):
        return -score

    def __call__(self, finished):
        ranked = [trial for trial in finished if trial.score is not None]
        pairs = list(pairwise(sorted(ranked, key=lambda trial: trial.number)))
        return list(max(pairs, key=lambda pair: sum(t.score for t in pair), default=()))


def test_no_stage_begins_early_where_a_trial_that_is_out_may_return():
    stages = [Stage(n, f"t{n}", ListedSearch([{"x": i} for i in range(4)])) for n in (1, 2)]
    strategy, history = SequentialTopK(stages, BestPair(), pipeline=True), History()
    for number in range(4):
        history.start(Trial(number, 1, "t1", strategy.next(history).suggestion, None))
    for number, score in ((0, 5.0), (1, 4.0), (2, 1.0)):
        history.finish(number, Outcome(State.COMPLETE, score=score))
        assert strategy.next(history) == Wait()
    history.finish(3, Outcome(State.COMPLETE, score=9.0))
    assert strategy.next(history) == Select(stages[0], (2, 3))  # 1 + 9 > 5 + 4


# -- with real jobs ---------------------------------------------------------------------------------


def begin_early(chain: Bench):
    """The last trial of `a` is held, and all of `b` that can start before it ends has started."""
    process = chain.start_held(7, *COMMAND, HOLDS="[3]", FOREVER="[[1, 9]]")
    early = {(2, 4), (2, 9), (1, 4), (1, 9)}
    wait_until(lambda: started(chain) >= early and len(chain.finished()) == 5, "all of b began")
    return process


def test_real_jobs_that_began_early_are_kept_or_ended(chain: Bench) -> None:
    output = chain.release(begin_early(chain))
    check_the_tree(chain)
    # What (2, 4) did while the beam was not known was not done again.
    assert len(chain.ledger("start")) == 3 + 4 + 2
    assert "Given up: 2 trials whose parent left the beam" in output


def test_killed_while_jobs_run_early_it_goes_on_to_the_same_tree(chain: Bench) -> None:
    chain.kill(begin_early(chain))
    chain.hold.unlink()
    output = chain.run(*COMMAND, FOREVER="[[1, 9]]")
    assert "Given up: 2 trials" in output
    check_the_tree(chain)
