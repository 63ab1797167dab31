"""hazero, pshe2 and cmaes as searches of a stage: rounds, failures, repetitions, replay, refusals."""

from __future__ import annotations

import math

import pytest
from support.played import Played

from autocl_sweeper.distributions import Choice, Interval, Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search.cmaes import cmaes_search
from autocl_sweeper.search.cube import Cube
from autocl_sweeper.search.hazero import HAZero, hazero_search
from autocl_sweeper.search.pshe2 import PSHE2, pshe2_search
from autocl_sweeper.types import Later

FACTORIES = {"hazero": hazero_search, "pshe2": pshe2_search, "cmaes": cmaes_search}
every = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
LR = Interval(1e-5, 1e-1, log=True)
SPACE = Space({"lr": LR, "wd": Interval(0.0, 1.0)}, init={"lr": 1e-3, "wd": 0.1})


def bowl(params, index=0):
    return (math.log10(params["lr"]) + 2) ** 2 + (params["wd"] - 0.5) ** 2


# -- the cube -------------------------------------------------------------------------------------


def test_each_axis_is_stretched_over_the_cube_and_integers_have_equal_shares():
    axes = {
        "lr": LR,
        "batch": Interval(10, 12, integer=True),
        "width": Choice((64, 16, 32, 128)),  # by size, not as listed
        "fixed": Choice(("only",)),
    }
    cube = Cube(Space(axes), "pshe2")
    assert cube.dimensions == 3
    assert cube.params((0.0, -1.0, -1.0)) == {
        "lr": pytest.approx(1e-3), "batch": 10, "width": 16, "fixed": "only",
    }  # fmt: skip
    assert cube.params((7.0, 1.0, 0.4)) == {
        "lr": pytest.approx(1e-1), "batch": 12, "width": 64, "fixed": "only",
    }  # fmt: skip
    third = 1 / 3  # each batch size owns a third of [-1, 1]
    assert [cube.params((0, u, 0))["batch"] for u in (-third - 0.01, -third + 0.01, third + 0.01)] == [
        10, 11, 12,
    ]  # fmt: skip
    # By hand: log10(1e-2) is 3/4 of the way from -5 to -1; 11 in the middle of its share; 128 is last.
    there = {"lr": 1e-2, "batch": 11, "width": 128, "fixed": "only"}
    assert cube.point(there) == pytest.approx((0.5, 0.0, 0.75))
    assert cube.point({**there, "batch": 13}) is None


NAMES = {"lr": LR, "wd": Interval(0.0, 1.0), "opt": Choice(("adam", "sgd"))}


@every
def test_names_without_order_are_refused_and_searches_that_take_them_are_named(factory):
    with pytest.raises(
        ConfigurationError, match=r"(?s)'opt': choice\(adam,sgd\) has no order.*tpe"
    ):
        factory(Space(NAMES), 0, "t")


@every
def test_conditions_are_refused_and_searches_that_take_them_are_named(factory):
    space = Space({"lr": LR, "mode": Choice((1, 2))}, when={"lr": {"mode": [1]}})
    with pytest.raises(ConfigurationError, match=r"(?s)when: 'lr' .*relay, tpe, qmc"):
        factory(space, 0, "t")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: hazero_search(Space({"lr": LR}), 0, "t"), "at least 2 parameters.*1: lr"),
        (lambda: hazero_search(SPACE, 0, "t", popsize=1), "popsize=1, .* at least 2"),
        (lambda: cmaes_search(SPACE, 0, "t", popsize=3), "popsize=3, .* at least 4"),
        (lambda: hazero_search(SPACE, 0, "t", sigma=0.0), "sigma=0.0"),
        (lambda: cmaes_search(SPACE, 0, "t", sigma=-1.0), "sigma=-1.0"),
        (lambda: hazero_search(SPACE, 0, "t", on_stop="stop"), "on_stop='stop' .* restart, end"),
        (lambda: pshe2_search(SPACE, 0, "t", alpha=-0.5), "alpha=-0.5"),
        (lambda: pshe2_search(SPACE, 0, "t", epsilon=math.nan), "epsilon=nan"),
    ],
)
def test_options_that_cannot_be_are_refused_with_their_rule(make, words):
    with pytest.raises(ConfigurationError, match=f"(?s){words}"):
        make()


# -- rounds ---------------------------------------------------------------------------------------


@every
def test_the_first_suggestion_is_the_apps_own_configuration_to_the_last_digit(factory):
    first, second = Played(factory(SPACE, 0, "t")).run(bowl, 2)
    assert (first.params, first.origin) == ({"lr": 1e-3, "wd": 0.1}, "init")
    assert second.origin == "model"
    without = Space(SPACE.axes)
    (first,) = Played(factory(without, 0, "t")).run(bowl, 1)
    assert first.origin == "model"


@every
def test_a_round_waits_until_all_trials_of_the_one_before_have_ended(factory):
    played = Played(factory(SPACE, 0, "t", popsize=4))
    for number in range(4):
        played.start(played.ask())
        assert number == 3 or not isinstance(played.ask(), Later)
    for number in (2, 0, 3):
        assert isinstance(played.ask(), Later)
        played.end(number, 1.0)
    assert isinstance(played.ask(), Later)
    played.end(1, None)
    assert played.ask().index == 4


