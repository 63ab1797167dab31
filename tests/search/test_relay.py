"""Search relay: hand-made tables, Optuna's own study, SciPy and the uninterrupted sweep are the oracles."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from hashlib import blake2b

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc
from support.lineages import Simulated, completed
from support.plans import plan_of
from support.spaces import NAMES, NUMBERS, SINGLE

from autocl_sweeper.distributions import Choice, Interval, Space, same
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.journal import read
from autocl_sweeper.search.pooled import nearest
from autocl_sweeper.search.relay import RelaySearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.decisions import Done, Select, Stage, Start, views
from autocl_sweeper.strategy.sequential import SequentialTopK
from autocl_sweeper.types import Carried, History, Outcome, Report, State, Suggestion, Trial

LINE = {"x": Interval(0.0, 1.0)}
APP = {"x": 0.5}


class Stages:
    """Stages in a history written by hand, and a search's view of the last of them."""

    def __init__(self, space, *tables, jobs=8, k=2, transfer=True, **rules):
        """tables: for each earlier stage, rows of (params, score); None: the trial failed."""
        self.searches = [
            RelaySearch(space, 0, f"task{place}", **rules) for place in range(len(tables) + 1)
        ]
        stages = [
            Stage(place + 1, f"task{place}", search, None, jobs)
            for place, search in enumerate(self.searches)
        ]
        self.history, selection = History(), TopK(k)
        carried = () if transfer else None
        self.views = views(stages, self.history, selection, carried)
        for stage, table in enumerate(tables, start=1):
            beams = self.history.beams.get(stage - 1, (None,))
            for index, (params, score) in enumerate(table):
                self.add(Suggestion(index, params), score, beams[0], stage)
            ranked = selection(self.history.stage(stage))
            self.history.select(stage, [trial.number for trial in ranked])

    def add(self, suggestion, score, parent=None, stage=None, state=State.COMPLETE, reports=()):
        """A finished trial; `score` None: it failed, "running": it still runs."""
        stage = stage or len(self.views)
        number = len(self.history)
        trial = Trial(number, stage, f"task{stage - 1}", suggestion, parent)
        self.history.start(trial)
        for report in reports:
            self.history.report(Report(number, *report))
        if score != "running":
            outcome = Outcome(State.FAIL if score is None else state, score=score)
            trial = self.history.finish(number, outcome)
        self.views[stage - 1].note(trial)
        return trial

    def ask(self):
        return self.searches[-1].ask(self.views[-1])

    def run(self, scores):
        """Ask and finish; scores may be a function of the params."""
        told = []
        for score in scores:
            suggestion = self.ask()
            told.append(suggestion)
            self.add(suggestion, score, suggestion.parent)
        return told


def points(*pairs):
    return [({"x": x}, score) for x, score in pairs]


# -- how a stage begins -----------------------------------------------------------------------------


def test_the_first_stage_begins_with_the_apps_configuration_and_scipys_sobol_points():
    stages = Stages(Space(LINE | {"y": Interval(1e-4, 1.0, log=True)}, init=APP | {"y": 0.1}))
    told = stages.run(range(8))
    assert told[0].params == {"x": 0.5, "y": 0.1}
    assert [one.origin for one in told] == ["init"] + ["fresh"] * 7
    # Whatever the scramble, Sobol's first 8 points lie in different eighths of every axis.
    eighths = [{int(8 * one.params["x"]) for one in told[1:]}]
    eighths += [{int(8 * (1 + math.log10(one.params["y"]) / 4)) for one in told[1:]}]
    assert [len(axis) for axis in eighths] == [7, 7]
    plain = qmc.Sobol(2, scramble=False).random(8)
    assert len({int(8 * x) for x in plain[:, 0]}) == 8  # as they do without a scramble


def test_a_stage_whose_space_the_apps_configuration_is_not_in_begins_with_sobol():
    told = Stages(Space(LINE, init={"x": 7.0})).run(range(3))
    assert [one.origin for one in told] == ["fresh"] * 3


FIRST = points((0.10, 5), (0.20, 9), (0.30, 7), (0.40, 1))
SECOND = points((0.20, 3), (0.55, 8), (0.30, 6), (0.65, 7))


