"""The tasks so far are handed to an app that has a key for them, and to no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.bench import REPOSITORY, Bench
from support.plans import plan_of

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.types import Suggestion, Trial

APP = {"task": "a", "lr": 0.1, "init_from": None, "seen_tasks": None}


def last_words(*arguments: str, app: Any = APP, **settings: Any) -> tuple[str, ...]:
    """The overrides of a job of the second stage."""
    plan = plan_of(
        "task=a,b,c", *arguments, compose=lambda overrides, meant_for: app, knows_folders=False,
        **settings,
    )  # fmt: skip
    return plan.overrides(Trial(9, 2, "b", Suggestion(0, {}), 3), "c")


def test_an_app_with_the_key_gets_the_tasks_up_to_its_own() -> None:
    assert last_words() == ("task=b", "init_from=c", "seen_tasks=[a,b]")
    assert last_words(app={**APP, "seen_tasks": ["a"]})[-1] == "seen_tasks=[a,b]"


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], {"app": {"task": "a", "init_from": None}}),
        ([], {"app": {**APP, "seen_tasks": 3}}),  # it means something else there
        (["seen_tasks=[b]"], {}),
        (["+seen_tasks=[a],[b]"], {}),
        ([], {"handover": {"init_from": "checkpoint", "seen_tasks": None}}),
        ([], {"handover": {"init_from": None}}),
        ([], {"parents": "init", "popsize": 1}),
    ],
    ids=["no key", "a number", "the user's", "searched", "off", "no chain", "no parents"],
)
def test_otherwise_nothing_changes(arguments: list[str], settings: dict[str, Any]) -> None:
    try:
        words = last_words(*arguments, **settings)
    except ConfigurationError as error:  # of parse: no loader in these plans
        pytest.fail(str(error))
    assert "seen_tasks=[a,b]" not in words


def test_a_key_with_another_name_is_the_only_one_that_gets_them() -> None:
    words = last_words(handover={"init_from": "checkpoint", "so_far": "seen_tasks"})
    assert words == ("task=b", "init_from=c", "so_far=[a,b]")


def test_switched_off_a_sweep_is_the_one_that_it_was_before_there_was_a_default() -> None:
    def fingerprint(app: Any, **handover: Any) -> Any:
        plan = plan_of(
            "task=a,b",
            compose=lambda overrides, meant_for: app,
            handover={"init_from": "checkpoint", **handover},
        )
        return plan.fingerprint

    older = fingerprint({"task": "a", "init_from": None})
    assert older["hydra.sweeper.handover"] == {"init_from": "checkpoint"}
    assert fingerprint(APP, seen_tasks=None)["hydra.sweeper.handover"] == {
        "init_from": "checkpoint"
    }
    now = fingerprint(APP)
    assert now["hydra.sweeper.handover"] == {"init_from": "checkpoint", "seen_tasks": "seen_tasks"}
    assert "seen_tasks" not in now["configuration"]["a"]


def test_a_real_sweep_of_the_smallest_app_measures_every_task_so_far(tmp_path: Path) -> None:
    bench = Bench(tmp_path, REPOSITORY / "examples/minimal/app.py")
    bench.run("hydra/sweeper=autocl", "hydra/launcher=gpu", "task=low,high", "rate=0.5")
    evaluated = {trial: list(event["eval"]) for trial, event in bench.finished().items()}
    assert evaluated == {0: ["low"], 1: ["low", "high"]}
    assert "seen_tasks=[low,high]" in bench.events("start")[1]["overrides"]
    bench.close()
