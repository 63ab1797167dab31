"""Grid, random and listed search: itertools and hand-made tables are the oracle."""

import itertools
import math
from collections import Counter

import pytest
from support.searches import Asked

from autocl_sweeper.distributions import Choice, Interval, Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search.grid import GridSearch
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.search.random import RandomSearch
from autocl_sweeper.types import Suggestion


def ask_all(search, parents=1, at_most=10_000):
    """Every suggestion in turn, each tried with a number of parents as in a real stage."""
    asked, suggestions = Asked(search), []
    while len(suggestions) < at_most and (suggestion := asked.next()) is not None:
        suggestions.append(suggestion)
        for _ in range(parents):
            asked.start(suggestion)
    return suggestions


SPACES = [
    Space({}),
    Space({"a": Choice((1,))}),
    Space({"a": Choice((1, 2, 3)), "+b": Choice(("x", None))}),
    Space({"a": Choice((1, 1)), "b": Choice(([1], {"k": 2})), "c": Choice((True, False, "x"))}),
    Space(
        {"a": Choice(tuple(range(7))), "b": Choice(tuple(range(11))), "c": Choice(tuple("uvwxy"))}
    ),
]
CONTINUOUS = Space(
    {
        "lr": Interval(1e-5, 1e-1, log=True),
        "wd": Interval(-1.0, 3.0),
        "rank": Interval(1, 8, integer=True),
        "width": Interval(1, 64, log=True, integer=True),
        "act": Choice(("relu", "gelu", "tanh")),
    }
)


def product(space):
    return [
        dict(zip(space, point, strict=True))
        for point in itertools.product(*(choice.values for choice in space.values()))
    ]


# --- all of them ---------------------------------------------------------------------------------

LISTED = ListedSearch([{"a": 1}, {"+b": "x"}, {}])


@pytest.mark.parametrize(
    "search",
    [
        GridSearch(SPACES[4]),
        RandomSearch(SPACES[4], 0, "t"),
        RandomSearch(CONTINUOUS, 0, "t"),
        LISTED,
    ],
    ids=["grid", "random", "random with intervals", "listed"],
)
@pytest.mark.parametrize("parents", [1, 3])
def test_a_search_counts_from_0_and_repeats_itself_for_a_replayed_history(search, parents):
    first = ask_all(search, parents, at_most=50)
    assert [suggestion.index for suggestion in first] == list(range(len(first)))
    assert ask_all(search, parents, at_most=50) == first
    place = len(first) // 2  # whatever went before the last trial, only the last counts
    assert Asked(search, Suggestion(place - 1, {})).next() == first[place]


# --- grid ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
def test_the_grid_is_the_product_in_its_order(space):
    search = GridSearch(space)
    suggestions = ask_all(search)
    assert [dict(suggestion.params) for suggestion in suggestions] == product(space)
    assert all(list(suggestion.params) == list(space) for suggestion in suggestions)
    assert search.size == len(suggestions)


def test_the_grid_refuses_an_interval_by_name():
    with pytest.raises(ConfigurationError) as caught:
        GridSearch(Space({"a": Choice((1,)), "opt.lr": Interval(0, 1)}))
    for word in ["'opt.lr'", "interval(0,1)", "choice(...)", "tpe or random"]:
        assert word in str(caught.value)


def test_a_grid_is_never_listed_so_that_a_huge_one_costs_as_little_as_a_small_one():
    space = Space({f"k{place}": Choice(tuple(range(1000))) for place in range(20)})
    for search in (GridSearch(space), RandomSearch(space, 0, "t")):
        last = Asked(search, Suggestion(search.size - 2, {})).next()
        assert search.size == 10**60
        assert Asked(search, last).next() is None
    assert set(GridSearch(space).suggestion(10**60 - 1).params.values()) == {999}


# --- listed --------------------------------------------------------------------------------------


def test_listed_suggestions_come_as_given_and_end():
    assert ask_all(LISTED) == [
        Suggestion(0, {"a": 1}),
        Suggestion(1, {"+b": "x"}),
        Suggestion(2, {}),
    ]
    assert LISTED.size == 3
    assert ask_all(ListedSearch([])) == []


# --- random --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000])
def test_a_finite_space_is_drawn_without_replacement_to_its_end(size):
    space = Space({"a": Choice(tuple(range(size))), "b": Choice(("x", "y"))})
    drawn = [dict(suggestion.params) for suggestion in ask_all(RandomSearch(space, 5, "t"))]
    assert sorted(drawn, key=repr) == sorted(product(space), key=repr)
    assert size < 5 or drawn != product(space)


