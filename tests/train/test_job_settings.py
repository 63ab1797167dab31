"""The configs of the app, and the mistakes a job names before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from omegaconf import OmegaConf

from autocl_sweeper.space import encode, parse_space
from train.check import check_job
from train.config.typed import SettingsError

CONF = Path(__file__).resolve().parents[2] / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
# They want a model: test_folders.py, test_families.py.
WITH_FOLDER = [
    Path(f"model/{name}.yaml") for name in ("seq2seq", "causal", "encoder", "pretrained")
]
OF_SWEEPER = Path("hydra/sweeper/app/autocl.yaml")  # brought by a sweeper
ALONE = [f for f in FILES if f not in (*WITH_FOLDER, OF_SWEEPER)]
WITH_HEAD = [Path(f"model/{name}.yaml") for name in ("headed", "bert_base")]  # test_family_heads.py
ELSEWHERE = ("", "experiment", "task", "memory")  # below, and test_memory_settings.py
CHOICES = [f for f in ALONE if f.parent.name not in ELSEWHERE and f not in WITH_HEAD]
EXPERIMENTS = sorted((CONF / "experiment").glob("*.yaml"))
FAMILIES = [file for file in EXPERIMENTS if file.stem.startswith("memory_")]  # no sweeps


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_config_begins_with_the_command_that_uses_it(file: Path) -> None:
    first, second, *_ = (CONF / file).read_text().splitlines()
    # Hydra reads `@package` only where nothing stands before it.
    command = second if first.startswith("# @package") else first
    assert command.startswith(("# python train.py ", "# python -m train."))


@pytest.mark.usefixtures("app_conf")
@pytest.mark.parametrize(
    "file", [f for f in EXPERIMENTS if f not in FAMILIES], ids=lambda f: f.stem
)
def test_every_experiment_composes_to_a_sweep_over_the_tasks_it_names(file: Path) -> None:
    typed = ["task=digits_01", f"experiment={file.stem}"]
    sweeper = compose("config", typed, return_hydra_config=True).hydra.sweeper
    handover = {"seen_tasks": None, "merge": {"extra": "extra"}}
    assert sweeper.handover == {"init_from": "checkpoint", **handover}
    tasks = {*sweeper.task_params, *str(sweeper.params.get("task", "digits_01")).split(",")}
    assert all((CONF / "task" / f"{task}.yaml").is_file() for task in tasks)
    own = sweeper.task_params.values()
    listed = {str(s): s for found in own if OmegaConf.is_list(found) for s in found}
    axes = parse_space(sweeper.params, None, "params").items()
    shared = {key: encode(axis.at(1)) for key, axis in axes if key != "task"}
    for suggestion in ({}, shared, *listed.values()):  # keys that do not exist are refused
        typed = [f"{k}={v}" for k, v in {"task": "digits_01", **suggestion}.items()]
        typed += ["model=unify_tiny"] if suggestion.get("task") else []
        check_job(compose("config", typed, return_hydra_config=True))


@pytest.mark.usefixtures("app_conf")
@pytest.mark.parametrize("file", FAMILIES, ids=lambda f: f.stem)
def test_an_experiment_of_a_family_is_a_job_of_the_task_it_chooses(file: Path) -> None:
    name = file.stem.removeprefix("memory_")
    typed = [f"experiment={file.stem}", f"task.{name}.dataset.made_rows=8"]
    values = check_job(compose("config", typed, return_hydra_config=True))
    assert [*values["task"]] == [name] and values["delta"]["_name"] == "seqft"
    assert not values["trainer"]["save_model"]


@pytest.mark.usefixtures("app_conf")
@pytest.mark.parametrize("name", ["config", "base+{}/seed.yaml"])
@pytest.mark.parametrize("typed", [["experiment=split_digits"], ["hydra/sweeper=autocl"], []])
def test_the_apps_sweeps_check_their_jobs_with_the_sweeper_that_can(
    tmp_path: Path, name: str, typed: list[str]
) -> None:
    (tmp_path / "seed.yaml").write_text("seed: 1")
    cfg = compose(name.format(tmp_path), typed, return_hydra_config=True)
    assert cfg.hydra.sweeper.get("check") == ("train.check.check_job" if typed else None)


@pytest.mark.parametrize("file", CHOICES, ids=str)
def test_every_choice_composes_to_a_job(make_job: Any, file: Path) -> None:
    make_job(f"{file.parent.as_posix()}={file.stem}")


@pytest.mark.parametrize("file", WITH_FOLDER, ids=str)
def test_a_model_that_is_stored_somewhere_asks_where(make_job: Any, file: Path) -> None:
    with pytest.raises(SettingsError, match=r"model\.path"):
        make_job(f"model={file.stem}")


@pytest.mark.parametrize("file", sorted((CONF / "task").glob("*.yaml")), ids=lambda f: f.stem)
def test_a_task_is_called_like_its_file(make_job: Any, file: Path) -> None:
    job = make_job(f"task={file.stem}")
    assert job.task.name == file.stem and job.seen_tasks == (job.task,)


def test_seen_tasks_keep_their_order_and_bring_their_own_options(make_job: Any) -> None:
    job = make_job("task=digits_45", "seen_tasks=[digits_23,digits_01,digits_45]")
    assert [t.name for t in job.seen_tasks] == ["digits_23", "digits_01", "digits_45"]
    assert [t.options for t in job.seen_tasks] == [(2, 3), (0, 1), (4, 5)]


def test_the_tasks_seen_are_those_of_the_chain_and_the_current_one(
    make_job: Any, tmp_path: Path
) -> None:
    for name, parent in (("digits_67", None), ("digits_01", "../digits_67")):
        (tmp_path / name).mkdir()
        node = json.dumps({"task": name, "parent": parent})
        (tmp_path / name / "node.json").write_text(node)
    job = make_job("task=digits_23", f"init_from={tmp_path / 'digits_01'}")
    assert [t.name for t in job.seen_tasks] == ["digits_67", "digits_01", "digits_23"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("init_from=/nowhere/checkpoint", ["init_from=/nowhere/checkpoint", "no such folder"]),
        ("delta.lora_dim=0", ["delta.lora_dim=0", "at least 1"]),
        ("delta.lora_alpha=0", ["delta.lora_alpha=0", "above 0"]),
        ("delta.lora_dropout=1", ["delta.lora_dropout=1", "[0, 1)"]),
        ("delta.lamda_1=-1", ["delta.lamda_1=-1", "0 or more"]),
        ("delta.lamda_2=nan", ["delta.lamda_2=nan", "finite"]),
        ("task.digits_01.options=[1,11]", ["task.digits_01.options=[1, 11]", "0 to 9"]),
        ("task.digits_01.options=[4]", ["at least two different digits"]),
        ("task.digits_01.options=[4,4]", ["at least two different digits"]),
        ("seen_tasks=[digits_01,digits_99]", ["digits_99", "Known tasks: ", ", digits_01, digi"]),
        ("seen_tasks=[digits_23]", ["current task 'digits_01'"]),
        ("seen_tasks=[digits_01,digits_01]", ["different task names"]),
        ("seen_tasks=digits_01", ["must be a list"]),
        ("evaluation.dev_share=0.9", ["evaluation.dev_share=0.9", "sum below 1"]),
    ],
)
def test_a_mistake_names_the_key_the_value_and_the_rule(
    make_job: Any, override: str, words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        make_job(override)
    assert [word for word in words if word not in str(caught.value)] == []