@pytest.mark.parametrize(("popsize", "rounds_of"), [(None, 5), (3, 3)])
def test_a_population_has_five_members_unless_popsize_says_otherwise(popsize, rounds_of):
    played = Played(pshe2_search(SPACE, 0, "t", popsize=popsize))
    for _ in range(rounds_of):
        played.start(played.ask())
    assert isinstance(played.ask(), Later)


def test_a_generation_of_cmaes_is_as_large_as_the_library_makes_it():
    axes = {f"x{i}": Interval(0.0, 1.0) for i in range(6)}
    played = Played(cmaes_search(Space(axes), 0, "t"))
    for _ in range(4 + 5):  # 4 + floor(3 ln 6) = 4 + floor(5.375)
        played.start(played.ask())
    assert isinstance(played.ask(), Later)


@pytest.mark.parametrize(
    ("factory", "make"), [(hazero_search, HAZero), (pshe2_search, PSHE2)], ids=["hazero", "pshe2"]
)
def test_a_stage_is_the_population_with_its_trials_told_round_by_round(factory, make):
    """The population alone, given the losses of the stage, goes through the same parameters."""
    from autocl_sweeper.search.cube import seed_of

    suggestions = Played(factory(SPACE, 7, "task", popsize=5)).run(bowl, 20, devices=5)
    cube = Cube(SPACE, "")
    population = make(cube.point(SPACE.initial), 5, seed_of("7/task"))
    for first in range(0, 20, 5):
        points = population.ask()
        expected = [cube.params(point) for point in points]
        given = [one.params for one in suggestions[first : first + 5]]
        assert given == [pytest.approx(one, rel=1e-12) for one in expected]
        population.tell(points, [bowl(params) for params in given])


def test_a_failed_trial_that_runs_again_and_completes_counts_with_its_loss():
    def played_with(third):
        played = Played(hazero_search(SPACE, 0, "t", popsize=4))
        for _ in range(4):
            played.start(played.ask())
        for number, loss in enumerate((0.0, 1.0, third, 3.0)):
            played.end(number, loss)
        return played

    played = played_with(None)
    with_failure = played.ask()
    played.again(2)
    assert isinstance(played.ask(), Later)
    played.end(2, -1.0)
    mended = played.ask()
    assert mended.params != with_failure.params
    assert played_with(-1.0).ask() == mended


def test_what_the_journal_says_ran_is_told_where_it_is_not_what_would_be_suggested_now():
    moved = Played(pshe2_search(SPACE, 0, "t", popsize=2))
    as_asked = Played(pshe2_search(SPACE, 0, "t", popsize=2))
    for played in (moved, as_asked):
        played.start(played.ask())
        second = played.ask()
        if played is moved:
            second = type(second)(1, {"lr": 1e-1, "wd": 1.0}, "enqueued")
        played.start(second)
        played.end(0, 1.0)
        played.end(1, 0.0)
    # The swarm is drawn to the better point, which lies in a corner here.
    assert moved.ask().params["lr"] > as_asked.ask().params["lr"]


# -- every round a stage of its own ---------------------------------------------------------------


@pytest.mark.parametrize("factory", [hazero_search, pshe2_search])
def test_rounds_that_are_stages_go_on_from_the_stages_before(factory):
    """With losses whose order is that of their ranks, they are the rounds of one stage."""
    ranks = [2.0, 0.0, 4.0, 1.0, 3.0]
    one_stage = Played(factory(SPACE, 0, "t", popsize=5)).run(
        lambda params, index: ranks[index % 5], 15, devices=3
    )
    rounds: list = []
    for number in range(3):
        search = factory(SPACE, 0, "t", popsize=5, rounds_are_stages=True)
        other = [[({"lr": 1e-5, "wd": 0.9}, -9.0)]]  # of another task: it has no part in this
        tasks = ["before", *["t"] * (number + 1)]
        played = Played(search, earlier=other + rounds, beam=2, tasks=tasks)
        made = played.run(lambda params, index: ranks[index], 99, devices=3)
        assert [one.params for one in made] == [
            one.params for one in one_stage[5 * number : 5 * number + 5]
        ]
        assert played.ask() is None  # a stage is one round
        assert [one.origin == "init" for one in made] == [number == 0, *[False] * 4]
        rounds.append([(one.params, ranks[place]) for place, one in enumerate(made)])


def test_losses_of_different_rounds_are_never_compared():
    """Later rounds are trained longer: all their losses are lower, and it makes no difference."""

    def third(lower):
        rounds: list = []
        for number in range(3):
            search = pshe2_search(SPACE, 0, "t", popsize=3, rounds_are_stages=True)
            played = Played(search, earlier=rounds, beam=2)
            made = played.run(lambda params, index: float(index), 3, devices=3)
            rounds.append([(s.params, s.index - lower * number) for s in made])
        return [params for params, _ in rounds[2]]

    assert third(0.0) == third(100.0)


@every
def test_rounds_larger_than_the_space_are_as_large_as_it_is(factory):
    space = Space({"a": Choice((1, 2)), "b": Choice((1, 2))})
    rounds: list = []
    for _ in range(3):
        search = factory(space, 0, "t", popsize=6, rounds_are_stages=True)
        made = Played(search, earlier=rounds, beam=2).run(lambda params, index: float(index), 9)
        assert len({repr(one.params) for one in made}) == len(made) == 4
        rounds.append([(one.params, float(one.index)) for one in made])
