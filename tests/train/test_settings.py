"""The training app's configuration, composed by Hydra: keys without a plus, stars, added tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from train.check import Refused
from train.config.command import warn_of_a_default_task
from train.config.env import EnvSettings
from train.config.reading import read_run, read_tasks, write_resolved
from train.config.typed import SettingsError

Compose = Callable[..., dict[str, Any]]
TASK = "task: {a: {_name: digits, options: [0, 1]}}\n"


def test_an_option_that_no_file_sets_needs_no_plus(composed: Compose) -> None:
    overrides = ["task.a.max_src_length=5", "trainer.warmup_steps=3", "memory.budget_mib=null"]
    values = composed(TASK, overrides=overrides)
    assert values["task"]["a"]["max_src_length"] == 5 and values["trainer"]["warmup_steps"] == 3


def test_a_star_gives_way_to_what_a_file_a_group_or_an_override_says(composed: Compose) -> None:
    star = 'task: {"*": {max_src_length: 7, max_tgt_length: 9, dataset: {num_workers: 4}}}\n'
    values = composed(
        star,
        TASK + "  # file",
        overrides=[
            "task=digits_23",
            "task.a.max_tgt_length=1",
            "++task={b:{dataset:{num_workers:1}}}",
        ],
    )
    tasks = values["task"]
    assert list(tasks) == ["digits_23", "a", "b"] and "*" not in tasks
    assert [t["max_src_length"] for t in tasks.values()] == [7, 7, 7]
    assert [t["max_tgt_length"] for t in tasks.values()] == [9, 1, 9]
    assert [t["dataset"]["num_workers"] for t in tasks.values()] == [4, 4, 1]


@pytest.mark.parametrize(
    "typed",
    [
        ["+task.c={_name: digits, max_src_length: 5}"],
        ["++task.c={_name: digits}", "+task.c.max_src_length=5"],
        ["+task.c._name=digits", "task.c.max_src_length=5"],
        ["++task={c: {_name: digits, max_src_length: 5}}"],
    ],
)
def test_a_task_is_added_on_the_command_line_and_checked_like_any_other(
    composed: Compose, typed: list[str]
) -> None:
    values = composed(TASK, 'task: {"*": {max_tgt_length: 9}}', overrides=typed)
    added = {"_name": "digits", "max_src_length": 5, "max_tgt_length": 9}
    assert list(values["task"]) == ["a", "c"] and values["task"]["c"] == added
    wrong = [text.replace("max_src_length", "max_scr_length") for text in typed]
    with pytest.raises(Refused, match=r"task\.c\.max_scr_length=5: there is no option .* max_src_"):
        composed(TASK, overrides=wrong)


def test_the_parts_of_an_added_task_are_added_alike(composed: Compose) -> None:
    overrides = ["+task.c={}", "+task.c.evaluation.metrics.accuracy={target_field: label}"]
    task = composed(TASK, overrides=overrides)["task"]["c"]
    assert task == {"evaluation": {"metrics": {"accuracy": {"target_field": "label"}}}}


def test_defaults_come_after_the_star(composed: Compose) -> None:
    values = composed(TASK, 'task: {"*": {max_tgt_length: 9}}')
    (task,) = read_tasks(values["task"])
    assert (task.max_tgt_length, task.max_src_length, task.dataset.header) == (9, 128, False)


def test_names_of_instances_are_free_and_classes_may_be_shared(composed: Compose) -> None:
    two = "task: {one: {_name: digits, options: [0, 1]}, two: {_name: digits, options: [2, 3]}}"
    assert [(t.name, t.kind) for t in read_tasks(composed(two)["task"])] == [
        ("one", "digits"),
        ("two", "digits"),
    ]


def test_without_a_task_the_message_says_how_to_choose_one(composed: Compose) -> None:
    with pytest.raises(SettingsError, match="choose one, for instance task=digits_01"):
        read_tasks(composed().get("task", {}))


def test_a_default_task_that_is_trained_with_added_ones_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def told(config_name: str, tasks: list[str], *typed: str) -> str:
        choices = {"task": "digits_01"}
        parts = {"job": {"config_name": config_name}, "runtime": {"choices": choices}}
        caplog.clear()
        warn_of_a_default_task(
            OmegaConf.create({**parts, "overrides": {"task": list(typed)}}), tasks
        )
        return caplog.text

    assert "digits_01 is trained together with b, c: " in told("config", ["b", "digits_01", "c"])
    assert not told("config", ["digits_01"])
    assert not told("config", ["digits_01", "c"], "task=digits_01", "+task.c={}")
    assert not told("base+/a.yaml", ["digits_01", "c"])


def test_the_schema_refuses_an_unknown_top_level_key_and_no_other(composed: Compose) -> None:
    with pytest.raises(ConfigCompositionException, match=r"Could not override 'trainr\.fp16'"):
        compose("base", ["trainr.fp16=true"])
    plain = OmegaConf.to_container(compose("base", ["trainer.fp61=true"]))
    assert isinstance(plain, dict) and plain["trainer"] == {"fp61": True}
    assert plain["optimization"] == {} and plain["memory"] == {"method": "none"}


def test_what_is_resolved_can_be_run_again(composed: Compose, tmp_path: Path) -> None:
    composed()
    cfg = compose("config", ["task=[digits_01,digits_23]", "trainer.max_steps=3"])
    job = read_run(cfg)
    write_resolved(job, EnvSettings(), tmp_path)
    again = compose(f"base+{tmp_path / 'resolved.yaml'}")
    assert read_run(again) == job
    assert "task" in yaml.safe_load((tmp_path / "resolved.yaml").read_text())