def test_a_later_stage_begins_with_its_parents_configurations_and_earlier_winners():
    # The beam of the second stage is 0.55, then 0.65. Winners by 0.9 / rank of the stage before and
    # 0.81 / rank of the one before that: 0.55: 0.9; 0.2: 0.81; 0.3: 0.9 / 3 + 0.81 / 2 = 0.705;
    # 0.65: 0.45; 0.1: 0.27.
    stages = Stages(Space(LINE, init=APP), FIRST, SECOND, jobs=20, carried=5)
    told = stages.run([1] * 5)
    best, second = 5, 7
    assert [one.params["x"] for one in told] == [0.55, 0.65, 0.2, 0.3, 0.1]
    assert [one.origin for one in told] == ["own", "own", "carried", "carried", "carried"]
    assert [one.parent for one in told] == [best, second, best, second, best]
    assert [one.source for one in told] == [5, 7, 1, 6, 0]  # the latest trial that won with it
    assert [one.carried.task for one in told] == ["task1", "task1", "task0", "task1", "task0"]


@pytest.mark.parametrize(("jobs", "carried"), [(1, 1), (2, 1), (4, 2), (6, 3), (8, 4), (30, 4)])
def test_as_many_as_allowed_and_at_most_half_of_the_jobs_are_carried(jobs, carried):
    told = Stages(Space(LINE), FIRST, SECOND, jobs=jobs, carried=4).run(range(min(jobs, 8)))
    assert sum(one.origin in ("own", "carried") for one in told) == carried


def test_parents_with_the_same_configuration_begin_once_with_the_better_of_them():
    stages = Stages(Space(LINE), points((0.2, 1)), points((0.6, 9), (0.3, 1)))
    stages.history.beams[2] = (1, 3, 2)  # 3 has the winner's configuration
    stages.add(Suggestion(1, {"x": 0.6}), 8.5, 0, stage=2)
    told = stages.run(range(3))
    assert [(one.params["x"], one.parent) for one in told[:2]] == [(0.6, 1), (0.3, 2)]
    assert [one.params["x"] for one in told].count(0.6) == 1


def test_keys_of_another_space_are_dropped_clipped_or_drawn_and_the_count_says_so():
    before = [({"+x": 3.0, "gone": 1, "kind": "old", "n": 4, "same": "b"}, 1.0)]
    space = Space(
        {
            "x": Interval(0.0, 2.0),  # 3 is outside
            "kind": Choice(("new", "newer")),  # "old" is no value
            "n": Interval(1, 8, integer=True),
            "added": Interval(5.0, 6.0),
            "same": Choice(("a", "b")),
        }
    )
    (one,) = Stages(space, before).run([1])
    assert (one.params["x"], one.params["n"], one.params["same"]) == (2.0, 4, "b")
    assert set(one.params) == set(space) and 5 <= one.params["added"] <= 6
    assert one.carried == Carried("task0", keys=2)
    again = Stages(space, before).ask()
    assert again == one


def test_without_transfer_a_later_stage_is_searched_like_the_first():
    first = Stages(Space(LINE, init=APP)).run([1] * 12)
    later = Stages(Space(LINE, init=APP), FIRST, transfer=False)
    later.searches[-1] = RelaySearch(Space(LINE, init=APP), 0, "task0")
    told = later.run([1] * 12)
    assert [(a.params, a.origin) for a in told] == [(b.params, b.origin) for b in first]
    assert [one.parent for one in told] == [1, 2] * 6


# -- the model, the guard, what is fresh ------------------------------------------------------------


def optunas_own(distributions, rows, seed):
    """What a study suggests to which these rows were added as anybody would."""
    sampler = optuna.samplers.TPESampler(
        multivariate=True, constant_liar=False, n_startup_trials=8, seed=seed
    )
    study = optuna.create_study(sampler=sampler)
    for params, value in rows:
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=value)
        )
    return study.ask(distributions).params


def test_the_model_is_optunas_multivariate_tpe_on_ranks_of_this_stage_and_those_before():
    space = Space({"x": Interval(0.0, 1.0), "y": Interval(1e-3, 1.0, log=True)})
    tables = [
        [({"x": (i + place) % 7 / 7, "y": 10 ** -(i % 3)}, -i) for i in range(4)]
        for place in range(6)
    ]
    stages = Stages(space, *tables, jobs=20, carried=0, guard=math.inf)
    told = stages.run([5, 7])  # two results: the stage's ranks are 2/2 and 1/2
    suggestion = stages.ask()
    dice = {"x": optuna.distributions.FloatDistribution(0, 1)}
    dice["y"] = optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)
    rows = [
        (dict(params), (rank + 1) / 4)
        for table in tables[-4:]  # the last four stages alone
        for rank, (params, _) in enumerate(table)
    ]
    rows += [(dict(told[0].params), 1.0), (dict(told[1].params), 0.5)]
    digest = blake2b(b"0/task6/2", digest_size=8).digest()
    expected = optunas_own(dice, rows, int.from_bytes(digest, "big") % 2**32)
    assert suggestion.origin == "model" and suggestion.params == expected


