"""What holds for every search of a stage: replay, no suggestion twice, all inside the space."""

from __future__ import annotations

import importlib.util
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.played import Played, replayed
from support.searches import Asked
from support.spaces import NAMES, NUMBERS

from autocl_sweeper.distributions import Choice, Interval, Space
from autocl_sweeper.search.cmaes import cmaes_search
from autocl_sweeper.search.gp import gp_search
from autocl_sweeper.search.hazero import hazero_search
from autocl_sweeper.search.pshe2 import pshe2_search
from autocl_sweeper.search.qmc import QMCSearch
from autocl_sweeper.search.random import RandomSearch
from autocl_sweeper.search.relay import RelaySearch
from autocl_sweeper.search.tpe import tpe_search
from autocl_sweeper.types import State

POPULATIONS = {"hazero": hazero_search, "pshe2": pshe2_search, "cmaes": cmaes_search}
TAKE_NAMES = {
    "tpe": tpe_search, "qmc": QMCSearch, "random": RandomSearch, "relay": RelaySearch
}  # fmt: skip
LEARN = {**POPULATIONS, "tpe": tpe_search, "relay": RelaySearch}
QUICK = {**POPULATIONS, **TAKE_NAMES}
no_torch = importlib.util.find_spec("torch") is None
GP = pytest.param(
    gp_search,
    id="gp",  # it fits for seconds
    marks=[pytest.mark.skipif(no_torch, reason="gp needs torch, an extra"), pytest.mark.slow],
)


def every(**factories):
    """Over these searches, and the slow one."""
    return pytest.mark.parametrize(
        "factory", [GP, *(pytest.param(one, id=name) for name, one in factories.items())]
    )


SPACE = Space(
    {"lr": Interval(1e-5, 1e-1, log=True), "wd": Interval(0.0, 1.0)}, init={"lr": 1e-3, "wd": 0.1}
)


def bowl(params, index=0):
    return (math.log10(params["lr"]) + 2) ** 2 + (params["wd"] - 0.5) ** 2


@every(**QUICK)
@pytest.mark.parametrize("devices", [1, 3])
def test_a_search_made_anew_says_the_same_at_every_point_of_the_history(factory, devices):
    def ends(params, index):  # a failure, an early stop, a round of failures
        if index == 3 or 10 <= index < 15:
            return None
        return State.PRUNED if index == 7 else bowl(params)

    options = {"n_startup_trials": 4} if factory in (tpe_search, gp_search) else {}
    played = Played(factory(SPACE, 0, "t", **options))
    made = played.run(ends, 6 if factory is gp_search else 22, devices)
    assert replayed(played.steps, lambda: factory(SPACE, 0, "t", **options)) == made


@every(**QUICK)
def test_other_seeds_and_other_tasks_have_other_suggestions(factory):
    def second(seed, name):
        return Played(factory(SPACE, seed, name)).run(bowl, 2)[1].params

    assert second(0, "a") == second(0, "a")
    assert second(0, "a") != second(1, "a") != second(1, "b")


@every(**LEARN)
def test_suggestions_run_with_the_parents_in_turn_the_best_first(factory):
    before = [({"lr": 1e-3, "wd": w}, w) for w in (0.3, 0.1, 0.2)]
    played = Played(factory(SPACE, 0, "t"), earlier=[before], beam=2)
    assert [one.parent for one in played.run(bowl, 4)] == [1, 2, 1, 2]


@every(**LEARN)
def test_a_search_is_asked_again_for_another_stage_without_remembering_the_first(factory):
    first = Asked(factory(SPACE, 0, "t")).next()
    second = Asked(factory(SPACE, 0, "t"), first).next()
    search = factory(SPACE, 0, "t")
    Asked(search, first, second).next()
    assert Asked(search, first).next() == second


@every(**QUICK)
def test_trials_of_an_unranked_sweep_have_no_loss_and_the_search_goes_on(factory):
    made = Played(factory(SPACE, 0, "t")).run(lambda params, index: State.COMPLETE, 20)
    assert len({repr(one.params) for one in made}) == 20


@every(**QUICK)
@pytest.mark.parametrize("devices", [1, 4])
def test_a_discrete_space_is_gone_through_without_repetition_and_then_exhausted(factory, devices):
    axes = {"a": Choice((1, 2, 3)), "b": Interval(1, 2, integer=True), "c": Choice((5, 0))}
    search = factory(Space(axes, init={"a": 2, "b": 2, "c": 5}), 0, "t")
    assert search.size == 12
    made = Played(search).run(lambda params, index: float(params["a"]), 100, devices)
    assert len({repr(one.params) for one in made}) == len(made) == 12
    assert made[0].origin == "init"


@every(**TAKE_NAMES)
def test_a_space_without_axes_has_one_suggestion(factory):
    (only,) = Played(factory(Space({}), 0, "t")).run(lambda params, index: 0.0, 9)
    assert only.params == {}


@settings(max_examples=50)
@given(
    axes=st.dictionaries(st.sampled_from("abcd"), NUMBERS, min_size=2, max_size=3),
    factory=st.sampled_from([*QUICK.values()]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_every_suggestion_is_new_and_inside_the_space_with_values_of_its_type(
    axes, factory, seed, data
):
    if factory in TAKE_NAMES.values():
        axes["opt"] = NAMES
    init = {key: one.at(data.draw(st.floats(0, 1))) for key, one in axes.items()}
    losses = st.one_of(st.none(), st.floats(-1e6, 1e6))
    played = Played(factory(Space(axes, init=init), seed, "t"))
    made = played.run(lambda params, index: data.draw(losses), 14, devices=2)
    size = math.prod(99 if one.values is None else len(one.values) for one in axes.values())
    assert len(made) == min(14, size)
    assert len({repr(one.params) for one in made}) == len(made)
    assert made[0].params == init
    for one in made:
        for key, value in one.params.items():
            assert axes[key].position(value) is not None
            of_floats = axes[key].values is None
            assert key == "opt" or isinstance(value, float if of_floats else int)
