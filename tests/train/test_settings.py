"""The training app's configuration, composed by Hydra: types, star, OFASys's names, help. No torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the app lies beside its train.py and is not installed
Plugins.instance()  # `_include` and names with '+' are a plugin's

Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Compose]:
    """compose(*files, overrides=[...]): the settled values, as `python train.py` would have them."""
    from train.config.compose import install
    from train.config.settle import settle
    from train.main import CONF, VERSION_BASE

    install()
    monkeypatch.chdir(tmp_path)

    def made(*texts: str, overrides: list[str] | None = None) -> dict[str, Any]:
        names = ["base"]
        for number, text in enumerate(texts):
            path = tmp_path / f"{number}.yaml"
            path.write_text(text)
            names.append(str(path))
        return settle(compose("+".join(names), overrides or []))

    with initialize_config_dir(str(CONF), **VERSION_BASE):
        yield made


TASK = "task: {a: {_name: digits, options: [0, 1]}}\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("trainer:\n  lerning_rate: 1", 2, "there is no option 'lerning_rate'; did you mean learn"),
        ("trainer: {max_steps: 1.5}", 1, "trainer.max_steps=1.5: must be a whole number"),
        ("trainr:\n  fp16: true", 1, "no section or key of this name; did you mean trainer?"),
        ("task:\n  a:\n    dataset:\n      headr: 1", 4, "'headr'; did you mean header?"),
        ("task:\n  a:\n    criterion: {weight: -1}", 3, "weight=-1: must be a finite number, 0 or"),
        ("task:\n  a:\n    max_src_length: x", 3, "max_src_length=x: must be a whole number"),
        (
            "task:\n  a:\n    dataset:\n      update_freq: [1, x]",
            4,
            "update_freq[1]=x: must be a whole number",
        ),
        (
            "model:\n  arch: lage",
            2,
            "model.arch=lage: unknown; there are tiny, medium, base, large",
        ),
        ("optimization:\n  lrs: 1", 2, "there is no option 'lrs'; did you mean lr?"),
        ("trainer:\n  seed: 3", 2, "set the top-level key `seed`"),
        ("trainer:\n  optim: adamm", 2, "trainer.optim=adamm: is none of the"),
        ("seed: -1", 1, "seed=-1: must be a whole number, 0 or more"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_file_line_key_value_and_rule(
    composed: Compose, text: str, line: int, words: str
) -> None:
    from train.config.compose import Refused

    with pytest.raises(Refused) as caught:
        composed(TASK, text)
    assert f"1.yaml:{line}: " in str(caught.value) and words in str(caught.value)


def test_all_mistakes_are_told_at_once_wherever_they_stand(composed: Compose) -> None:
    from train.config.compose import Refused

    with pytest.raises(Refused) as caught:
        composed(
            TASK,
            "trainer: {fp61: true}",
            "model: {hidden_size: big}",
            overrides=["task.a.max_scr_length=3"],
        )
    said = str(caught.value).splitlines()
    assert said[0] == "3 mistakes in the configuration:"
    assert [one.split(": ")[0] for one in said[1:]] == ["1.yaml:1", "2.yaml:1", "the command line"]
    assert "did you mean max_src_length?" in said[3]


def test_a_mistake_in_an_included_file_names_the_chain(composed: Compose, tmp_path: Path) -> None:
    from train.config.compose import Refused

    (tmp_path / "below.yaml").write_text("# base\ntrainer:\n  max_stepss: 3\n")
    (tmp_path / "middle.yaml").write_text("_include: below.yaml\n")
    with pytest.raises(Refused, match=r"below\.yaml:3, included from middle\.yaml, included from"):
        composed(TASK + "_include: middle.yaml\n")


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
    from train.config.compose import Refused

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


def test_a_task_that_is_not_there_is_told_with_the_nearest_and_how_to_add_one(
    composed: Compose,
) -> None:
    from hydra.errors import ConfigCompositionException

    small = "task: {small: {_name: digits, options: [0, 1]}}"
    with pytest.raises(ConfigCompositionException, match=r"no task 'smal'; did you mean small\?\n"):
        composed(small, overrides=["task.smal.max_src_length=5"])
    with pytest.raises(ConfigCompositionException, match=r"there are: a\n.*'\+task\.b=\{_name: <"):
        composed(TASK, overrides=["task.b={_name: digits}"])
    with pytest.raises(
        ConfigCompositionException, match=r"task\.b=5: must be a mapping of _name, "
    ):
        composed(TASK, overrides=["+task.b=5"])
    with pytest.raises(
        ConfigCompositionException, match=r"task=null: .* ~task chooses none of them"
    ):
        composed(TASK, overrides=["task=null"])


def test_a_default_task_that_is_trained_with_added_ones_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from omegaconf import OmegaConf

    from train.config.command import warn_of_a_default_task

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


def test_defaults_come_after_the_star(composed: Compose) -> None:
    from train.config.sections import read_tasks

    values = composed(TASK, 'task: {"*": {max_tgt_length: 9}}')
    (task,) = read_tasks(values["task"])
    assert (task.max_tgt_length, task.max_src_length, task.dataset.header) == (9, 128, False)


def test_a_mistake_that_a_star_hands_down_is_found_at_the_star(composed: Compose) -> None:
    from train.config.compose import Refused

    with pytest.raises(Refused, match=r"1\.yaml:3: task\.a\.dataset\.update_freq=x: must be"):
        composed(TASK, 'task:\n  "*":\n    dataset: {update_freq: x}\n')


def test_names_of_instances_are_free_and_classes_may_be_shared(composed: Compose) -> None:
    from train.config.sections import read_tasks

    two = "task: {one: {_name: digits, options: [0, 1]}, two: {_name: digits, options: [2, 3]}}"
    assert [(t.name, t.kind) for t in read_tasks(composed(two)["task"])] == [
        ("one", "digits"),
        ("two", "digits"),
    ]


def test_without_a_task_the_message_says_how_to_choose_one(composed: Compose) -> None:
    from train.config.sections import SettingsError, read_tasks

    with pytest.raises(SettingsError, match="choose one, for instance task=digits_01"):
        read_tasks(composed().get("task", {}))


# -- what has to be given ---------------------------------------------------------------------------

ASKS = """trainer:
  max_steps: ???
  lr_scheduler_kwargs:
    lr_end: ???
