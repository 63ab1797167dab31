"""A script's file: placeholders, mistakes, help."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.script.config import AppConf, NumberConf, ScriptConf, help_text
from autocl_sweeper.script.settings import Settings, read
from autocl_sweeper.script.template import argv, filled

VALUES = {"lr": 1e-05, "n": 3, "name": "it's $HOME; a b", "none": None, "many": ["a", "b c"]}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["x", "--lr={lr}", "{n}"], ["x", "--lr=1e-05", "3"]),
        (["{name}"], ["it's $HOME; a b"]),
        (["x", ["--resume", "{none}/w"], "y"], ["x", "y"]),
        (["x", ["--resume", "{name}/w"], "y"], ["x", "--resume", "it's $HOME; a b/w", "y"]),
        (["{*many}", "--all={many}"], ["a", "b c", "--all=a,b c"]),
        ([["--tasks", "{*none}"]], []),
        (['{"a": {"b": 1}}', "{{lr}}", "{}", "{3}"], ['{"a": {"b": 1}}', "{lr}", "{}", "{3}"]),
        ([["--fp16"]], ["--fp16"]),
    ],
)  # fmt: skip
def test_placeholders_are_replaced_and_other_braces_stay(
    command: list[Any], words: list[str]
) -> None:
    assert argv(command, VALUES) == words


def test_values_in_a_regular_expression_are_quoted() -> None:
    import re

    assert filled(r"{t}: (\d{2})", {"t": "a.b"}, re.escape) == r"a\.b: (\d{2})"


GOOD: dict[str, Any] = {
    "script": {
        "command": ["{python}", "-V", "{lr}", "{task}", ["{init_from}"], "{devices}"],
        "score": {"key": "acc"},
    },
    "params": {"lr": 0.1},
    "task": "a",
}


def settings(tmp_path: Path, change: dict[str, Any] | None = None) -> Settings:
    config = OmegaConf.merge(OmegaConf.structured(AppConf), GOOD, change or {})
    of_hydra = {"runtime": {"cwd": str(tmp_path)}, "launcher": {"devices_per_job": 2}}
    return read(config, OmegaConf.create(of_hydra), tmp_path / "sweep/job")


def script(**keys: Any) -> dict[str, Any]:
    return {"script": keys}


def test_a_job_knows_its_folders_and_its_parents_checkpoint(tmp_path: Path) -> None:
    made = settings(tmp_path, {"init_from": "/c", **script(env={"A": "{lr}", "PATH": None})})
    assert made.argv() == [sys.executable, "-V", "0.1", "a", "/c", "2"]
    assert made.folder() == tmp_path
    assert made.environment()["A"] == "0.1" and "PATH" not in made.environment()
    assert made.values["checkpoint_dir"] == str(tmp_path / "sweep/job/checkpoint")


def test_eval_is_read_for_each_task_so_far(tmp_path: Path) -> None:
    seen = {"seen_tasks": ["a", "b"], **script(eval={"file": "{lr}.json", "key": "acc.{task}"})}
    found = settings(tmp_path, seen).evaluations()
    assert [(task, one.file, one.key) for task, one in found.items()] == [
        ("a", "0.1.json", "acc.a"),
        ("b", "0.1.json", "acc.b"),
    ]
    assert list(settings(tmp_path, script(eval={"key": "{task}"})).evaluations()) == ["a"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (script(command="python train.py"), "is 'python train.py', not a list: no shell reads it"),
        (script(command=[]), "script.command is empty"),
        (script(command=["x", {"lr": None}]), '[1] is a mapping to YAML: put quotes around the'),
        (script(command=["x", True]), "script.command[1] is True, not a word"),
        (script(command=["x", "{epochs}"]), "script.command[1]: {epochs} has no value. There are: "),
        (script(command=["x", "{lr}", "{init_from}"]), "{init_from} is null on the first task: put"),
        (script(command=["x", "{lr}", "{seed}"]), "gives it with +hydra.sweeper.handover.seed=seed"),
        (script(command=["nonesuch", "{lr}"]), "there is no program 'nonesuch'"),
        (script(command=["./run", "{lr}"]), "there is no program './run' (looked for as /"),
        (script(command=["{python}", "gone.py", "{lr}"]), "there is no file 'gone.py' in /"),
        (
            script(command=["{python}", "gone.py", "{lr}"], cwd="{output_dir}"),
            "write {start_dir}/gone.py",
        ),
        (script(command=[["{init_from}"]]), "params.lr is used nowhere"),
        (script(cwd="nowhere"), "script.cwd: there is no folder /"),
        ({"params": {"task": 1}}, "params.task: {task} is set by the sweep"),
        ({"params": {"momentum": 1}}, "params.momentum is used nowhere"),
        ({"tasks": {"b": {"x": 1}}}, "tasks has no values for task 'a'; it has: b"),
        ({"tasks": {"a": 3}}, "tasks.a is 3, not a mapping"),
        ({"tasks": {"a": {"lr": 3}}}, "tasks.a.lr: {lr} is set elsewhere"),
        (script(score=None), "script.score is missing"),
        (script(score={"key": None}), "script.score: give either key (of JSON) or regex"),
        (script(score={"regex": "(x)"}), "script.score: give either key (of JSON) or regex"),
        (script(numbers={"a": {"regex": "loss"}}), "script.numbers.a.regex 'loss' has no group"),
        (script(numbers={"a": {"regex": "("}}), "is no regular expression: "),
        (script(numbers={"score": {"key": "a"}}), "script.numbers.score: the name has a meaning"),
        (script(numbers={"a": {"file": "/x", "key": "a"}}), "'/x' is not below the job's folder"),
        (script(numbers={"a": {"file": "a/../../x", "key": "a"}}), "is not below the job's folder"),
        (script(eval={"key": "acc"}), "script.eval needs {task}"),
        (script(checkpoint="."), "script.checkpoint '.' is not a folder below the job's folder"),
        (script(exit_codes={3: "bad"}), "script.exit_codes: 3 means 'bad'; the words are success"),
        (script(exit_codes={0: "failure"}), "no status means success"),
        (script(env={"A": "{b}"}), "script.env.A: {b} has no value"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_its_place(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        settings(tmp_path, change)
    assert said in str(raised.value)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        settings(tmp_path, {**script(score=None, checkpoint=".."), "params": {"b": 1, "c": 2}})
    assert len(str(raised.value).splitlines()) == 1 + 4 + 3


def test_help_explains_every_key() -> None:
    text = help_text()
    for conf in (ScriptConf, NumberConf, AppConf):
        for field in dataclasses.fields(conf):
            assert "help" in field.metadata or field.name in ("script", "defaults"), field.name
            assert field.name == "defaults" or f"{field.name} = " in text or field.name == "script"


def test_the_file_in_the_documentation_is_that_of_the_example() -> None:
    root = Path(__file__).resolve().parents[2]
    example = (root / "examples/strangers_script/conf/digits.yaml").read_text()
    command, _, rest = example.partition("\n")
    page = (root / "docs/scripts.md").read_text()
    assert f"```yaml\n{rest}```" in page and command.removeprefix("# ") in page
