"""Distributions and spaces: brute force over small spaces and hand-made tables are the oracle."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocl_sweeper.distributions import Choice, Interval, Space, same
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search.grid import Combinations
from autocl_sweeper.search.random import RandomSearch

OPTIMIZER = Choice(("sgd", "adam", "rmsprop"))
MOMENTUM = Choice((0.0, 0.9))
NESTEROV = Choice((True, False))
CONDITIONAL = Space(
    {"rate": Choice((1, 2)), "optimizer": OPTIMIZER, "momentum": MOMENTUM, "nesterov": NESTEROV},
    when={
        "momentum": {"optimizer": ["sgd", "rmsprop"]},
        "nesterov": {"optimizer": ["sgd"], "momentum": [0.9]},
    },
)


def every_param(space: Space) -> list[dict[str, object]]:
    """By brute force: each point of the product, inactive keys taken out, each result once."""
    found: list[dict[str, object]] = []
    for values in itertools.product(*(axis.values for axis in space.values())):
        params = space.params(dict(zip(space, values, strict=True)))
        if params not in found:
            found.append(params)
    return found


@given(st.integers(-50, 50), st.integers(0, 60), st.booleans())
def test_a_whole_number_comes_back_from_its_position(low: int, span: int, log: bool) -> None:
    interval = Interval(low, low + span, log=log and low > 0, integer=True)
    for value in range(low, low + span + 1):
        position = interval.position(value)
        assert position is not None and 0 <= position <= 1
        assert interval.at(position) == value


@given(st.floats(1e-6, 1e6), st.floats(1, 1e6), st.floats(0, 1), st.booleans())
def test_a_float_comes_back_from_its_position(
    low: float, ratio: float, u: float, log: bool
) -> None:
    interval = Interval(low, low * ratio, log=log)
    value = interval.at(u)
    position = interval.position(value)
    assert position is not None and interval.at(position) == pytest.approx(value, rel=1e-6)


def test_every_whole_number_has_an_equal_share_of_the_axis() -> None:
    interval = Interval(30, 40, integer=True)
    counts = [interval.at((place + 0.5) / 1100) for place in range(1100)]
    assert {value: counts.count(value) for value in counts} == dict.fromkeys(range(30, 41), 100)


def test_an_interval_of_integers_without_whole_ends_is_never_made() -> None:
    with pytest.raises(ConfigurationError, match="must begin and end with whole numbers"):
        Interval(0.5, 2, integer=True)


def test_a_place_outside_the_axis_is_moved_to_its_end() -> None:
    assert Interval(1, 2).at(-3) == 1 and Interval(1, 2).at(7) == 2
    assert Choice(("a", "b")).at(1.0) == "b" and Choice(("a", "b")).at(-1) == "a"


def test_numbers_are_ordered_by_size_and_names_are_not() -> None:
    assert Choice((3e-4, 1e-4, 1e-3)).ranked == (1e-4, 3e-4, 1e-3)
    assert Choice((3e-4, 1e-4)).at(0) == 1e-4
    assert not Choice((1, "2")).ordered and not Choice((True, False)).ordered
    assert not Choice((1, 1.0)).ordered, "the same number twice"


def test_what_lies_outside_has_no_position() -> None:
    assert Interval(1, 8, integer=True).position(2.5) is None
    assert Interval(1, 8).position(True) is None and Interval(1, 8).position("2") is None
    assert Interval(1, 8).position(8.5) is None and Choice((1, 2)).position(True) is None


def test_one_is_a_float_too_but_never_a_truth_value() -> None:
    assert same(1, 1.0) and not same(1, True) and not same([1, 0], [True, 0])
    assert same({"a": [1]}, {"a": [1.0]}) and not same({"a": 1}, {"b": 1})


def test_a_conditional_key_is_there_only_where_its_conditions_hold() -> None:
    point = {"rate": 1, "optimizer": "sgd", "momentum": 0.9, "nesterov": True}
    assert CONDITIONAL.params(point) == point
    assert CONDITIONAL.params({**point, "momentum": 0.0}) == {
        "rate": 1, "optimizer": "sgd", "momentum": 0.0
    }  # fmt: skip
    assert CONDITIONAL.params({**point, "optimizer": "adam"}) == {"rate": 1, "optimizer": "adam"}


def test_the_combinations_of_a_conditional_space_are_those_of_brute_force() -> None:
    combinations = Combinations(CONDITIONAL)
    listed = [combinations.at(index) for index in range(combinations.size)]
    expected = every_param(CONDITIONAL)
    assert len(listed) == len(expected) == 2 * (1 + 2 + 1 + 2)
    assert all(params in expected for params in listed)
    assert len({repr(sorted(map(str, params.items()))) for params in listed}) == len(listed)


def test_random_suggestions_of_a_conditional_space_come_once_each_and_to_the_end() -> None:
    search = RandomSearch(CONDITIONAL, 3, "t")
    assert search.size == len(every_param(CONDITIONAL))
    drawn = [dict(search.suggestion(index).params) for index in range(search.size)]
    assert sorted(map(str, drawn)) == sorted(map(str, every_param(CONDITIONAL)))


def test_the_first_random_suggestion_is_the_apps_own_configuration() -> None:
    axes = {"rate": Choice((1, 2, 3)), "+act": Choice(("a", "b"))}
    for init in ({"rate": 2.0, "act": "b"}, {"rate": 3, "act": "a", "other": 7}):
        search = RandomSearch(Space(axes, init=init), 5, "t")
        params = {"rate": int(init["rate"]), "+act": init["act"]}
        assert (search.suggestion(0).params, search.suggestion(0).origin) == (params, "init")
        drawn = [search.suggestion(index).params for index in range(6)]
        assert len({tuple(one.items()) for one in drawn}) == 6


@pytest.mark.parametrize(
    ("init", "initial"),
    [
        ({"optimizer": "adam", "rate": 1, "momentum": 5}, {"rate": 1, "optimizer": "adam"}),
        ({"optimizer": "sgd", "rate": 1, "momentum": 0}, {"rate": 1, "optimizer": "sgd", "momentum": 0.0}),
        ({"optimizer": "sgd", "rate": 1, "momentum": 5}, None),
        ({"optimizer": "sgd", "rate": 7, "momentum": 0}, None),
        ({"optimizer": "adam"}, None),
        ({"optimizer": "sgd", "rate": 1, "momentum": 0.9}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_apps_configuration_counts_where_all_active_keys_lie_inside(
    init: dict[str, object], initial: dict[str, object] | None
) -> None:
    space = Space(CONDITIONAL.axes, CONDITIONAL.when, init=init)
    assert space.initial == initial


def test_zipped_keys_go_together() -> None:
    pairs = Choice((["small", 32], ["large", 8]))
    space = Space(
        {"model,batch": pairs, "rate": Interval(0, 1)}, zips={"model,batch": ("model", "batch")}
    )
    assert space.params({"model,batch": ["large", 8], "rate": 0.5}) == {
        "model": "large", "batch": 8, "rate": 0.5
    }  # fmt: skip
    assert space.point({"model": "large", "batch": 8}) == {"model,batch": ["large", 8]}
    own = Space(space.axes, zips=space.zips, init={"model": "small", "batch": 32, "rate": 0.1})
    assert own.initial == {"model": "small", "batch": 32, "rate": 0.1}
    mixed = Space(space.axes, zips=space.zips, init={"model": "small", "batch": 8, "rate": 0.1})
    assert mixed.initial is None
