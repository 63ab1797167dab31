"""The section `memory`: its groups, Mimose's names, and what is refused before a job begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from train.config.memory import MemorySettings, translate_memory
from train.config.typed import SettingsError

Compose = Callable[..., dict[str, Any]]
TASK = "task: {a: {_name: digits, options: [0, 1]}}\n"


@pytest.mark.parametrize(
    "method, more",
    [
        ("none", []),
        ("gc", []),
        ("plan", ["memory.budget_gib=6"]),
        ("static", ["memory.budget_gib=6", "memory.max_size=142"]),
        ("fixed", ["memory.blocks=[0,1]"]),
        ("every_n", ["memory.n=3"]),
    ],
)
def test_each_file_of_the_group_chooses_its_method(
    make_job: Callable[..., Any], method: str, more: list[str]
) -> None:
    assert make_job(f"memory={method}", *more).memory.method == method


def test_mimoses_names_become_ours() -> None:
    dynamic = {"dynamic_checkpoint": True, "memory_threshold": 6, "memory_buffer": 0.5}
    found = translate_memory({"method": "none", **dynamic, "warmup_iters": 10})
    assert found == {"method": "plan", "budget_gib": 6.0, "margin_gib": 0.5, "collect_steps": 10}
    static = translate_memory({**dynamic, "static_checkpoint": True, "max_input_size": 142})
    assert static["method"] == "static" and static["max_size"] == 142
    fixed = translate_memory({"prev_checkpoint": [0, 1, 2], "dynamic_checkpoint": False})
    assert fixed == {"method": "fixed", "blocks": [0, 1, 2]}
    assert translate_memory({"memory_threshold": 8}) == {"budget_gib": 8.0}  # a cap alone


def test_mimoses_names_work_on_the_command_line(composed: Compose) -> None:
    overrides = ["memory.memory_threshold=6", "memory.dynamic_checkpoint=true"]
    found = composed(TASK, overrides=overrides)["memory"]
    assert (found["method"], found["budget_gib"]) == ("plan", 6.0)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"use_dtr": True}, r"memory\.use_dtr=true is not taken over: it needs a patched torch"),
        ({"memory_threshold": "x"}, r"memory\.memory_threshold=x: must be a number"),
        (
            {"memory_threshold": 6, "budget_gib": 8},
            r"memory\.memory_threshold=6(\.0)? and memory\.budget_gib=8: say two things",
        ),
    ],
)
def test_mimoses_names_that_cannot_be_taken_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        translate_memory(values)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"method": "plan"}, r"memory\.method=plan: plans need a budget"),
        ({"method": "static", "budget_gib": 8}, r"memory\.max_size"),
        ({"method": "fixed"}, r"memory\.blocks=null: is the list"),
        ({"blocks": (0,)}, r"memory\.blocks=\[0\]: .* the method is none"),
        ({"method": "fixed", "blocks": (0, 0)}, r"must be different indices"),
        ({"budget_gib": 8.0, "budget_mib": 8}, r"one setting in two units"),
        ({"budget_gib": 1.0, "margin_gib": 1.0}, r"memory\.margin_gib=1\.0: leaves nothing"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        MemorySettings(**values)


@pytest.mark.parametrize("key", ["activation_checkpointing", "auto_find_batch_size"])
def test_a_trainer_option_that_works_against_a_method_is_refused_beside_it(
    make_job: Callable[..., Any], key: str
) -> None:
    make_job(f"trainer.{key}=true")
    with pytest.raises(SettingsError, match=rf"trainer\.{key}=true: .* memory\.method=gc is set"):
        make_job("memory=gc", f"trainer.{key}=true")