memory: ???
task:
  a:
    dataset: {update_freq: [1, "???"]}
    max_src_length: ???
"""


def test_all_that_is_left_to_be_given_is_told_at_once_with_file_and_line(composed: Compose) -> None:
    from train.config.compose import Refused

    with pytest.raises(Refused) as caught:
        composed(TASK, ASKS, "trainer: {optim: adamm}", overrides=["trainer.warmup_steps=???"])
    first, *said = str(caught.value).splitlines()
    assert first == "7 mistakes in the configuration:"
    assert sorted(one.partition("=")[0] for one in said) == [
        "1.yaml:2: trainer.max_steps",
        "1.yaml:4: trainer.lr_scheduler_kwargs.lr_end",
        "1.yaml:5: memory",
        "1.yaml:8: task.a.dataset.update_freq[1]",
        "1.yaml:9: task.a.max_src_length",
        "2.yaml:1: trainer.optim",
        "the command line: trainer.warmup_steps",
    ]
    assert "or on the command line (trainer.max_steps=<value>), or remove" in str(caught.value)


def test_what_a_later_file_or_an_override_gives_was_given(composed: Compose) -> None:
    later = "memory: {budget_mib: null}\ntask: {a: {max_src_length: 3, dataset: {update_freq: 2}}}"
    overrides = ["trainer.max_steps=5", "trainer.lr_scheduler_kwargs.lr_end=0"]
    values = composed(TASK, ASKS, later, overrides=overrides)
    assert values["trainer"] == {"max_steps": 5, "lr_scheduler_kwargs": {"lr_end": 0}}
    assert values["task"]["a"]["max_src_length"] == 3
    # Hydra's rule, over groups: `???` leaves what stands below it.
    assert composed(TASK, "delta:\n  lora_dim: ???")["delta"]["lora_dim"] == 8


def test_what_a_star_asks_for_each_task_has_to_give(composed: Compose) -> None:
    from train.config.compose import Refused

    star = 'task:\n  b: {_name: digits, options: [0, 1]}\n  "*":\n    max_src_length: ???'
    values = composed(TASK, star, overrides=["task.a.max_src_length=1", "task.b.max_src_length=2"])
    assert [task["max_src_length"] for task in values["task"].values()] == [1, 2]
    with pytest.raises(Refused, match=r"^1\.yaml:4: task\.b\.max_src_length=\?\?\?") as caught:
        composed(TASK, star, overrides=["task.a.max_src_length=1"])
    assert "\n" not in str(caught.value)
    # By the merge rule `???` goes over what the star says, as it does over another file.
    with pytest.raises(Refused, match=r"^1\.yaml:1: task\.a\.max_src_length=\?\?\?"):
        composed('task: {"*": {max_src_length: 1}}', 'task: {a: {max_src_length: "???"}}')


def test_a_configuration_that_is_only_looked_at_may_have_values_left_to_give(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hydra.core.global_hydra import GlobalHydra

    composed(TASK)
    (tmp_path / "asks.yaml").write_text(ASKS + "seed: ${trainer.max_steps}\n")
    hydra, name = GlobalHydra.instance().hydra, f"base+{tmp_path}/0.yaml+{tmp_path}/asks.yaml"
    assert hydra is not None
    hydra.show_cfg(name, [], "job", None)
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["memory"] == shown["trainer"]["max_steps"] == "???"
    assert "warmup_steps" not in shown["trainer"] and shown["seed"] == "${trainer.max_steps}"


def test_jobs_of_a_sweep_have_to_give_it_each(composed: Compose, tmp_path: Path) -> None:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from autocl_sweeper.job.composition import remembering
    from train.config.compose import Refused

    composed(TASK, "seed: ???", overrides=["seed=1"])
    loader = remembering(GlobalHydra.instance().config_loader())
    name = f"base+{tmp_path}/0.yaml+{tmp_path}/1.yaml"
    master = loader.load_configuration(name, [], RunMode.MULTIRUN)
    for number in (1, 2, 3):  # the second and third from memory
        assert loader.load_sweep_config(master, [f"seed={number}"]).seed == number
        with pytest.raises(Refused, match=r"^1\.yaml:1: seed=\?\?\?"):
            loader.load_sweep_config(master, [f"trainer.max_steps={number}"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "seed: ${nowhere.x}",
            r"1\.yaml:1: seed=\$\{nowhere\.x\}: Interpolation key 'nowhere\.x' not",
        ),
        (
            "trainer:\n  save_dir: ${trainer.save_dir}/x",
            r"1\.yaml:2: trainer\.save_dir=.*\n *it refers to itself",
        ),
        (
            "optimizer:\n  _name: adamm",
            r"1\.yaml:2, as optimizer\._name: trainer\.optim=adamm: is none of the \d+ names that",
        ),
        (
            "checkpoint:\n  save_dir: oss://x",
            r"1\.yaml:2, as checkpoint\.save_dir: trainer\.save_dir=oss://x: must be a local path",
        ),
        (
            "trainer:\n  lr: 1",
            r"1\.yaml:2: trainer\.lr=1: .*; python train\.py --info trainer lists",
        ),
        ("task:\n  '*': 3", r"1\.yaml:2: task\.\*=3: must be a mapping of _name, "),
    ],
)
def test_a_mistake_is_found_where_it_was_written_whatever_the_name_and_the_stage(
    composed: Compose, text: str, said: str
) -> None:
    from train.config.compose import Refused

    with pytest.raises(Refused, match=f"^{said}"):
        composed(TASK, text)


def test_a_default_that_will_not_do_is_laid_to_no_file(composed: Compose) -> None:
    from train.config.origins import Layer, origin

    defaults = Layer({"trainer": {}}, "/conf/trainer/default.yaml", ("trainer",))
    assert origin([defaults], "trainer.max_steps") is None


def test_a_task_chosen_twice_is_refused(composed: Compose) -> None:
    from train.config.compose import Refused

    with pytest.raises(
        Refused, match=r"task=\[digits_01,digits_23,digits_01\]: digits_01 stands twi"
    ):
        composed(overrides=["task=[digits_01,digits_23,digits_01]"])


# -- as a job --------------------------------------------------------------------------------------

TEXTS = """task:
  a:
    _name: arithmetic
    instruction:
      template: 'what is [TEXT:question]? -> [TEXT: answer]'