def learned_from(stages):
    """The tasks of the earlier stages that the model learns from."""
    search = stages.searches[-1]
    return {one.stage.task for one in search._earlier if search._agrees(one, search._own)}


def test_a_stage_that_contradicts_this_one_is_left_out_from_four_results_on():
    grid = [i / 10 for i in range(11)]
    agrees = points(*((x, x) for x in grid))
    contradicts = points(*((x, -x) for x in grid))
    stages = Stages(Space(LINE), contradicts, agrees, jobs=40, carried=0)
    for count in range(1, 6):
        suggestion = stages.ask()
        told = learned_from(stages)
        assert told == ({"task0", "task1"} if count <= 4 else {"task1"}), count
        stages.add(suggestion, suggestion.params["x"], suggestion.parent)


@pytest.mark.parametrize(
    ("scores", "learned"),
    [((1, 2, 3, 4), True), ((2, 4, 1, 3), True), ((3, 4, 1, 2), False), ((4, 3, 2, 1), False)],
)
def test_an_earlier_stage_is_left_out_one_standard_error_below_no_correlation(scores, learned):
    # Spearman's rho of 1234 with these is 1, 0, -0.6 and -1; its standard error is 1 / sqrt(4 - 1) = 0.58.
    earlier = points(*((i / 10, i) for i in range(11)))
    stages = Stages(Space(LINE), earlier, jobs=40, carried=0)
    for place, score in enumerate(scores):
        stages.add(Suggestion(place, {"x": 0.2 + 0.2 * place}), score, 9)
    stages.ask()
    assert (learned_from(stages) == {"task0"}) is learned
    stages.searches[-1] = RelaySearch(Space(LINE), 0, "task1", carried=0, guard=1.8)
    stages.ask()  # not even -1 lies 1.8 standard errors below 0
    assert learned_from(stages) == {"task0"}


def test_an_eighth_of_the_suggestions_is_fresh_whatever_the_model_says():
    stages = Stages(Space(LINE), FIRST, SECOND, jobs=40, carried=4)
    told = stages.run(range(40))
    origins = [one.origin for one in told]
    assert origins[:4] == ["own", "own", "carried", "carried"]
    later = origins[10:]
    assert [i for i, origin in enumerate(origins) if origin == "fresh"][-4:] == [15, 23, 31, 39]
    assert later.count("model") == len(later) - 4


def test_a_failed_trial_is_no_score_and_is_not_suggested_again():
    space = Space({"x": Choice((1, 2, 3, 4, 5))})
    stages = Stages(space, jobs=20)
    told = stages.run([None, 3.0, None, "running", 1.0])
    assert sorted(one.params["x"] for one in told) == [1, 2, 3, 4, 5]
    assert stages.ask() is None
    assert [result.number for result, _ in stages.searches[-1]._own.ranked] == [1, 4]


def test_a_stopped_trial_ranks_last_and_neither_wins_nor_counts_in_the_guard():
    stages = Stages(Space(LINE), points((0.2, 1), (0.4, 2)), jobs=20)
    stages.add(Suggestion(2, {"x": 0.9}), 99.0, None, 1, State.PRUNED, [(3, 50.0), (5, 99.0)])
    stages.add(Suggestion(3, {"x": 0.8}), 98.0, None, 1, State.PRUNED, [(9, 98.0)])
    told = stages.run([1] * 4)
    assert {0.8, 0.9}.isdisjoint(one.params["x"] for one in told)
    (earlier,) = stages.searches[-1]._earlier
    # rank / n: complete ones, then the one that came further
    shares = {result.number: share for result, share in earlier.ranked}
    assert shares == {1: 0.25, 0: 0.5, 3: 0.75, 2: 1.0}
    assert [result.number for result, _ in earlier.complete] == [0, 1]


