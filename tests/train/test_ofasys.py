"""OFASys's names: each key of the table becomes ours or is refused with the way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.check import Refused
from train.config.ofasys import BY_KEY, table, translate
from train.config.typed import SettingsError, shown

ROOT = Path(__file__).resolve().parents[2]
TASK = "task: {a: {_name: digits, options: [0, 1]}}\n"
Compose = Callable[..., dict[str, Any]]

# Each row of the table: what it is given, and what comes of it.
ROWS = {
    "common.seed": (7, {"seed": 7}),
    "common.fp16": (True, {"trainer.fp16": True}),
    "common.bf16": (True, {"trainer.bf16": True}),
    "common.fp16_scale_window": (512, {"trainer.fp16_scale_window": 512}),
    "common.fp16_init_scale": (4, {"trainer.fp16_init_scale": 4}),
    "common.min_loss_scale": (0.5, {"trainer.min_loss_scale": 0.5}),
    "common.log_format": ("json", {"trainer.log_format": "json"}),
    "common.log_interval": (10, {"trainer.logging_steps": 10}),
    "common.log_file": ("x", "choose that with hydra.run.dir"),
    "common.tensorboard_logdir": ("x", "trainer.report_to=tensorboard"),
    "common.cpu": (True, {"trainer.use_cpu": True}),
    "distributed_training.find_unused_parameters": (True, {"trainer.ddp_find_unused_parameters": True}),
    "distributed_training.distributed_backend": ("gloo", {"trainer.ddp_backend": "gloo"}),
    "optimization.max_epoch": (2, {"trainer.num_train_epochs": 2}),
    "optimization.max_update": (9, {"trainer.max_steps": 9}),
    "optimization.stop_time_hours": (1.5, {"trainer.stop_time_hours": 1.5}),
    "optimization.clip_norm": (5.0, {"trainer.max_grad_norm": 5.0}),
    "optimization.lr": ([1e-5, 1], {"trainer.learning_rate": 1e-5}),
    "optimization.sentence_avg": (True, {"task.a.criterion.sentence_avg": True}),
    "optimization.update_freq": (4, "set task.<name>.dataset.update_freq"),
    "optimizer._name": ("adam", {"trainer.optim": "adamw_torch"}),
    "optimizer.adam_betas": ("(0.8,0.99)", {"trainer.adam_beta1": 0.8, "trainer.adam_beta2": 0.99}),
    "optimizer.adam_eps": (1e-6, {"trainer.adam_epsilon": 1e-6}),
    "optimizer.weight_decay": (0.1, {"trainer.weight_decay": 0.1}),
    "lr_scheduler._name": ("ofa_polynomial_decay", {"trainer.lr_scheduler_type": "polynomial",
        "trainer.lr_scheduler_kwargs.lr_end": 0.0, "trainer.lr_scheduler_kwargs.power": 1.0}),
    "lr_scheduler.warmup_ratio": (0.06, {"trainer.warmup_steps": 0.06}),
    "lr_scheduler.warmup_updates": (50, {"trainer.warmup_steps": 50}),
    "lr_scheduler.end_learning_rate": (1e-6, {"trainer.lr_scheduler_kwargs.lr_end": 1e-6}),
    "lr_scheduler.power": (2.0, {"trainer.lr_scheduler_kwargs.power": 2.0}),
    "lr_scheduler.total_num_update": (500, "set optimization.max_update"),
    "dataset.micro_batch_size": (8, {"trainer.per_device_train_batch_size": 8}),
    "dataset.micro_valid_batch_size": (4, {"trainer.per_device_eval_batch_size": 4}),
    "dataset.validate_interval": (1, {"trainer.eval_strategy": "epoch"}),
    "dataset.validate_interval_updates": (5, {"trainer.eval_strategy": "steps", "trainer.eval_steps": 5}),
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
    "checkpoint.save_interval_updates": (7, {"trainer.save_strategy": "steps", "trainer.save_steps": 7}),
    "checkpoint.validate_interval_updates": (5, {"trainer.eval_strategy": "steps", "trainer.eval_steps": 5}),
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
}  # fmt: skip


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        k: v
        for key, child in node.items()
        for k, v in flat(child, f"{prefix}.{key}".strip(".")).items()
    }


def test_every_row_of_the_table_is_tried() -> None:
    assert ROWS.keys() == BY_KEY.keys()


@pytest.mark.parametrize("key", ROWS)
def test_a_key_of_ofasys_becomes_ours_or_is_refused_with_the_way_out(key: str) -> None:
    given, expected = ROWS[key]
    section, name = key.split(".")
    values = {"task": {"a": {"_name": "digits"}}, section: {name: given}}
    if isinstance(expected, str):
        with pytest.raises(SettingsError, match="is not taken over") as caught:
            translate(values)
        assert f"{key}={shown(given)}" in str(caught.value) and expected in str(caught.value)
        return
    made = flat({k: v for k, v in translate(values).items() if v != {}})
    assert made == {"task.a._name": "digits", **expected}


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
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
        (["model: {share_all_embeddings: false}"], "this app's model has true only"),
        (["dataset: {validate_interval: 2}"], "is not taken over: only every epoch"),
    ],
)
def test_contradictions_and_what_cannot_be_are_reported(
    composed: Compose, texts: list[str], words: str
) -> None:
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