"""
RANK = "env:\n  nnodes: 2\n  rank: 2\n  port: 29500\n"


def run(name: str, *overrides: str, folder: Path) -> list[Any]:
    """What a task function got, if Hydra came to call it."""
    from hydra.core.global_hydra import GlobalHydra

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    called: list[Any] = []
    typed = [*overrides, f"hydra.run.dir={folder}", "hydra/job_logging=none"]
    hydra.run(config_name=name, task_function=called.append, overrides=typed)
    return called


def test_what_is_wrong_with_a_job_is_told_at_once_before_its_folder_is_made(
    composed: Compose, tmp_path: Path
) -> None:
    from train.config.compose import Refused

    composed(TEXTS, RANK, "model:\n  _name: unify\n  num_attention_heads: 7")
    name = "+".join(["base", *(f"{tmp_path}/{number}.yaml" for number in range(3))])
    with pytest.raises(Refused) as caught:
        run(name, folder=tmp_path / "run")
    said = str(caught.value).splitlines()
    assert said[0] == "3 mistakes in the configuration:"
    assert said[1].startswith(
        "1.yaml:3: env.rank=2 with env.nnodes=2: the rank is the number of this"
    )
    assert said[2].endswith(
        "model.hidden_size=64: must be a multiple of model.num_attention_heads=7"
    )
    assert said[3].startswith("0.yaml:5: task.a: instruction template, column 29: '[TEXT: answer]'")
    assert said[5].index("^") == said[4].index("[TEXT: answer]")
    assert not (tmp_path / "run").exists()
    # Of two tasks that are both wrong, both.
    with pytest.raises(
        Refused, match=r"(?s)0\.yaml:5: task\.a: .*command line: task\.b: instruction"
    ):
        run(
            f"base+{tmp_path}/0.yaml",
            "model=unify_tiny",
            "+task.b={_name: arithmetic, instruction: {template: x}}",
            folder=tmp_path / "run",
        )


def test_jobs_of_a_sweep_are_held_against_what_the_launcher_leases(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from train.config.compose import Refused

    loader = GlobalHydra.instance().config_loader()
    wide = tmp_path / "wide.yaml"
    wide.write_text("env:\n  nproc_per_node: 2\n")

    def composes(*typed: str, job: str = "seed=1") -> Any:
        overrides = ["hydra.mode=MULTIRUN", "task=digits_01", *typed]
        master = loader.load_configuration(f"base+{wide}", overrides, RunMode.MULTIRUN)
        return loader.load_sweep_config(master, ["task=digits_01", *typed[1:], job])

    with pytest.raises(
        Refused, match=r"wide\.yaml:2: env\.nproc_per_node=2, but the launcher leases 1"
    ):
        composes("hydra/launcher=gpu")
    assert (
        composes("hydra/launcher=gpu", "hydra.launcher.devices_per_job=2").env.nproc_per_node == 2
    )
    # The app's own launcher leases as many as the sweep says, not as one of its jobs does.
    assert composes("hydra/launcher=gpu_warm").hydra.launcher.devices_per_job == 2
    with pytest.raises(
        Refused, match=r"command line: env\.nproc_per_node=3, .*hydra\.launcher\.dev"
    ):
        composes("hydra/launcher=gpu_warm", job="env.nproc_per_node=3")
    with pytest.raises(
        Refused, match=r"command line: env\.nnodes=2 in a job of a launcher that leas"
    ):
        composes("hydra/launcher=gpu", "env.nproc_per_node=1", "env.nnodes=2", "env.port=29500")
    # Hydra's own launcher trains here, where CUDA shows one.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("AUTOCL_DEVICES", raising=False)
    with pytest.raises(Refused, match=r"wide\.yaml:2: env\.nproc_per_node=2, but CUDA_VISIBLE_DEV"):
        composes("hydra/launcher=basic")


# -- OFASys ----------------------------------------------------------------------------------------

ROWS = {
    # each row of the table: what it is given, and what comes of it
    "common.seed": (7, {"seed": 7}),
    "common.fp16": (True, {"trainer.fp16": True}),
    "common.bf16": (True, {"trainer.bf16": True}),
    "common.fp16_scale_window": (512, {"trainer.fp16_scale_window": 512}),
    "common.fp16_init_scale": (4, {"trainer.fp16_init_scale": 4}),
    "common.min_loss_scale": (0.5, {"trainer.min_loss_scale": 0.5}),
    "common.log_format": ("json", {"trainer.log_format": "json"}),
    "common.log_interval": (10, {"trainer.logging_steps": 10}),
    "common.log_file": ("x", "choose that with hydra.run.dir"),
    "common.tensorboard_logdir": ("x", "all_results.json"),
    "common.cpu": (True, {"trainer.use_cpu": True}),
    "distributed_training.find_unused_parameters": (
        True,
        {"trainer.ddp_find_unused_parameters": True},
    ),
    "distributed_training.distributed_backend": ("gloo", {"trainer.ddp_backend": "gloo"}),
    "optimization.max_epoch": (2, {"trainer.num_train_epochs": 2}),
    "optimization.max_update": (9, {"trainer.max_steps": 9}),
    "optimization.stop_time_hours": (1.5, {"trainer.stop_time_hours": 1.5}),
    "optimization.clip_norm": (5.0, {"trainer.max_grad_norm": 5.0}),
    "optimization.lr": ([1e-5, 1], {"trainer.learning_rate": 1e-5}),
    "optimization.sentence_avg": (True, {"task.a.criterion.sentence_avg": True}),
    "optimization.update_freq": (4, "set task.<name>.dataset.update_freq"),
    "optimizer._name": ("adam", {"trainer.optim": "adamw_torch"}),
    "optimizer.adam_betas": (
        "(0.8,0.99)",
        {"trainer.adam_beta1": 0.8, "trainer.adam_beta2": 0.99},
    ),
    "optimizer.adam_eps": (1e-6, {"trainer.adam_epsilon": 1e-6}),
    "optimizer.weight_decay": (0.1, {"trainer.weight_decay": 0.1}),
    "lr_scheduler._name": ("ofa_polynomial_decay", {"trainer.lr_scheduler_type": "polynomial"}),
    "lr_scheduler.warmup_ratio": (0.06, {"trainer.warmup_steps": 0.06}),
    "lr_scheduler.warmup_updates": (50, {"trainer.warmup_steps": 50}),
    "lr_scheduler.end_learning_rate": (1e-6, {"trainer.lr_scheduler_kwargs.lr_end": 1e-6}),
    "lr_scheduler.power": (2.0, {"trainer.lr_scheduler_kwargs.power": 2.0}),
    "lr_scheduler.total_num_update": (500, "set optimization.max_update"),
    "dataset.micro_batch_size": (8, {"trainer.per_device_train_batch_size": 8}),
    "dataset.micro_valid_batch_size": (4, {"trainer.per_device_eval_batch_size": 4}),
    "dataset.validate_interval": (1, {"trainer.eval_strategy": "epoch"}),
    "dataset.validate_interval_updates": (
        5,
        {"trainer.eval_strategy": "steps", "trainer.eval_steps": 5},
    ),
    "dataset.validate_after_updates": (3, {"trainer.eval_delay": 3}),
    "dataset.max_valid_steps": (2, {"trainer.max_valid_steps": 2}),
    "dataset.disable_validation": (True, {"trainer.eval_strategy": "no"}),
    "checkpoint.save_dir": ("runs/x", {"trainer.save_dir": "runs/x"}),
    "checkpoint.restore_file": ("old.pt", "top-level key init_from"),
    "checkpoint.finetune_from_model": ("runs/y", {"init_from": "runs/y"}),
    "checkpoint.reset_optimizer": (True, {}),
    "checkpoint.reset_lr_scheduler": (True, {}),
    "checkpoint.reset_meters": (True, {}),
    "checkpoint.reset_dataloader": (True, {}),
    "checkpoint.save_interval": (1, {"trainer.save_strategy": "epoch"}),
    "checkpoint.save_interval_updates": (
        7,
        {"trainer.save_strategy": "steps", "trainer.save_steps": 7},
    ),
    "checkpoint.validate_interval_updates": (
        5,
        {"trainer.eval_strategy": "steps", "trainer.eval_steps": 5},
    ),
    "checkpoint.keep_interval_updates": (3, {"trainer.save_total_limit": 3}),
    "checkpoint.keep_last_epochs": (-1, {}),
    "checkpoint.keep_best_checkpoints": (2, "checkpoint/ is the best one already"),
    "checkpoint.no_epoch_checkpoints": (True, {}),
    "checkpoint.no_save": (True, "starts from this job's checkpoint"),
    "checkpoint.best_checkpoint_metric": ("acc", {"trainer.metric_for_best_model": "acc"}),
    "checkpoint.maximize_best_checkpoint_metric": (True, {"trainer.greater_is_better": True}),
    "checkpoint.patience": (3, {"trainer.patience": 3}),
    "ema.store_ema": (True, "no moving average"),
    "ema.ema_decay": (0.9, {}),
    "ema.ema_start_update": (3, {}),
}


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        k: v
        for key, child in node.items()
        for k, v in flat(child, f"{prefix}.{key}".strip(".")).items()
    }


def test_every_row_of_the_table_is_tried() -> None:
    from train.config.ofasys import BY_KEY

    assert ROWS.keys() == BY_KEY.keys()


@pytest.mark.parametrize("key", ROWS)
def test_a_key_of_ofasys_becomes_ours_or_is_refused_with_the_way_out(key: str) -> None:
    from train.config.ofasys import translate
    from train.config.typed import SettingsError

    given, expected = ROWS[key]
    section, name = key.split(".")
    values = {"task": {"a": {"_name": "digits"}}, section: {name: given}}
    if isinstance(expected, str):
        with pytest.raises(SettingsError, match="is not taken over") as caught:
            translate(values)
        assert f"{key}={given}" in str(caught.value) and expected in str(caught.value)
        return
    made = flat({k: v for k, v in translate(values).items() if v != {}})
    if section == "lr_scheduler" and name == "_name":
        expected = {
            **expected,
            "trainer.lr_scheduler_kwargs.lr_end": 0.0,
            "trainer.lr_scheduler_kwargs.power": 1.0,
        }
    assert made == {"task.a._name": "digits", **expected}


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    from train.config.ofasys import table

    assert table() in (ROOT / "docs/configuration.md").read_text()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (
            ["optimization: {lr: 1e-5}", "trainer: {learning_rate: 0.1}"],
            "optimization.lr=1e-05 and trainer.learning_rate=0.1 say two things about",
        ),
        (
            [
                "dataset: {validate_interval_updates: 5}",
                "checkpoint: {validate_interval_updates: 6}",
            ],
            "checkpoint.validate_interval_updates=6 and dataset.validate_interval_updates=5 say",
        ),
        (["optimization: {max_epoch: 0, max_update: 0}"], "training would never end; set one"),
        (["optimizer: {adam_betas: '__import__(1)'}"], "optimizer.adam_betas="),
        (["model: {share_all_embeddings: false}"], "this app's model has True only"),
        (["dataset: {validate_interval: 2}"], "is not taken over: only every epoch"),
    ],
)
def test_contradictions_and_what_cannot_be_are_told(
    composed: Compose, texts: list[str], words: str
) -> None:
    from train.config.compose import Refused

    with pytest.raises(Refused) as caught:
        composed(TASK, *texts)
    assert words in str(caught.value)


def test_the_same_said_in_both_ways_is_no_contradiction(composed: Compose) -> None:
    values = composed(TASK, "optimization: {lr: 1e-5}", "trainer: {learning_rate: 0.00001}")
    assert values["trainer"]["learning_rate"] == 1e-5


def test_an_override_of_ofasys_reaches_what_refers_to_it(composed: Compose) -> None:
    values = composed(
        TASK,
        "optimization: {max_epoch: 2}\ncheckpoint: {save_dir: 'runs/${optimization.max_epoch}'}",
        overrides=["optimization.max_epoch=3"],
    )
    assert values["trainer"] == {"num_train_epochs": 3, "save_dir": "runs/3"}


def test_sizes_that_are_given_win_over_those_of_the_architecture(composed: Compose) -> None:
    model = composed(TASK, "model: {_name: unify, arch: large, hidden_size: 32}")["model"]
    assert model["hidden_size"] == 32 and model["num_hidden_layers"] == 12


# -- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--info"], "Sections (python train.py"),
        (["--info", "task=digits_01"], "Sections (python train.py"),
        (["--info", "trainer"], "learning_rate = 0.001"),
        (["--info=delta"], "lora_dim = 8"),
        (["-i", "task.dataset"], 'separator = "\\t"'),
        (["task=a", "--info", "optimization"], "trainer.learning_rate"),
    ],
)
def test_info_lists_the_options_of_a_section(argv: list[str], words: str) -> None:
    from train.info import answer

    assert words in (answer(argv) or "")


@pytest.mark.parametrize("value", ["all", "config", "defaults", "defaults-tree", "plugins"])
def test_hydras_own_info_stays_hydras(value: str) -> None:
    from train.info import answer

    assert answer(["--info", value]) is None and answer(["task=a"]) is None


def test_every_section_and_every_option_has_help() -> None:
    from train.config.typed import options
    from train.info import KINDS, describe

    for name, kind in KINDS.items():
        assert all(one.metadata["help"] for one in options(kind).values()), name
        assert all(
            f"{key} = " in describe(name) or f"{key}" in describe(name) for key in options(kind)
        )


def test_info_of_a_section_loads_neither_torch_nor_transformers() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['train.py', '--info', 'trainer']\n"
        "import runpy\n"
        f"try: runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "finally: print('LOADED', sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "num_train_epochs = 5.0 [epochs]" in done.stdout and "LOADED []" in done.stdout


def test_an_unknown_section_is_answered_with_the_nearest() -> None:
    from train.info import answer

    with pytest.raises(ValueError, match="no section 'trainr'; did you mean trainer"):
        answer(["--info", "trainr"])


def test_what_is_resolved_can_be_run_again(composed: Compose, tmp_path: Path) -> None:
    import yaml

    from train.config.env import EnvSettings
    from train.config.sections import read_job, write_resolved
    from train.main import CONF

    composed()
    cfg = compose("config", ["task=[digits_01,digits_23]", "trainer.max_steps=3"])
    job = read_job(cfg, CONF / "task")
    write_resolved(job, EnvSettings(), tmp_path)
    again = compose(f"base+{tmp_path / 'resolved.yaml'}")
    assert read_job(again, CONF / "task") == job
    assert json.dumps(yaml.safe_load((tmp_path / "resolved.yaml").read_text()))


def test_two_files_chosen_together_must_not_bring_a_task_of_one_name(
    composed: Compose, tmp_path: Path
) -> None:
    folder = tmp_path / "more" / "task"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("\ndigits_01: {_name: digits, options: [2, 3]}\n")
    there = f"hydra.searchpath=['file://{folder.parent}']"
    composed(overrides=[there, "task=[mine,digits_23]"])
    with pytest.raises(Exception, match=r"task\.digits_01: two chosen files bring") as refused:
        composed(overrides=[there, "task=[digits_01,mine]"])
    assert "digits_01.yaml:2" in str(refused.value) and "mine.yaml:2" in str(refused.value)


def test_jobs_of_a_sweep_compose_faster_and_are_checked_all_the_same(composed: Compose) -> None:
    """The sweeper remembers what Hydra read; the app's checks go around that too."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import JobRuntime
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from autocl_sweeper.job.composition import remembering
    from train.config.compose import Refused
    from train.config.settle import as_written

    loader = GlobalHydra.instance().config_loader()
    faster = remembering(loader)
    assert faster is not loader
    JobRuntime.instance().set("name", "train")

    def config(of: Any, *overrides: str) -> Any:
        return of.load_configuration("config", list(overrides), RunMode.RUN)

    jobs = [(f"trainer.learning_rate={rate}",) for rate in ("1e-3", "1e-2", "0.1", "2")]
    for some in (
        "task.digits_01.preprocess.text.max_src_length",
        "+task.also.instruction.template",
        "+task.also.dataset.num_workers",
        "memory.budget_mib",
        "optimization.lr",
    ):
        jobs += [("trainer.max_steps=3", f"{some}={number}") for number in (1, 2, 3)]
    for overrides in jobs:
        job = ("task=digits_01", *overrides)
        ours, hydras = config(faster, *job), config(loader, *job)
        assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(hydras)
        plain = OmegaConf.to_container(hydras)
        assert isinstance(plain, dict) and plain.pop("hydra")
        assert as_written(ours) == plain
    for refused in (
        "trainer.max_steps=x",
        "trainer.lerning_rate=1",
        "seed=-1",
        "trainer.save_dir=${nothing.there}",
        "delta.lora_dim=???",
        "task.digits_01.options=5",
    ):
        told = []
        for one in (loader, faster, faster):
            with pytest.raises(Refused) as mistake:
                config(one, "task=digits_01", refused)
            told.append(str(mistake.value))
        assert told[0] == told[1] == told[2]