def test_repeats_of_a_suggestion_are_one_result_with_their_mean():
    stages = Stages(Space(LINE), points((0.2, 5), (0.4, 9), (0.6, 6)), jobs=20, k=1)
    stages.add(Suggestion(1, {"x": 0.4}), 0.0, None, stage=1)  # 9 was luck: 4.5 on average
    told = stages.run([1] * 4)
    assert [one.params["x"] for one in told[1:3]] == [0.6, 0.2]
    (earlier,) = stages.searches[-1]._earlier
    assert {one.number: one.loss for one, _ in earlier.ranked} == {0: -5, 1: -4.5, 2: -6}


def test_without_scores_the_search_goes_on_with_sobol_points():
    stages = Stages(Space(LINE, init=APP), jobs=20)
    told = stages.run(["running"] * 20)
    assert [one.origin for one in told] == ["init"] + ["fresh"] * 19
    assert len({one.params["x"] for one in told}) == 20


def test_a_finite_space_is_searched_to_its_end_and_no_further():
    space = Space(
        {"opt": Choice(("sgd", "adam")), "momentum": Choice((0.0, 0.9)), "n": Choice((1, 2))},
        when={"momentum": {"opt": ["sgd"]}},
    )
    stages = Stages(space, jobs=50)
    told = stages.run(range(6))  # sgd has 2 * 2, adam 2
    assert len({json.dumps(dict(one.params), sort_keys=True) for one in told}) == 6
    assert stages.ask() is None and stages.searches[-1].size == 6


@pytest.mark.parametrize(
    ("option", "value"), [("fresh", 1.5), ("startup", 0), ("decay", 0.0), ("bandwidth", -1.0)]
)
def test_a_constant_outside_its_bounds_is_refused_by_name(option, value):
    with pytest.raises(ConfigurationError, match=rf"search\.{option}={value}"):
        RelaySearch(Space(LINE), 0, "t", **{option: value})


def test_an_unknown_constant_is_refused_with_those_there_are():
    with pytest.raises(ConfigurationError, match=r"(?s)\['frehs'\].*startup, fresh"):
        RelaySearch(Space(LINE), 0, "t", frehs=0.5)


@pytest.mark.parametrize(
    ("distribution", "value", "moved"),
    [
        (Interval(0.0, 1.0), 3, [1.0]),
        (Interval(1, 8, integer=True), 4.6, [5]),
        (Interval(1, 8, integer=True), True, []),
        (Interval(0.0, 1.0), "high", []),
        (Choice((16, 2, 8)), 9, [8]),
        (Choice(("a", "b")), "b", ["b"]),
        (Choice(("a", "b")), "c", []),
        (Choice(("a", 1)), 2, []),  # without an order nothing is near
    ],
)
def test_a_value_moves_to_the_nearest_one_where_there_is_an_order(distribution, value, moved):
    assert nearest(distribution, value) == moved


# -- same view, same answer -------------------------------------------------------------------------

