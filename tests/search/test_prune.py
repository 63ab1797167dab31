"""The rules of early stopping, against tables on paper, brute force and scipy."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from support.plans import SETTINGS, plan_of

from autocl_sweeper.curves import Curve, Curves
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.pruning import pruning_of
from autocl_sweeper.prune.asha import Asha
from autocl_sweeper.prune.median import Median
from autocl_sweeper.prune.watch import EarlyStopping
from autocl_sweeper.ranks import Agreement, spearman
from autocl_sweeper.types import History, Outcome, Report, State, Suggestion, Trial

FULL = 900  # steps of a full training: rungs at 100 and 300
INF = math.inf


def prune(rule, curves, number, full):
    return rule.prune(Curves(curves), number, full)


def arrive(rule, losses, step=100):
    """Trials that reach a rung one after the other, each with its loss: who goes on."""
    curves, going_on = {}, []
    for number, loss in enumerate(losses):
        curves[number] = Curve([(step, loss)])
        if prune(rule, curves, number, FULL) is None:
            going_on.append(number)
    return going_on


# The loss of each trial in the order of arrival; beside it, on paper, rank of n and the limit.
@pytest.mark.parametrize(
    "k, losses, going_on",
    [
        # 1/1<=2 2/2<=2 | 3/3>2 | 1/4<=2 | 5/5>2 | 2/6<=2 | 7/7>2, 3/8>2 | 3/9<=3
        (2, [5, 6, 7, 4, 9, 4.5, 8, 4.8, 4.7], [0, 1, 3, 5, 8]),
        # with k=1: 1/1 | 2/2>1 | 1/3<=1 | 2/4>1 | 2/5>1 | 2/6<=2
        (1, [5, 6, 4, 5, 5, 4.5], [0, 2, 5]),
        # equal losses share the better rank: nobody is stopped for a tie
        (1, [3, 3, 3, 3], [0, 1, 2, 3]),
        # what is not finite ranks behind all, the others of its kind included
        (2, [math.nan, INF, math.nan, 1.0, 2.0], [0, 1, 3, 4]),
        (3, [1, 2, 3, 4], [0, 1, 2]),
    ],
)
def test_of_n_trials_at_a_rung_the_best_k_or_third_go_on(k, losses, going_on):
    assert arrive(Asha(k), losses) == going_on


def test_a_rung_is_judged_once_at_the_first_report_at_or_beyond_it_by_its_value():
    rule = Asha(1)
    others = {0: Curve([(90, 9.0), (110, 1.0), (320, 0.5), (900, 0.1)])}
    table = [
        ([(99, 9.0)], None),  # below the first rung
        ([(99, 0.0), (130, 5.0)], 100),  # 5.0 counts, not the 0.0 before
        ([(100, 0.9), (299, 9.0)], None),  # between the rungs
        ([(100, 0.9), (310, 0.6)], 300),
        ([(100, 0.9), (310, 0.4)], None),
        ([(100, 5.0), (150, 9.0)], None),  # judged at 100, and not again
        ([(310, 0.7)], 300),  # 0.7 beats 1.0 at the first rung, not 0.5 at the second
        ([(310, 1.5)], 100),
    ]
    for reports, rung in table:
        told = prune(rule, {**others, 1: Curve(reports)}, 1, FULL)
        assert (told is None) == (rung is None), reports
        assert told is None or told == f"rank 2 of 2 at the rung of {rung} steps, where 1 go on"


def test_what_did_well_before_skips_the_first_rung_and_counts_there_for_others():
    rule, good = Asha(1), {0: Curve([(100, 1.0), (300, 1.0)])}
    assert prune(rule, {**good, 1: Curve([(100, 2.0)], favoured=True)}, 1, FULL) is None
    assert prune(rule, {**good, 1: Curve([(100, 2.0)])}, 1, FULL) is not None
    later = Curve([(100, 2.0), (300, 2.0)], favoured=True)
    assert prune(rule, {**good, 1: later}, 1, FULL) is not None
    assert prune(rule, {0: Curve([(100, 1.0)], True), 1: Curve([(100, 2.0)])}, 1, FULL) is not None


@pytest.mark.parametrize(
    "rule, full, steps",
    [
        (Asha(2), 900, (100, 300)),
        (Asha(2), 9, (1, 3)),
        (Asha(2), 10, (2, 4)),  # 1.11 and 3.33: the first whole step at or beyond
        (Asha(2), 1, (1, 1)),
        (Asha(2, eta=2, rungs=(1 / 4, 1 / 2)), 100, (25, 50)),
        (Asha(2, rungs=(0.1,)), 30, (3,)),
        (Median(), 900, (100,)),
        (Median(warmup=7), 900, (7,)),
    ],
)
def test_rungs_lie_at_whole_steps(rule, full, steps):
    assert rule.steps(full) == steps


def test_before_the_warm_up_is_over_no_rung_stops_a_trial():
    curves = {0: Curve([(120, 1.0)]), 1: Curve([(120, 2.0)])}
    assert prune(Asha(1, warmup=121), curves, 1, FULL) is None
    assert prune(Asha(1, warmup=120), curves, 1, FULL) is not None


def completed(losses_at_rung, finals):
    pairs = zip(losses_at_rung, finals, strict=True)
    return {n: Curve([(100, a), (900, b)], final=b) for n, (a, b) in enumerate(pairs)}


def test_early_stopping_is_off_while_a_rung_says_nothing_of_the_end():
    rule, trial = Asha(1), {99: Curve([(100, 100.0)])}
    same, turned = [1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1]
    assert prune(rule, completed(same, same) | trial, 99, FULL) is not None
    assert prune(rule, completed(same, turned) | trial, 99, FULL) is None
    # On paper: 1 - 6 * sum(d^2) / (8 * 63); d^2 sums to 58 for 0.31, to 60 for 0.286.
    weak = [4, 2, 1, 7, 8, 3, 5, 6]  # d: 3 0 -2 3 3 -3 -2 -2 -> 9+0+4+9+9+9+4+4 = 48: 0.43
    assert rule.distrust(Curves(completed(same, weak)), FULL) is None
    weaker = [5, 2, 1, 8, 7, 3, 4, 6]  # 16+0+4+16+4+9+9+4 = 62: 0.262
    assert rule.distrust(Curves(completed(same, weaker)), FULL) == (
        "the scores at 100 steps say little about the final ones (rank correlation 0.26 over 8"
        " completed trials, below 0.3)"
    )
    few = completed(same[:7], turned[:7])  # seven are too few to tell
    assert rule.distrust(Curves(few), FULL) is None
    assert prune(rule, few | trial, 99, FULL) is not None


def test_the_median_rule_compares_the_best_loss_with_the_running_means_of_completed_trials():
    curves = {
        0: Curve([(100, 8.0), (200, 4.0), (900, 1.0)], final=1.0),  # up to 200: mean 6
        1: Curve([(100, 6.0), (200, 4.0), (900, 1.0)], final=1.0),  # 5
        2: Curve([(100, 9.0), (200, 9.0), (900, 3.0)], final=3.0),  # 9
        3: Curve([(100, 1.0), (200, 1.0)]),  # it runs: no part of the median, which is 6
    }
    rule = Median()
    for reports, stopped in [
        ([(100, 9.0), (200, 6.0)], False),  # its best is the median
        ([(100, 9.0), (200, 6.1)], True),
        ([(100, 5.0), (200, 99.0)], False),  # it has been better
        ([(99, 99.0)], False),  # warm-up: a ninth of 900
        ([(200, math.nan)], True),
    ]:
        told = prune(rule, {**curves, 4: Curve(reports)}, 4, FULL)
        assert (told is not None) == stopped, reports
    assert prune(rule, {**curves, 4: Curve([(200, 99.0)], favoured=True)}, 4, FULL) is None
    assert prune(rule, {**curves, 4: Curve([(300, 99.0)], favoured=True)}, 4, FULL) is not None
    del curves[2]  # two completed trials have no say
    assert prune(rule, {**curves, 4: Curve([(200, 99.0)])}, 4, FULL) is None
    assert (
        prune(Median(warmup=300), {**curves, 2: curves[0], 4: Curve([(299, 99.0)])}, 4, 9) is None
    )


# -- whatever arrives -------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0])
sides = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*[st.lists(numbers, min_size=n, max_size=n)] * 2)
)


@given(sides)
def test_the_rank_correlation_is_scipys(both):
    one, other = both
    if len(set(one)) > 1 and len(set(other)) > 1:
        assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-9)
    else:
        assert spearman(one, other) == 0.0


def judged(reports, k, eta, rungs, table):
    """The rule again, word for word and the slow way."""
    for rung in rungs:
        first = next(((s, loss) for s, loss in reports if s >= rung), None)
        if first is None or first[0] != reports[-1][0]:
            continue
        there = [next((loss for s, loss in one if s >= rung), None) for one in table]
        there = [INF if math.isnan(one) else one for one in there if one is not None]
        own = first[1]
        rank = len(there) if not math.isfinite(own) else sum(one < own for one in there) + 1
        if rank > max(k, len(there) // eta):
            return True
    return False


@given(st.permutations(range(9)), st.integers(1, 4))
def test_the_best_k_are_never_stopped_and_no_other_goes_on_when_the_best_come_first(arrival, k):
    going_on = arrive(Asha(k), [float(loss) for loss in arrival])
    assert {place for place, loss in enumerate(arrival) if loss < k} <= set(going_on)
    assert len(arrive(Asha(k), [float(loss) for loss in sorted(arrival)])) == k


def by_definition(rule, curves, number):
    """Whether a rule stops a trial, with nothing kept from before."""
    reports = curves[number].reports
    final = {n: c.final for n, c in curves.items() if c.final is not None}
    if isinstance(rule, Median):
        step = reports[-1][0]
        upto = {n: [loss for s, loss in curves[n].reports if s <= step] for n in final}
        means = [fmean(there) for there in upto.values() if there]
        late = step >= (300 if curves[number].favoured else 100)
        return late and len(means) >= 3 and min(loss for _, loss in reports) > median(means)
    for rung in rule.steps(FULL):
        at = {
            n: next((loss for s, loss in c.reports if s >= rung), None) for n, c in curves.items()
        }
        both = [(at[n], last) for n, last in final.items() if at[n] is not None]
        one, other = zip(*both, strict=True) if both else ((), ())
        if len(both) < 8:
            continue
        if len({*one}) == 1 or len({*other}) == 1 or spearmanr(one, other).statistic < 0.3:
            return False
    table = [curve.reports for curve in curves.values()]
    rungs = rule.steps(FULL)[curves[number].favoured :]
    return judged(reports, rule.k, rule.eta, rungs, table)


@pytest.mark.parametrize("likeness", [0.1, 0.3, 0.9])  # of early losses and final ones
@pytest.mark.parametrize("rule", [Asha(2), Asha(4, 2), Median()])
def test_decisions_are_those_of_the_definition_however_the_table_came_to_be(rule, likeness):
    """Trials report, complete, fail and run again, in any order."""
    dice, curves, plain, stops, distrusted = random.Random(7), Curves(), {}, 0, 0
    for number in range(120):
        curves[number] = plain[number] = Curve([], favoured=dice.random() < 0.1)
        level = dice.randint(0, 9)
        for step in (90, 100, 200, 300, 900)[: dice.randint(3, 5)]:
            loss = float(level if dice.random() < likeness else dice.randint(0, 9))
            curves.report(number, step, loss)
            plain[number] = replace(plain[number], reports=[*plain[number].reports, (step, loss)])
            told = rule.prune(curves, number, FULL)
            assert (told is not None) == by_definition(rule, plain, number)
            stops += told is not None
        distrusted += rule.distrust(curves, FULL) is not None
        if step == 900:
            curves[number] = replace(curves[number], final=loss)
            plain[number] = replace(plain[number], final=loss)
        if dice.random() < 0.15:
            lost = dice.choice([*plain])
            del curves[lost], plain[lost]
    assert stops
    assert (distrusted > 0) == (isinstance(rule, Asha) and likeness < 0.9)


def test_a_correlation_that_decides_cannot_cross_its_limit():
    """Whatever comes or goes; worst are rows at opposite ends of both columns."""
    dice, decided = random.Random(2), 0
    for _ in range(400):
        n, likeness = dice.randint(30, 90), dice.choice([-1.0, 0.0, 0.5, 1.0])
        one = [dice.randint(0, 30) for _ in range(n)]
        other = [likeness * a + dice.random() * dice.choice([1, 30]) for a in one]
        found, limit = Agreement.of(one, other), dice.random()
        kept = n - dice.randint(0, 3)
        come = [dice.choice([(99, -99), (-99, 99), (99, 99), (15, 0)])] * dice.randint(0, 3)
        if found.decides(limit, n - kept + len(come)):
            decided += 1
            ends = zip(*come, strict=True) if come else ((), ())
            now = [[*side[:kept], *end] for side, end in zip((one, other), ends, strict=True)]
            assert (spearman(*now) < limit) == (found.correlation < limit)
    assert decided > 50


def test_the_self_check_costs_a_completed_trial_about_the_same_however_many_there_are(monkeypatch):
    sorted_rows, whole = [], Agreement.of
    count = lambda one, other: (sorted_rows.append(len(one)), whole(one, other))[1]  # noqa: E731
    monkeypatch.setattr(Agreement, "of", count)
    dice, curves, rule, rows = random.Random(5), Curves(), Asha(2), []
    for number in range(1600):
        level = dice.random()
        reports = [(step, level + dice.random() / 2) for step in (100, 300, 900)]
        curves[number] = Curve(reports, final=reports[-1][1])
        assert rule.distrust(curves, FULL) is None
        if number + 1 in (400, 800, 1600):
            rows.append(sum(sorted_rows))
    # Twice the trials, twice the work; sorting all of them each time would be four times as much.
    assert rows[2] - rows[1] < 2.5 * (rows[1] - rows[0]) < 2.5 * 400 * 100


# -- the history as the rule sees it ----------------------------------------------------------------


def begin(history, number, origin=None, stage=1, attempt=1):
    suggestion = Suggestion(number, {}, origin)
    history.start(Trial(number, stage, "a", suggestion, None, attempt=attempt))


def watch(history, rule=None, max_steps=FULL):
    return EarlyStopping(dict.fromkeys((1, 2), rule or Asha(1)), max_steps, history, lambda s: -s)


def judge(history, stopping, number, step, score):
    assert history.report(Report(number, step, score))
    return stopping.judge(history[number])


def test_scores_are_ranked_by_their_loss_and_each_stage_has_its_own_table():
    history = History()
    stopping = watch(history)
    for number, stage in enumerate((1, 1, 2, 2)):
        begin(history, number, stage=stage)
    assert judge(history, stopping, 0, 100, 0.5) is None
    assert judge(history, stopping, 1, 100, 0.4) is not None  # a lower score is worse
    assert judge(history, stopping, 2, 100, 0.1) is None  # the first of its stage
    assert judge(history, stopping, 3, 100, 0.2) is None


@pytest.mark.parametrize("origin, stopped", [
    ("init", False), ("own", False), ("carried", False),
    ("model", True), ("fresh", True), ("enqueued", True), (None, True),
])  # fmt: skip
def test_the_origin_of_a_suggestion_decides_whether_it_skips_the_first_rung(origin, stopped):
    history = History()
    stopping = watch(history)
    begin(history, 0)
    begin(history, 1, origin)
    judge(history, stopping, 0, 100, 0.5)
    assert (judge(history, stopping, 1, 100, 0.4) is not None) == stopped


def test_without_max_steps_no_trial_is_stopped_before_one_has_completed():
    history = History()
    stopping = watch(history, max_steps=None)
    for number in range(3):
        begin(history, number)
    for step in (100, 300, 900):
        assert judge(history, stopping, 0, step, 0.9) is None
        assert judge(history, stopping, 1, step, 0.1) is None
    assert stopping.full_steps(1) is None
    history.finish(0, Outcome(State.COMPLETE, score=0.9))
    assert stopping.full_steps(1) == 900 and stopping.full_steps(2) is None
    assert judge(history, stopping, 2, 100, 0.5) is not None


def test_failed_and_given_up_trials_are_in_no_table_and_an_attempt_starts_afresh():
    history = History()
    stopping = watch(history)
    for number in range(4):
        begin(history, number)
    for number in range(3):
        judge(history, stopping, number, 100, 0.9)
    history.finish(0, Outcome(State.FAIL, "it crashed"))
    history.give_up(1, "its parent left the beam")
    begin(history, 2, attempt=2)  # what it reported before is gone with that attempt
    assert judge(history, stopping, 3, 100, 0.5) is None
    assert judge(history, stopping, 2, 100, 0.4) is not None


def test_a_trial_that_was_stopped_and_runs_again_is_not_judged():
    history = History()
    stopping = watch(history)
    for number in range(2):
        begin(history, number)
    judge(history, stopping, 0, 100, 0.9)
    reason = judge(history, stopping, 1, 100, 0.5)
    history.stop(1, reason)
    history.finish(1, history[1].outcome)
    begin(history, 1, attempt=2)
    assert judge(history, stopping, 1, 100, 0.5) is None


# -- hydra.sweeper.prune ----------------------------------------------------------------------------


@pytest.mark.parametrize("given, rule, max_steps", [
    ("asha", Asha(2), None),
    ({"rule": "asha", "max_steps": 900}, Asha(2), 900),
    ({"rule": "asha", "eta": 4}, Asha(2, 4, (1 / 16, 1 / 4)), None),
    ({"rule": "asha", "rungs": [0.1, 0.5], "warmup": 5}, Asha(2, 3, (0.1, 0.5), 5), None),
    ("median", Median(), None),
    ({"rule": "median", "warmup": 10, "max_steps": 50}, Median(10), 50),
])  # fmt: skip
def test_a_rule_is_chosen_by_its_name_or_with_its_options(given, rule, max_steps):
    found = plan_of("task=a", "lr=1,2", prune=given).pruning
    assert (found.rule, found.max_steps) == (rule, max_steps)


def test_without_prune_no_trial_is_stopped():
    assert plan_of("task=a", "lr=1,2").pruning is None and pruning_of(None, 2, False) is None


@pytest.mark.parametrize("given, words", [
    ("hyperband", "prune='hyperband' is not a rule.*asha, median"),
    ({"max_steps": 900}, "prune=None is not a rule"),
    (True, "prune=True is not a rule"),
    ({"rule": "asha", "max_steps": 0}, "max_steps=0, but it is a whole number from 1 on"),
    ({"rule": "asha", "max_steps": 1.5}, "max_steps=1.5, but it is a whole number"),
    ({"rule": "asha", "eta": 1}, "eta=1, but it is a whole number from 2 on"),
    ({"rule": "asha", "rungs": [0.3, 0.1]}, r"rungs=\[0.3, 0.1\], but rungs are shares"),
    ({"rule": "asha", "rungs": [100, 300]}, r"rungs=\[100, 300\], but rungs are shares"),
    ({"rule": "asha", "rungs": []}, r"rungs=\[\], but rungs are shares"),
    ({"rule": "asha", "warmup": -1}, "warmup=-1, but it is a whole number from 0 on"),
    ({"rule": "median", "eta": 3}, "prune.eta is no option of median, which has: max_steps, warmup"),
])  # fmt: skip
def test_a_rule_that_cannot_be_followed_is_refused(given, words):
    with pytest.raises(ConfigurationError, match=words):
        plan_of("task=a", "lr=1,2", prune=given)


def test_a_sweep_that_ranks_nothing_stops_nothing():
    with pytest.raises(ConfigurationError, match="this sweep ranks none: it has no sequence"):
        plan_of("lr=1,2", prune="asha")


def test_chains_that_all_go_on_are_not_stopped_before_their_last_task():
    def rules(protocol, jobs):
        plan = plan_of(
            "task=a,b,c",
            "lr=1,2,3,4,5,6",
            protocol=protocol,
            jobs=jobs,
            prune="asha",
            search={"factory": "auto"} if "chains" in protocol else SETTINGS.search,
        )
        return [plan.pruning.of(stage) for stage in plan.stages]

    assert rules("beam", 6) == [Asha(2)] * 3
    assert rules("greedy", 6) == [Asha(1)] * 3
    assert rules("fixed", 6) == [None, None, Asha(2)]
    assert rules("random_chains", 6) == [None, None, Asha(2)]
