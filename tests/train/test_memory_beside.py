"""Plans beside what else a training does: mixed precision, LoRA, evaluation, resume, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.records import records_in
from support.train_app import ROOT
from test_memory_trainer import (
    GIB,
    NoMeter,
    PeakOnTheCpu,
    batches,
    bert,
    collated,
    planned,
    same,
    trained,
    trained_alike,
)
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from train.config.typed import SettingsError
from train.memory.blocks import Blocks, check_tier
from train.memory.collector import Collector

LENGTHS = [16, 48, 32, 64, 24, 40]
PLAN: dict[str, Any] = {"method": "plan", "budget_gib": 1.0, "collect_steps": 3}


class Planning:
    """A plan whose planned steps recompute three blocks, as a smaller budget would have them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, model: torch.nn.Module) -> Any:
        callback = planned(self.folder, NoMeter(), **PLAN)(model)
        choose = callback.blocks.choose
        callback.blocks.choose = lambda blocks, *rest: choose(blocks or range(3), *rest)
        return callback


def lora(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_dropout=0.1, target_modules=["query", "value"])
    return get_peft_model(model, config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "with_lora, precision", [(True, {}), (False, {"bf16": True})], ids=["lora", "bf16"]
)
def test_lora_and_bf16_train_under_a_plan_what_they_train_without(
    tmp_path: Path, with_lora: bool, precision: dict[str, Any]
) -> None:
    def model() -> torch.nn.Module:
        return lora(bert("sdpa")) if with_lora else bert("sdpa")

    trained_alike(tmp_path, Planning(tmp_path), LENGTHS, made=model, **precision)
    assert [one["phase"] for one in records_in(tmp_path)] == ["collect"] * 3 + ["plan"] * 3


def test_batches_of_an_evaluation_inside_training_are_not_planned(tmp_path: Path) -> None:
    inside = {"eval_strategy": "steps", "eval_steps": 2}
    trained_alike(tmp_path, Planning(tmp_path), LENGTHS, **inside)
    assert [one["size"] for one in records_in(tmp_path)] == LENGTHS


def test_a_resumed_plan_ends_as_the_training_that_was_not_interrupted(tmp_path: Path) -> None:
    steady: dict[str, Any] = {"lr_scheduler_type": "constant"}  # whatever the number of steps
    saving = {"save_strategy": "steps", "save_steps": 3, **steady}
    plain, losses, _ = trained(tmp_path / "plain", lengths=LENGTHS, **steady)
    folder = tmp_path / "cut"
    folder.mkdir()
    trained(folder, Planning(folder), LENGTHS, max_steps=3, **saving)
    found, own_losses, _ = trained(
        folder, Planning(folder), LENGTHS, resume=True, max_steps=6, **saving
    )
    assert same(plain, found) and losses == own_losses
    assert [one["step"] for one in records_in(folder)] == [1, 2, 3, 4, 5, 6]


def test_a_larger_number_of_rows_is_planned_with_a_wider_margin_and_stays_below_the_budget() -> (
    None
):
    static = 10e6
    budget = static + 24e6
    settings = {"method": "plan", "budget_gib": budget / GIB, "collect_steps": 4}
    model = bert().train()
    callback = planned(Path(), PeakOnTheCpu(static), **settings)(model)
    callback.records.writes = False
    callback.blocks.enable()
    callback.collector = Collector(callback.blocks.layers, lambda: None)
    callback.step, callback.trained = 1, [*model.parameters()]
    for rows, length in [(4, 64), (4, 96), (4, 128), (4, 80), (8, 72), (8, 72), (2, 128)]:
        batch = collated(batches([length], rows))
        callback._before_forward(model, (), batch)
        model(**batch).loss.backward()
        running = callback.running
        callback._finish()
        model.zero_grad()
        if callback.collector is None:
            assert running.choice.fits and running.choice.extrapolated is (rows != 4)
            assert callback.records.peaks[length][-1] <= budget


def test_models_without_layers_to_recompute_are_refused_by_their_class() -> None:
    xlnet = XLNetForSequenceClassification(
        XLNetConfig(vocab_size=16, d_model=8, n_layer=1, n_head=1, d_inner=8)
    )
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic"
    )
    config = RTDetrConfig(
        **{"backbone_config": backbone, "encoder_hidden_dim": 8, "encoder_in_channels": [8, 8, 8]},
        **{"d_model": 8, "num_queries": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8},
        **{"decoder_in_channels": [8, 8, 8], "encoder_attention_heads": 1, "num_labels": 2},
        **{"decoder_attention_heads": 1, "decoder_layers": 1},
    )
    for model in (xlnet, RTDetrForObjectDetection(config)):
        with pytest.raises(SettingsError, match=rf"the model {type(model).__name__} has no layers"):
            Blocks(model)


def test_a_tier_is_refused_where_blocks_differ() -> None:
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    config = BartConfig(vocab_size=16, d_model=8, encoder_layers=1, decoder_layers=1, **heads)
    blocks = Blocks(BartForConditionalGeneration(config))
    assert not check_tier("auto", blocks)
    with pytest.raises(SettingsError, match="blocks of BartForConditionalGeneration differ"):
        check_tier("linear", blocks)


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/tests", {root!r} + "/tests/train"]
import torch
import torch.distributed as dist
from test_memory_beside import LENGTHS, Planning
from test_memory_trainer import trained
for name in ("plain", "planned"):
    folder = Path({out!r}) / name
    own = Planning(folder) if name == "planned" else lambda model: None
    found, losses, _ = trained(folder, own, [*LENGTHS, *LENGTHS], ddp_find_unused_parameters=False)
    torch.save((found, losses), folder / f"{{dist.get_rank()}}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_with_plans_of_their_own_train_what_they_train_without(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), out=str(tmp_path)))
    for name in ("plain", "planned"):
        (tmp_path / name).mkdir()
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*run, str(script)], env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    (plain, losses), (found, own_losses) = (
        torch.load(tmp_path / name / "0.pt") for name in ("plain", "planned")
    )
    assert same(plain, found) and losses == own_losses
    other, _ = torch.load(tmp_path / "planned" / "1.pt")
    assert same(found, other)
    assert len(records_in(tmp_path / "planned")) == len(LENGTHS)  # of the first process