def test_each_combination_is_as_likely_to_come_first_as_any_other():
    space = Space({"a": Choice((0, 1, 2)), "b": Choice((0, 1))})
    first = Counter(
        tuple(RandomSearch(space, seed, "t").suggestion(0).params.values()) for seed in range(6000)
    )
    # 1000 of each expected, standard deviation 29; 5 of them.
    assert len(first) == 6 and all(abs(count - 1000) < 145 for count in first.values())


def test_seed_and_stage_change_the_order_and_nothing_else_does():
    space = SPACES[4]
    orders = [
        [
            tuple(s.params.values())
            for s in ask_all(RandomSearch(Space(dict(space)), seed, stage), parents)
        ]
        for seed, stage, parents in [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1)]
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]


def test_draws_are_uniform_in_the_scale_of_their_interval():
    drawn = [s.params for s in ask_all(RandomSearch(CONTINUOUS, 2, "t"), at_most=8000)]
    # Bins of equal probability; 5 standard deviations of a binomial count around its mean.
    binned = {
        8: Counter(params["rank"] for params in drawn),
        3: Counter(params["act"] for params in drawn),
        4: Counter(min(3, int(math.log10(params["lr"]) + 5)) for params in drawn),
        5: Counter(min(4, int((params["wd"] + 1) / 0.8)) for params in drawn),
    }
    for bins, counts in binned.items():
        expected = 8000 / bins
        assert len(counts) == bins
        slack = 5 * math.sqrt(expected * (1 - 1 / bins))
        assert all(abs(count - expected) < slack for count in counts.values()), counts
    width = Counter(params["width"] for params in drawn)
    # log(1.5/0.5) / log(64.5/0.5) of the draws are 1, log(64.5/63.5) / log(129) are 64.
    assert abs(width[1] - 8000 * math.log(3) / math.log(129)) < 5 * math.sqrt(8000 * 0.226 * 0.774)
    assert 0 < width[64] < 70


def test_one_more_key_leaves_the_draws_of_the_others_alone():
    more = Space({"new": Interval(0, 1), **CONTINUOUS})
    for old, new in zip(
        ask_all(RandomSearch(CONTINUOUS, 0, "t"), at_most=5),
        ask_all(RandomSearch(more, 0, "t"), at_most=5),
        strict=True,
    ):
        assert old.params.items() <= new.params.items()


def test_an_interval_of_one_point_is_that_point():
    space = Space(
        {
            "a": Interval(0.1, 0.1),
            "b": Interval(3, 3, log=True, integer=True),
            "c": Interval(0.3, 0.3, log=True),
            "d": Interval(-5, -5, integer=True),
        }
    )
    expected = {"a": 0.1, "b": 3, "c": 0.3, "d": -5}
    assert all(s.params == expected for s in ask_all(RandomSearch(space, 0, "t"), at_most=100))


def test_the_draws_of_a_seed_never_change():
    """Recorded once: a resumed sweep must meet them again under any Python or package version."""
    finite = RandomSearch(Space({"a": Choice(tuple(range(10)))}), 0, "boolq")
    assert [s.params["a"] for s in ask_all(finite)] == RECORDED_ORDER
    for suggestion, recorded in zip(
        ask_all(RandomSearch(CONTINUOUS, 0, "boolq"), at_most=2), RECORDED_DRAWS, strict=True
    ):
        for key, value in suggestion.params.items():  # exp and log may differ in the last bit
            same = pytest.approx(recorded[key], rel=1e-12) if key in ("lr", "wd") else recorded[key]
            assert value == same


RECORDED_ORDER = [0, 4, 7, 3, 6, 5, 9, 8, 1, 2]
RECORDED_DRAWS = [
    {"lr": 5.953625160176254e-05, "wd": -0.23368975290552108, "rank": 8, "width": 2, "act": "gelu"},
    {"lr": 4.819283581206012e-05, "wd": 0.16319631274854318, "rank": 4, "width": 10, "act": "tanh"},
]


def test_the_name_of_a_stage_can_be_any_text():
    for name in ("", "é/日本", "a\ud800", "a\nb"):
        assert RandomSearch(SPACES[2], 0, name).suggestion(0) is not None