SCRIPT = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from search.test_relay import FIRST, LINE, SECOND, Space, Stages
told = Stages(Space(LINE), FIRST, SECOND, jobs=14).run(range(14))
print(json.dumps([[dict(one.params), one.origin, one.parent] for one in told]))
"""


def test_another_process_gives_the_same_answers():
    told = Stages(Space(LINE), FIRST, SECOND, jobs=14).run(range(14))
    argv = [sys.executable, "-c", SCRIPT, json.dumps([os.path.dirname(os.path.dirname(__file__))])]
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    printed = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(printed.stdout) == [[one.params, one.origin, one.parent] for one in told]


def sweep(folder, devices=1, records=(), **changed):
    """A real sweep over simulated devices; what every trial got, and the beams."""
    plan = plan_of(
        "task=a,b,c",
        params={"x": "interval(0,1)", "kind": "choice(p,q,r)"},
        search={"factory": "autocl_sweeper.search.relay.RelaySearch", "startup": 4},
        **{"jobs": 6, **changed},
    )

    def end(lineage):
        given = lineage[-1].suggestion.params
        if int(1000 * given["x"]) % 5 == 4:
            return Outcome(State.FAIL, "it crashed", seconds=1.0)
        return completed(-abs(given["x"] - 0.6) - (given["kind"] != "q"), folder)

    history = Simulated(folder, plan, end, devices, records).history
    return [(t.suggestion, t.parent, t.score) for t in history], history.beams


def test_a_sweep_that_is_continued_from_any_line_asks_what_the_uninterrupted_one_asked(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    whole = sweep(tmp_path / "whole")
    assert len(whole[0]) == 18
    origins = {suggestion.origin for suggestion, _, _ in whole[0]}
    assert origins == {"own", "carried", "model", "fresh"}
    records = read(tmp_path / "whole")
    for length in range(1, len(records), 3):
        assert sweep(tmp_path / str(length), records=records[:length]) == whole, length


def test_a_sweep_on_several_devices_runs_its_jobs_without_repeating_one(tmp_path):
    told, beams = sweep(tmp_path / "four", devices=4, jobs=9)
    assert len(told) == 27 and set(beams) == {1, 2, 3}
    for stage in range(3):
        params = [repr(sorted(s.params.items())) for s, _, _ in told[9 * stage : 9 * stage + 9]]
        assert len(set(params)) == 9


# -- any space, any history -------------------------------------------------------------------------

DISTRIBUTIONS = NUMBERS | st.sampled_from([NAMES, *SINGLE])


@st.composite
def spaces(draw):
    axes = {f"k{i}": draw(DISTRIBUTIONS) for i in range(draw(st.integers(0, 3)))}
    when, zips = {}, {}
    if draw(st.booleans()):
        axes["mode"] = Choice(("on", "off"))
        axes["only"] = draw(DISTRIBUTIONS)
        when = {"only": {"mode": ["on"]}}
    if draw(st.booleans()):
        axes["p,q"] = Choice((["a", 1], ["b", 2], ["c", 3]))
        zips = {"p,q": ["p", "q"]}
    return Space(axes, when, zips, {"k0": 1, "mode": "off", "p": "b", "q": 2})


def lies_in(space, params):
    point = space.point(params)
    inside = all(space[axis].position(value) is not None for axis, value in point.items())
    whole = {axis: space[axis].at(0.5) for axis in space} | point
    there = space.params(whole)
    return (
        inside and there.keys() == params.keys() and all(same(there[k], params[k]) for k in there)
    )


@settings(max_examples=40, derandomize=True)
@given(st.lists(spaces(), min_size=1, max_size=3), st.integers(1, 14), st.randoms(), st.booleans())
def test_suggestions_lie_in_the_space_and_none_repeats(given_spaces, jobs, dice, transfer):
    stages = [
        Stage(i + 1, f"t{i}", RelaySearch(space, i, f"t{i}", startup=4), None, jobs)
        for i, space in enumerate(given_spaces)
    ]
    strategy = SequentialTopK(stages, TopK(2), carried=() if transfer else None)
    history, seen = History(), set()

    def finish(trial):
        state = dice.choice([State.COMPLETE, State.COMPLETE, State.FAIL, State.PRUNED])
        if trial.suggestion.index == 0:
            state = State.COMPLETE  # the next stage needs a parent
        score = None if state is State.FAIL else dice.choice([0.0, 1.0, dice.random()])
        history.finish(trial.number, Outcome(state, score=score))

    while not isinstance(decision := strategy.next(history), Done):
        if isinstance(decision, Select):
            history.select(decision.stage.number, decision.beam)
            continue
        if not isinstance(decision, Start) or len(history.running()) > dice.randint(0, 3):
            finish(dice.choice(history.running()))
            continue
        stage, suggestion = decision.stage, decision.suggestion
        assert lies_in(given_spaces[stage.number - 1], suggestion.params)
        key = (stage.number, repr(sorted(suggestion.params.items())))
        assert key not in seen
        seen.add(key)
        history.start(Trial(len(history), stage.number, stage.task, suggestion, decision.parent))
    for stage in stages:
        size = stage.search.size
        assert len(history.stage(stage.number)) == (jobs if size is None else min(jobs, size))


def test_a_listed_stage_after_it_begins_while_its_last_trials_run_and_the_tree_is_the_same(
    tmp_path,
):
    listed = {"b": [{"x": 0.1, "kind": "q"}, {"x": 0.7, "kind": "q"}]}
    waits = sweep(tmp_path / "waits", 4, task_params=listed, pipeline=False)
    early = sweep(tmp_path / "early", 4, task_params=listed, pipeline=True)
    events = [one["event"] for one in read(tmp_path / "early")]
    starts = [place for place, event in enumerate(events) if event == "start"]
    assert starts[6] < events.index("select"), "the first trial of b starts before a is over"

    def scores(told, stage):
        history, beams = told
        return [history[number][2] for number in beams[stage]]

    assert [scores(early, stage) for stage in (1, 2, 3)] == [
        scores(waits, stage) for stage in (1, 2, 3)
    ]
