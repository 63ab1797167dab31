"""FullTrail and PopulationBased: who starts from whom, with what, and who wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.plans import RANDOM, plan_of
from support.rounds import FULLTRAIL, POPULATION, PSHE2, SETTINGS, Jobs, option, swept

from autocl_sweeper.distributions import Choice, Interval, Space
from autocl_sweeper.errors import ConfigurationError, NoSurvivorError
from autocl_sweeper.results.lineage import final_lineages
from autocl_sweeper.search.perturbed import Perturbed
from autocl_sweeper.search.random import RandomSearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.decisions import Stage, views
from autocl_sweeper.types import History, Outcome, State, Suggestion, Trial


def test_fulltrail_trials_start_from_scratch_in_every_round(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    history = swept(plan_of(**FULLTRAIL), jobs)
    assert len(history) == 12
    assert [trial.parent for trial in history] == [None] * 12
    assert all(option(job, "init_from") is option(job, "epochs") is None for job in jobs.given)
    assert [trial.folder for trial in history] == [
        f"round{r}/{i}" for r in range(3) for i in range(4)
    ]


def test_population_takes_parent_i_modulo_k_best_first_of_the_round_before(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    plan = plan_of(**POPULATION)
    history = swept(plan, jobs)
    assert [trial.parent for trial in history.stage(1)] == [None] * 4
    for stage in (2, 3):
        scores = {trial.number: trial.score for trial in history.stage(stage - 1)}
        best, second = sorted(scores, key=lambda number: -(scores[number] or 0))[:2]
        assert [trial.parent for trial in history.stage(stage)] == [best, second, best, second]
    assert [option(job, "epochs") for job in jobs.given] == [None] * 4 + ["1"] * 8
    for job in jobs.given[4:]:
        parent = history[job.number].parent
        assert option(job, "init_from") == str(tmp_path / history[parent].folder / "checkpoint")


def test_population_winner_is_one_of_the_last_round_that_is_over(tmp_path: Path) -> None:
    """An open round's trials have trained for longer, and an early round's score may be higher."""
    plan = plan_of(**POPULATION)
    history = History()
    for number, (stage, score) in enumerate([(1, 0.9), (1, 0.8), (2, 0.5), (2, 0.4), (3, 0.99)]):
        parent = None if stage == 1 else 2 * (stage - 2)
        history.start(Trial(number, stage, "sweep", Suggestion(number % 2, {}), parent))
        history.finish(number, Outcome(State.COMPLETE, score=score))
    history.select(1, (0, 1))
    history.select(2, (2, 3))
    assert [one.trials[-1].number for one in final_lineages(plan, history)] == [2, 3]
    history.select(3, (4,))
    assert [one.trials[-1].number for one in final_lineages(plan, history)] == [4]


@pytest.mark.parametrize(("popsize", "keep", "parents"), [(1, None, 1), (5, None, 2), (4, 3, 3)])
def test_number_of_parents_is_half_of_the_population_or_the_option(
    popsize: int, keep: int | None, parents: int, tmp_path: Path
) -> None:
    jobs = Jobs(tmp_path)
    settings = {**POPULATION, "popsize": popsize, "rounds": 2, "population": {"keep": keep}}
    settings["search"] = {**PSHE2, "popsize": popsize}
    history = swept(plan_of(**settings), jobs)
    assert len(history.beams[1]) == parents
    assert {trial.parent for trial in history.stage(2)} == set(history.beams[1])


def test_failed_trial_is_no_parent_and_a_round_without_any_ends_the_search(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "one", fails=[0, 2])
    history = swept(plan_of(**POPULATION), jobs)
    assert set(history.beams[1]) == {1, 3}
    jobs = Jobs(tmp_path / "all", fails=[4, 5, 6, 7])
    with pytest.raises(NoSurvivorError):
        swept(plan_of(**POPULATION), jobs)
    assert len(jobs.given) == 8


def test_fulltrail_stops_after_a_failed_round_unless_max_failures_decides(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "stops", fails=[4, 5, 6, 7])
    with pytest.raises(NoSurvivorError, match="All trials of round 1 failed"):
        swept(plan_of(**FULLTRAIL), jobs)
    with pytest.raises(NoSurvivorError, match="All trials of round 1 failed"):  # and again
        swept(plan_of(**FULLTRAIL), jobs)
    assert len(jobs.given) == 8
    jobs = Jobs(tmp_path / "goes on", fails=[4, 5, 6, 7])
    assert len(swept(plan_of(**FULLTRAIL, max_failures=12), jobs)) == 12


@pytest.mark.parametrize("settings", [FULLTRAIL, POPULATION], ids=["fulltrail", "population"])
def test_device_waits_for_the_end_of_a_round_alone(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    jobs = Jobs(tmp_path, devices=2, t3=8.0)
    swept(plan_of(**{**settings, "rounds": 2}), jobs)
    starts = {one.number: one.begin_s for one in jobs.executor.busy}
    # 1, 1, 1, 8 on two devices: the last starts as soon as the first of a device ends.
    assert [starts[number] for number in range(4)] == [0, 0, 1, 1]
    assert starts[4] == starts[5] == 9


def test_rounds_of_a_random_search_do_not_repeat_each_other(tmp_path: Path) -> None:
    history = swept(plan_of(**{**POPULATION, "search": RANDOM}), Jobs(tmp_path))
    assert len({json.dumps(dict(trial.suggestion.params)) for trial in history}) == 12


def test_rounds_of_pshe2_are_one_swarm(tmp_path: Path) -> None:
    """Later rounds move on from the first; a swarm of its own would begin like it."""
    history = swept(plan_of(**POPULATION), Jobs(tmp_path))
    first, second = (
        [dict(trial.suggestion.params) for trial in history.stage(stage)] for stage in (1, 2)
    )
    assert all(one not in first for one in second)
    alone = plan_of(**{**POPULATION, "rounds": 1})
    start = alone.strategy.next(History())
    assert dict(start.suggestion.params) == first[0]  # type: ignore[union-attr]


@pytest.mark.parametrize("parents", ["init", "population"])
def test_tasks_of_a_sequence_have_rounds_of_their_own(parents: str, tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    settings = {**SETTINGS, "sequence": "task", "parents": parents, "rounds": 2}
    settings["handover"] = {"init_from": "checkpoint", "+seen": "seen_tasks"}
    plan = plan_of("task=a,b", **settings)
    history = swept(plan, jobs)
    assert [trial.task for trial in history] == ["a"] * 8 + ["b"] * 8
    assert history[5].folder == "1_a/round1/1" and history[8].folder == "2_b/round0/0"
    assert {option(job, "+seen") for job in jobs.given[:8]} == {"[a]"}
    assert {option(job, "+seen") for job in jobs.given[8:]} == {"[a,b]"}
    firsts = {trial.parent for trial in history if trial.folder.startswith("2_b/round0")}
    assert firsts == ({None} if parents == "init" else set(history.beams[2]))
    epochs = [option(job, "epochs") for job in jobs.given]
    assert epochs[8:12] == [None] * 4
    assert epochs[12:] == ([None] * 4 if parents == "init" else ["1"] * 4)


def test_independent_tasks_begin_while_the_one_before_runs(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, devices=4, t0=5.0)
    params = {"x": "0.1,0.2"}
    settings = {"parents": "init", "search": RANDOM, "params": params}
    swept(plan_of("task=a,b", **settings), jobs)
    assert [one.begin_s for one in jobs.executor.busy] == [0] * 4


def test_handover_of_model_path_takes_the_place_of_init_from(tmp_path: Path) -> None:
    plan = plan_of(**{**POPULATION, "population": {"model_path": "m.path", "first_epochs": 3}})
    trial = Trial(4, 2, "sweep", Suggestion(0, {"x": 0.5, "n": 1}), 0, "round1/0")
    assert plan.overrides(trial, "/saved") == (
        "x=0.5",
        "n=1",
        "epochs=1",
        "m.path=/saved",
        "hydra.sweep.subdir=round1/0",
    )
    first = Trial(0, 1, "sweep", Suggestion(0, {"x": 0.5, "n": 1}), None, "round0/0")
    assert "epochs=3" in plan.overrides(first, None)


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ((), {"parents": "best"}, "parents='best' is not one of"),
        ((), {"popsize": None}, "popsize is null"),
        ((), {"popsize": None, "parents": "init"}, "rounds=3, but hydra.sweeper.popsize is null"),
        ((), {"population": {"keep": 5}}, "keep=5 is more than hydra.sweeper.popsize=4"),
        ((), {"population": {"keep": 0}}, "keep=0, but it must be a whole number"),
        ((), {"population": {"epoch": 1}}, "Did you mean epochs?"),
        ((), {"population": {"model_path": "a b"}}, "'a b' is not an override key"),
        ((), {"handover": {"init_from": None}}, "no job would get its parent's checkpoint"),
        (("epochs=3",), {}, "epochs=3 on the command line: 'epochs' is set by"),
        (("epochs=1,3",), {}, "epochs=1,3 on the command line: 'epochs' is set by"),
        ((), {"params": {"epochs": "1,3"}}, "searches 'epochs', but 'epochs' is set by"),
        (("epochs=3",), {"population": {"epochs": None, "first_epochs": 2}}, "epochs=3 on the"),
        ((), {"jobs": 8}, "both say how much"),
        ((), {"parents": "init", "population": {"replay": "s.yaml"}}, "is replayed by"),
        ((), {"population": {"replay": "none.yaml"}}, "'none.yaml' cannot be read"),
    ],
)
def test_mistake_in_rounds_is_named_before_any_job(
    arguments: tuple[str, ...], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        plan_of(*arguments, **{**POPULATION, **settings})
    assert words in str(raised.value)


def test_epochs_may_be_fixed_where_the_population_does_not_set_them() -> None:
    plan = plan_of("epochs=3", **{**POPULATION, "population": {"epochs": None}})
    assert plan.stages[1].passed == {}


# -- perturbed parents ------------------------------------------------------------------------------

SPACE = Space(
    {
        "f": Interval(1e-4, 1.0, log=True),
        "i": Interval(1, 100, integer=True),
        "o": Choice((8, 16, 32)),
        "c": Choice(("adam", "sgd")),
    }
)


def asked(params: dict[str, Any], indices: int) -> list[dict[str, Any]]:
    """Suggestions of a second round whose one parent has these parameters."""
    search = Perturbed(RandomSearch(SPACE, 0, "t"), SPACE, "0/t")
    history = History()
    history.start(Trial(0, 1, "t", Suggestion(0, params), None))
    history.finish(0, Outcome(State.COMPLETE, score=1.0))
    history.select(1, (0,))
    stages = [Stage(n, "t", search, 50, None, "population", n - 1) for n in (1, 2)]
    view = views(stages, history, TopK(1))[1]
    found = []
    for index in range(indices):
        suggestion = search.ask(view)
        assert isinstance(suggestion, Suggestion)
        assert (suggestion.source, suggestion.parent, suggestion.index) == (0, 0, index)
        found.append(dict(suggestion.params))
        trial = Trial(index + 1, 2, "t", suggestion, 0)
        history.start(trial)
        view.note(trial)
    return found


def test_perturbed_value_is_a_factor_away_or_drawn_anew_a_quarter_of_the_time() -> None:
    found = asked({"f": 0.01, "i": 50, "o": 16, "c": "adam"}, 200)
    assert found == asked({"f": 0.01, "i": 50, "o": 16, "c": "adam"}, 200)
    moved = [one["f"] for one in found if one["f"] in (0.01 * 0.8, 0.01 * 1.2)]
    # 200 values of a share of 3/4: four standard deviations are 24.5
    assert abs(len(moved) - 150) < 25
    assert len({*moved}) == 2 and {one["i"] for one in found} >= {40, 60}
    assert all(1e-4 <= one["f"] <= 1 and 1 <= one["i"] <= 100 for one in found)
    assert {one["o"] for one in found} >= {8, 32}
    assert sum(one["c"] == "adam" for one in found) > 150


def test_perturbed_value_stays_in_its_bounds_and_a_whole_number_moves() -> None:
    found = asked({"f": 1.0, "i": 1, "o": 32, "c": "sgd"}, 100)
    assert max(one["f"] for one in found) == 1.0
    assert {1, 2} <= {one["i"] for one in found}
    assert all(isinstance(one["i"], int) and isinstance(one["f"], float) for one in found)


def test_perturbing_population_takes_up_its_parents_parameters(tmp_path: Path) -> None:
    settings = {**POPULATION, "population": {"perturb": True}}
    history = swept(plan_of(**settings), Jobs(tmp_path))
    for trial in [*history.stage(2), *history.stage(3)]:
        assert trial.suggestion.source == trial.parent
        assert trial.suggestion.origin == "own"
    ratios = [
        trial.suggestion.params["x"] / history[trial.parent].suggestion.params["x"]  # type: ignore[index, operator]
        for trial in history.stage(2)
    ]
    assert any(round(ratio, 6) in (0.8, 1.2) for ratio in ratios)


def test_swarm_goes_on_through_its_rounds_without_transfer_between_tasks(tmp_path: Path) -> None:
    with_it = swept(plan_of(**POPULATION), Jobs(tmp_path / "with"))
    without = swept(plan_of(**POPULATION, transfer=False), Jobs(tmp_path / "without"))
    assert [t.suggestion.params for t in with_it] == [t.suggestion.params for t in without]


def test_fulltrail_keeps_the_survivors_of_every_task(tmp_path: Path) -> None:
    settings = {**FULLTRAIL, "sequence": "task", "rounds": 1}
    history = swept(plan_of("task=a,b", **settings), Jobs(tmp_path))
    there = {path.parent for path in tmp_path.glob("*/round0/*/checkpoint")}
    kept = [number for beam in history.beams.values() for number in beam]
    assert there == {tmp_path / history[number].folder for number in kept} and len(there) == 4


def test_rounds_refuse_repeats() -> None:
    handover = {"init_from": "checkpoint", "seed": "seed"}
    with pytest.raises(ConfigurationError, match=r"sweeper\.seeds=2 with"):
        plan_of(**{**POPULATION, "seeds": 2, "handover": handover})
