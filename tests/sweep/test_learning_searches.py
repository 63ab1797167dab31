"""Searches that learn within a stage, through the command line: real sweeps over real jobs."""

from __future__ import annotations

import importlib.util
import json

import pytest
from support.bench import wait_until

GPU = (
    "hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2",
    "hydra.launcher.warm=true",
)  # fmt: skip
SPACE = ("lr=tag(log,interval(1,100))", "momentum=interval(0,1)")
HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.mark.parametrize(
    "search",
    [
        "tpe",
        pytest.param(
            "gp",
            marks=[pytest.mark.skipif(not HAS_TORCH, reason="gp needs torch"), pytest.mark.slow],
        ),
        pytest.param("cmaes", marks=pytest.mark.slow),  # as hazero, from another library
        pytest.param("qmc", marks=pytest.mark.slow),  # as random
        "hazero",
        pytest.param("pshe2", marks=pytest.mark.slow),  # as hazero, in rounds
    ],
)
def test_a_sweep_with_this_search_runs_to_its_end_and_begins_with_the_apps_configuration(
    search, chain
):
    printed = chain.run(
        *GPU, *SPACE, "task=a", f"hydra/sweeper/search={search}", "hydra.sweeper.jobs=6"
    )
    assert [end["state"] for end in chain.finished().values()] == ["COMPLETE"] * 6
    started = chain.events("start")
    assert (started[0]["params"], started[0]["origin"]) == ({"lr": 1.0, "momentum": 0.9}, "init")
    assert len({json.dumps(event["params"]) for event in started}) == 6
    assert "A new study" not in printed  # Optuna's own


@pytest.mark.parametrize(
    ("arguments", "waits_after"),
    [
        pytest.param(
            ["hydra.sweeper.popsize=3", "hydra.sweeper.rounds=2"], 3, marks=pytest.mark.slow
        ),
        pytest.param(["hydra.sweeper.jobs=6"], 5, marks=pytest.mark.slow),
        (["hydra.sweeper.jobs=6", "hydra.sweeper.search.popsize=4"], 4),
    ],
)
def test_popsize_reaches_the_population_and_the_next_round_waits(arguments, waits_after, chain):
    slots = "hydra.launcher.cpu_slots=6"
    process = chain.start_held(
        waits_after, *GPU, slots, *SPACE, "task=a", "hydra/sweeper/search=hazero", *arguments
    )
    assert len(chain.events("start")) == waits_after
    chain.release(process)
    assert len(chain.finished()) == 6


def test_a_space_that_the_search_cannot_express_is_refused_before_any_job(chain):
    printed = chain.run(
        *GPU, "lr=interval(1,2)", "optimizer=adam,sgd", "task=a", "hydra/sweeper/search=hazero",
        "hydra.sweeper.jobs=4", status=1,
    )  # fmt: skip
    assert "'optimizer': choice(adam,sgd) has no order" in printed and "tpe" in printed
    assert not chain.ledger()


@pytest.mark.slow  # relay is killed below
def test_a_killed_sweep_goes_on_with_the_suggestions_of_one_that_was_not(benches):
    arguments = (
        *GPU, "hydra.launcher.cpu_slots=1", *SPACE, "task=a", "hydra/sweeper/search=pshe2",
        "hydra.sweeper.jobs=5", "hydra.sweeper.search.popsize=2",
    )  # fmt: skip
    whole, killed = benches("chain", "whole"), benches("chain", "killed")
    whole.run(*arguments)
    killed.start_held(1, *arguments)
    killed.kill(killed.started[0])
    killed.hold.unlink()
    killed.run(*arguments)
    given = [[e["params"] for e in bench.events("start")] for bench in (whole, killed)]
    assert given[0] == [
        params for place, params in enumerate(given[1]) if params not in given[1][:place]
    ]


def test_a_relay_sweep_killed_in_its_second_stage_asks_what_the_uninterrupted_one_asked(benches):
    arguments = (
        *GPU, "hydra.launcher.cpu_slots=1", *SPACE, "task=a,b", "hydra/sweeper/search=relay",
        "hydra.sweeper.search.startup=3", "hydra.sweeper.jobs=5",
    )  # fmt: skip
    whole, killed = benches("chain", "whole"), benches("chain", "killed")
    whole.run(*arguments)
    process = killed.start(*arguments, LASTS_S="0.2")
    wait_until(lambda: len(killed.finished()) >= 7, "two trials of the second stage are over")
    killed.kill(process)
    assert len(killed.events("start")) < 10
    killed.run(*arguments)

    def asked(bench):
        keys = ("stage", "params", "parent", "origin")
        return {e["trial"]: [e.get(key) for key in keys] for e in bench.events("start")}

    assert asked(killed) == asked(whole) and len(asked(whole)) == 10
    assert {origin for *_, origin in asked(whole).values()} >= {"init", "own", "model"}
