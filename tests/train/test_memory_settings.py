"""The section `memory`: its groups, Mimose's names, and what is refused before a job begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.train_app import train

from autocl_sweeper.command_line import CommandLineError
from train.config.memory import MemorySettings, translate_memory
from train.config.script_options import translated
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


def test_mimoses_switches_choose_a_value_of_ours() -> None:
    asked = {"only_input_size": True, "profile_memory": True, "offload": True}
    ours = {"mode": "sizes", "empty_cache": True, "on_infeasible": "offload"}
    assert translate_memory(asked) == ours
    assert translate_memory(dict.fromkeys(asked, False)) == {}


def test_mimoses_names_work_on_the_command_line(composed: Compose) -> None:
    overrides = ["memory.memory_threshold=6", "memory.dynamic_checkpoint=true"]
    found = composed(TASK, overrides=overrides)["memory"]
    assert (found["method"], found["budget_gib"]) == ("plan", 6.0)


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"method": "gc", "dynamic_checkpoint": True},
            r"memory\.dynamic_checkpoint chooses memory\.method=plan, and memory\.method=gc is set",
        ),
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
        ({"method": "gc", "selective": "linear"}, r"memory\.selective=linear: is for plans"),
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


def test_a_prefix_is_refused_beside_a_method_and_no_budget_is_zero(
    make_job: Callable[..., Any],
) -> None:
    with pytest.raises(SettingsError, match=r"delta\._name=prefix: .* memory\.method=gc is set"):
        make_job("memory=gc", "delta=prefix")
    with pytest.raises(
        SettingsError, match=r"memory\.budget_gib=0(\.0)?: must be a finite number above"
    ):
        make_job("memory.budget_gib=0")


# The command lines of Mimose's scripts, without the name of the script.
SWAG = (
    "--model_name_or_path bert-base-uncased --output_dir /tmp/swag --do_train --num_train_epochs 1"
    " --per_device_train_batch_size 16 --memory_threshold 8"
)
SQUAD = (
    "--model_name_or_path bert-base-uncased --dataset_name squad --do_train"
    " --per_device_train_batch_size 12 --learning_rate 3e-5 --output_dir /tmp/squad/ --doc_stride 128"
    " --num_train_epochs 1 --memory_threshold 8"
)


def test_the_command_lines_of_mimoses_scripts_become_overrides() -> None:
    shared = "trainer.do_train=true trainer.num_train_epochs=1 memory.memory_threshold=8"
    swag = translated(["experiment=memory_swag", *SWAG.split()])
    own = "experiment=memory_swag model.path=bert-base-uncased hydra.run.dir=/tmp/swag"
    batch = "trainer.per_device_train_batch_size"
    assert sorted(swag) == sorted(f"{own} {batch}=16 {shared}".split())
    own = "experiment=memory_squad model.path=bert-base-uncased hydra.run.dir=/tmp/squad/"
    more = "trainer.learning_rate=3e-5 task.squad.preprocess.text.doc_stride=128"
    assert sorted(translated(SQUAD.split())) == sorted(f"{own} {batch}=12 {more} {shared}".split())


@pytest.mark.parametrize(
    "typed, made",
    [
        ("memory_threshold=6,8", "memory.memory_threshold=6,8"),
        ("--dynamic_checkpoint warmup_iters=10", "memory.dynamic_checkpoint=true memory.warmup_iters=10"),
        ("--dynamic_checkpoint False", "memory.dynamic_checkpoint=False"),
        ("--static_checkpoint --max_input_size=142", "memory.static_checkpoint=true memory.max_input_size=142"),
        ("--task_name QQP experiment=memory_glue", "experiment=memory_glue"),
        ("-m seed=1 trainer.seed=2 --multirun", "-m seed=1 trainer.seed=2 --multirun"),
    ],
)  # fmt: skip
def test_bare_names_of_mimose_are_keys_of_ours_and_other_words_stay(typed: str, made: str) -> None:
    assert translated(typed.split()) == made.split()


@pytest.mark.parametrize(
    "typed, said",
    [
        ("--gradient_checkpointing", "is written otherwise here: memory=gc"),
        ("--memory_threshold", r"--memory_threshold: wants a value: .*memory\.memory_thresh"),
        ("--dataset_name", "wants a value: --dataset_name <value>, or experiment=<value>"),
        ("--dataset_name sqad", "did you mean squad"),
        ("--dataset_name squad experiment=memory_ner", "means experiment=memory_squad, and"),
    ],
)
def test_options_of_scripts_that_are_not_taken_name_the_key_to_use(typed: str, said: str) -> None:
    with pytest.raises(CommandLineError, match=said):
        translated(typed.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed, rows", [(f"experiment=memory_swag {SWAG}", 64), (SQUAD, 12)], ids=["swag", "squad"]
)
def test_a_command_line_of_mimoses_runs_on_made_up_rows(
    tmp_path: Path, typed: str, rows: int
) -> None:
    here = typed.replace("--model_name_or_path bert-base-uncased ", "").replace("/tmp/", "")
    more = ("--only_input_size", "--dynamic_checkpoint", "--max_steps", "2")
    done = train(tmp_path, *here.split(), *more)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("s*/memory_sizes.json")
    found = json.loads(written.read_text())
    assert (found["method"], found["budget_gib"]) == ("plan", 8.0)
    assert found["largest"]["shape"]["rows"] == rows  # multiple choice: 16 questions of 4 answers


def test_a_budget_that_does_not_suffice_is_said_without_a_traceback(tmp_path: Path) -> None:
    few = ("memory.mode=sizes", "trainer.max_steps=1", "memory.collect_steps=1")
    done = train(tmp_path, "task=digits_01", "memory=plan", "memory.budget_gib=1e-4", *few)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "memory.budget_gib=0.0001: no plan fits 16 x 64: predicted peak 0.00" in done.stderr
    assert "memory.budget_gib=0.0001: the largest batch of the evaluation of digits_01 dev" in (
        done.stderr
    )
