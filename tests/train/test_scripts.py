"""The YAML layers of scripts/ and the blocks of OFASys's guide, composed and run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from support.runs import finish, planned

from train.config.hf_names import FILE, source
from train.config.reading import read_run
from train.config.settle import settle

pytestmark = pytest.mark.usefixtures("app_conf")
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for path in (ROOT / "scripts").glob("*.yaml") if path.stem != "base")
BLOCKS = ROOT / "tests/golden/layered_config/inputs/docs/blocks"


def argv(script: Path) -> list[str]:
    line = script.read_text().splitlines()[0]
    assert line.startswith("# python train.py scripts/")
    return shlex.split(line)[3:]


def run_of(words: list[str]) -> Any:
    """The run of a command's words: files, then overrides as OFASys spells them."""
    files = [str(ROOT / word) for word in words if word.endswith(".yaml")]
    typed = [word.removeprefix("--") for word in words if not word.endswith(".yaml")]
    return read_run(compose("+".join(["base", *files]), typed))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_command_above_each_script_composes_to_a_job(script: Path) -> None:
    words = argv(script)
    assert f"scripts/{script.name}" in words
    job = run_of(words)
    assert list(planned(job)) == [task.name for task in job.tasks]


def test_the_scripts_train_two_tasks_together(tmp_path: Path) -> None:
    """As typed, but for the number of updates and the size of the data."""
    words = [*argv(ROOT / "scripts/multitask.yaml"), "--optimization.max_update=2"]
    run = run_of([*words, "--evaluation.dev_share=0.02", "--evaluation.test_share=0.02"])
    results = finish(run, tmp_path)
    assert list(results["eval"]) == ["parity", "sentiment"] and results["steps"] == 2


def test_the_blocks_of_the_guide_mean_what_they_say() -> None:
    names = ("task_image_classify", "model_large", "env_cpu", "trainer")
    values = settle(compose("+".join(["base", *(f"{BLOCKS}/{name}.yaml" for name in names)])))
    assert values["trainer"] == {
        "fp16": True,
        "fp16_scale_window": 512,
        "log_format": "simple",
        "logging_steps": 10,
        "ddp_find_unused_parameters": True,
        "num_train_epochs": 2,
        "max_grad_norm": 1.0,
        "learning_rate": 1e-5,
        "optim": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.01,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"lr_end": 0.0, "power": 1.0},
        "warmup_steps": 0.06,
        "save_strategy": "steps",
        "save_steps": 500,
        "eval_strategy": "steps",
        "eval_steps": 500,
    }
    sizes = {"_name": "unify", "hidden_size": 1024, "num_decoder_layers": 12}
    assert sizes.items() <= values["model"].items()
    criterion = values["task"]["image_classify"]["criterion"]
    assert criterion["label_smoothed_cross_entropy"] == {"label_smoothing": 0.1}
    assert criterion["sentence_avg"] is False and values["env"]["cuda_visible_devices"] == ""


def test_the_arguments_of_the_trainer_are_those_of_the_installed_transformers() -> None:
    assert FILE.read_text() == source(), "write it again: python -m train.config.hf_names"
