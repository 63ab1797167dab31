"""`when`, `zip`, `jobs`, `init` and `auto`: what a plan makes of them, and what it refuses."""

from __future__ import annotations

from dataclasses import fields

import pytest
from support.plans import RANDOM, plan_of

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.rounds import Population
from autocl_sweeper.search.grid import GridSearch
from autocl_sweeper.search.relay import Rules
from autocl_sweeper.types import Trial
from hydra_plugins.hydra_autocl_sweeper._schema import PopulationConf, RelayConf

AUTO = {"factory": "auto"}


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (["m=1,2"], {"when": {"x": {"m": 1}}}, ["when names 'x'", "which no task searches", "m"]),
        (["m=1,2"], {"when": {"m": {"x": 1}}}, ["when names 'x'"]),
        (["m=1,2"], {"when": {"m": 3}}, ["'m' has 3, not a mapping"]),
        (["a=1,2", "b=1,2"], {"when": {"a": {"b": 1}, "b": {"a": 1}}}, ["has a cycle", "->"]),
        (["m=1,2", "o=x,y"], {"when": {"m": {"o": "z"}}}, ["o='z'", "choice(x,y)"]),
        (["m=1,2", "o=interval(0,1)"], {"when": {"m": {"o": 0.5}}}, ["listed values"]),
        (["a=1,2", "b=1,2,3"], {"zip": [["a", "b"]]}, ["a has 2", "b has 3"]),
        (["a=1,2", "b=interval(0,1)"], {"zip": [["a", "b"]]}, ["interval(0,1)", "listed values"]),
        (["a=1,2"], {"zip": [["a", "b"]]}, ["zip names 'b'", "no task searches"]),
        (["a=1,2"], {"zip": [["a"]]}, ["not a list of two keys or more"]),
        (["a=1,2", "b=1,2", "c=1,2"], {"zip": [["a", "b"], ["b", "c"]]}, ["'b' twice"]),
        (["a=1,2"], {"jobs": 1, "top_k": 2}, ["jobs=1", "top_k=2", "jobs=2"]),
        (["a=1,2"], {"jobs": 0}, ["jobs=0", "at least 1"]),
        (["a=1,2"], {"jobs": 4, "popsize": 2}, ["jobs=4", "popsize=2", "one of them"]),
        (
            ["task=s,t", "a=1,2"],
            {"task_params": {"t": {"a": "x,y"}}},
            ["'a' is choice(1,2) for task 's'", "choice(x,y) for task 't'", "one type"],
        ),
        (
            ["task=s,t", "a=interval(0,1)"],
            {"task_params": {"t": [{"a": "x"}, {"a": "y"}]}, "jobs": 2},
            ["'a' is interval(0,1) for task 's'", "choice(x,y) for task 't'", "one type"],
        ),
        (
            ["task=s,t"],
            {"task_params": {"s": [{"+a.b": 1}, {"+a.b": 1}], "t": [{"a": {"b": "x"}}]}},
            ["'a.b' is choice(1,1) for task 's'", "choice(x) for task 't'", "one type"],
        ),
    ],
)
def test_a_space_that_cannot_be_is_refused_by_name(
    arguments: list[str], settings: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        plan_of(*arguments, **settings)
    for word in words:
        assert word in str(refused.value)


def test_numbers_that_are_listed_twice_are_numbers_and_null_goes_with_either() -> None:
    listed = {"s": [{"a": 1}, {"a": 1}, {"b": None}], "t": [{"a": None}, {"a": 2}, {"b": 3}]}
    plan = plan_of("task=s,t,u", "a=0,1", "b=1,2", task_params=listed)
    assert [stage.task for stage in plan.stages] == ["s", "t", "u"]


def test_a_grid_lists_the_branches_of_a_conditional_space() -> None:
    plan = plan_of("o=sgd,adam", "m=0,0.9", when={"m": {"o": "sgd"}})
    search = plan.stages[0].search
    assert isinstance(search, GridSearch)
    assert [dict(search.suggestion(index).params) for index in range(search.size)] == [
        {"o": "sgd", "m": 0}, {"o": "sgd", "m": 0.9}, {"o": "adam"}
    ]  # fmt: skip


def test_each_branch_of_a_condition_is_composed_before_a_job_starts() -> None:
    composed: list[set[str]] = []

    def compose(overrides: tuple[str, ...], meant_for: str) -> dict[str, object]:
        composed.append({text for text in overrides if text[0] in "om"})
        return {}

    plan_of("o=adam,sgd", "m=0,0.9", when={"m": {"o": "sgd"}}, compose=compose)
    assert {"o=sgd", "m=0"} in composed and {"o=adam"} in composed


def test_zipped_keys_reach_the_jobs_each_by_its_name() -> None:
    plan = plan_of("+model=small,large", "batch=32,8", "rate=1,2", zip=[["model", "batch"]])
    search = plan.stages[0].search
    assert search.size == 4
    first = search.suggestion(0).params  # type: ignore[attr-defined]
    assert dict(first) == {"+model": "small", "batch": 32, "rate": 1}
    assert plan.overrides(Trial(0, 1, "sweep", search.suggestion(0), None), None) == (
        "+model=small",
        "batch=32",
        "rate=1",
    )


@pytest.mark.parametrize(
    ("arguments", "settings", "search"),
    [
        (["a=1,2"], {}, "GridSearch"),
        (["a=1,2"], {"jobs": 2}, "RelaySearch"),
        (["a=1,2"], {"popsize": 2}, "RelaySearch"),
        (["a=1,2"], {"budget": {"jobs": 2}}, "RelaySearch"),
        (["a=interval(0,1)"], {"jobs": 2}, "RelaySearch"),
    ],
)
def test_auto_takes_the_grid_for_a_finite_space_without_a_budget_and_relay_for_all_else(
    arguments: list[str], settings: dict[str, object], search: str
) -> None:
    plan = plan_of(*arguments, search=AUTO, **settings)
    assert type(plan.stages[0].search).__name__ == search


def test_the_search_begins_with_what_the_app_composes_to_without_what_is_searched() -> None:
    def compose(overrides: tuple[str, ...], meant_for: str) -> dict[str, object]:
        return {"rate": 0.5} if "a=1" in overrides else {}

    plan = plan_of("rate=interval(0,1)", "a=1", search=RANDOM, jobs=3, compose=compose)
    first = plan.stages[0].search.suggestion(0)  # type: ignore[attr-defined]
    assert (dict(first.params), first.origin) == ({"rate": 0.5}, "init")
    plan = plan_of("rate=interval(0,1)", "a=1", search=RANDOM, jobs=3, compose=compose, init=False)
    assert plan.stages[0].search.suggestion(0).origin == "fresh"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("conf", "rules"), [(RelayConf, Rules), (PopulationConf, Population)])
def test_the_keys_that_hydra_knows_are_those_of_the_core_with_the_same_defaults(
    conf: type, rules: type
) -> None:
    """Hydra's scan may import nothing of the core, so both sides write them down."""
    registered = {f.name: f.default for f in fields(conf) if f.name != "factory"}
    assert registered == {f.name: f.default for f in fields(rules)}
