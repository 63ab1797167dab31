"""Blocks that are recomputed in part, and plans whose blocks wait in the machine's memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.records import records_in
from test_memory_plans import ROW, knowing_one_step
from test_memory_trainer import (
    GIB,
    GOLDEN,
    ROWS,
    N,
    PeakOnTheCpu,
    batches,
    bert,
    collated,
    planned,
    same,
    trained,
    trained_alike,
)
from transformers import TrainerCallback

from autocl_sweeper.errors import InfeasibleBudgetError
from train.memory.blocks import WHOLE, Blocks
from train.memory.collector import Collector
from train.memory.planner import Tier
from train.memory.selective import cheapest, checkpointing, timed

LENGTHS = [16, 48, 32]
STATIC = 10e6


class Mixed(TrainerCallback):
    """Some blocks whole, some in part, in every step."""

    def __init__(self, model: torch.nn.Module, **chosen: Any) -> None:
        self.blocks, self.chosen = Blocks(model), chosen

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.blocks.enable()
        self.blocks.choose(**self.chosen)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.blocks.disable()


@pytest.fixture(scope="module")
def plain_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The training that recomputes nothing, once for each kind of attention."""

    @cache
    def made(attention: str) -> Any:
        return trained(tmp_path_factory.mktemp("plain"), lengths=LENGTHS, model=bert(attention))

    return made


@pytest.mark.parametrize(
    "attention, chosen",
    [
        ("eager", {"recomputed": [0, 1], "selective": [2, 3, 4], "tier": "linear"}),
        ("eager", {"recomputed": [5], "selective": range(5), "tier": "attention"}),
        ("sdpa", {"recomputed": [0], "selective": [1, 3, 5], "tier": "attention"}),
        ("eager", {"recomputed": [0, 2], "offload": True}),
    ],
)
def test_any_mix_of_tiers_trains_what_is_trained_without_to_the_bit(
    tmp_path: Path, plain_of: Callable[[str], Any], attention: str, chosen: dict[str, Any]
) -> None:
    plain, losses, _ = plain_of(attention)
    found, own_losses, _ = trained(
        tmp_path, lambda model: Mixed(model, **chosen), LENGTHS, model=bert(attention)
    )
    assert same(plain, found) and losses == own_losses


def collected_at(length: int) -> tuple[Any, Collector, Blocks]:
    model = bert().train()
    blocks = Blocks(model)
    blocks.enable()
    blocks.choose(range(N - 1))
    collector = Collector(blocks.layers, lambda: None, counts_outputs=True)
    collector.keeps_call = True
    collector.start(N - 1)
    model(**collated(batches([length])))
    collector.close()
    return model, collector, blocks


def test_what_a_tier_keeps_and_the_work_it_saves_are_those_on_paper() -> None:
    _, collector, _ = collected_at(128)
    assert collector.outputs is not None
    stash = ROWS * 128 * 64 * 4 + 5056
    outputs = collector.outputs
    assert outputs.bytes["linear"] + stash == 1_315_776
    assert outputs.bytes["attention"] + stash == 2_495_424
    # 4 projections of 64 x 64 and two of 64 x 256; two products of attention.
    linear = 2 * ROWS * 128 * (4 * 64 * 64 + 2 * 64 * 256)
    attention = 2 * (2 * ROWS * 128 * 128 * 64)
    assert outputs.tier("linear") == Tier("linear", attention, linear + attention)
    assert outputs.tier("attention") == Tier("attention", 0, linear + attention)
    assert collector.kept == GOLDEN["bert_block_bytes"]["cpu_fp32_measured"]["128"]


def test_a_block_is_timed_without_a_trace() -> None:
    model, collector, blocks = collected_at(32)
    block = blocks.layers[N - 1]
    state, flag = torch.get_rng_state(), block.gradient_checkpointing
    functions = {"kept": None, "whole": WHOLE, "linear": checkpointing("linear")}
    found = timed(block, functions, collector.call)
    assert found.keys() == functions.keys() and all(took > 0 for took in found.values())
    assert torch.equal(state, torch.get_rng_state()) and block.gradient_checkpointing == flag
    assert all(p.grad is None for p in model.parameters())


def test_a_tier_is_taken_where_a_byte_it_frees_costs_less_time() -> None:
    held = {"kept": 100.0, "whole": 10.0, "linear": 40.0, "attention": 60.0}
    seconds = {"kept": 5.0, "whole": 14.0, "linear": 8.0, "attention": 6.0}
    # By second: 90 / 9 = 10 bytes whole, 60 / 3 = 20 linear, 40 / 1 = 40 attention.
    assert cheapest(seconds, held) == Tier("attention", 1.0, 9.0)
    assert cheapest({**seconds, "attention": 10.0}, held) == Tier("linear", 3.0, 9.0)
    assert cheapest({**seconds, "attention": 10.0, "linear": 12.0}, held) is None


def test_a_plan_of_both_tiers_costs_as_little_as_the_best_of_all_that_fit() -> None:
    a, h, b, outside, shared = 5_513_216.0, 136_128.0, 1_315_776.0, 1e6, 262_144.0

    def peak(whole: int, partly: int) -> float:
        kept: float = (N - whole - partly) * a
        return outside + shared * (whole + partly > 0) + whole * h + partly * b + kept

    plans = [(whole, partly) for whole in range(N) for partly in range(N - whole)]
    for budget in range(2_000_000, 36_000_000, 1_000_000):
        planner = knowing_one_step(N, a, h, outside, shared, budget=budget, partly={"linear": b})
        planner.tier = Tier("linear", 0.25, 1.0)
        choice = planner.plan(ROW, 1, 0.0)
        costs = [whole + 0.25 * partly for whole, partly in plans if peak(whole, partly) <= budget]
        assert choice.fits is bool(costs)
        if costs:
            assert len(choice.blocks) + 0.25 * len(choice.selective) == min(costs)
            real = peak(len(choice.blocks), len(choice.selective))
            assert choice.predicted == pytest.approx(real, rel=1e-9) and real <= budget


@pytest.mark.parametrize("tier", ["linear", pytest.param("attention", marks=pytest.mark.slow)])
def test_plans_of_both_tiers_have_the_peaks_they_predict_below_the_budget(
    tmp_path: Path, tier: str
) -> None:
    lengths = [64, 96, 128, 80, *(72, 128, 104, 120)]
    budget = STATIC + 18e6
    own = {"budget_gib": budget / GIB, "collect_steps": 4, "margin_gib": 0.0, "selective": tier}
    make = planned(tmp_path, PeakOnTheCpu(STATIC), method="plan", **own)
    callback = trained_alike(tmp_path, make, lengths)
    assert callback.planner.tier.name == tier
    later = records_in(tmp_path)[4:]
    for one in later:
        assert one["peak_allocated_bytes"] <= budget and not one["infeasible"]
        assert one["predicted_bytes"] == pytest.approx(one["peak_allocated_bytes"], rel=0.01)
        assert one["k_full"] + one["k_sac"] <= N - 1
    assert any(one["k_sac"] for one in later)


def test_inputs_of_blocks_that_wait_in_the_machines_memory_are_gone_from_the_device() -> None:
    def alive(offload: bool) -> int:
        model = bert().train()
        blocks = Blocks(model)
        blocks.enable()
        blocks.choose(range(N - 1), offload=offload)
        seen: list[weakref.ref[torch.Tensor]] = []
        for layer in blocks.layers[1 : N - 1]:
            layer.register_forward_pre_hook(lambda _, args: seen.append(weakref.ref(args[0])))
        loss = model(**collated(batches([16]))).loss
        gc.collect()
        found = sum(one() is not None for one in seen)
        loss.backward()
        return found

    assert (alive(False), alive(True)) == (N - 2, 0)


def test_a_batch_without_a_plan_is_offloaded_and_refused_where_even_that_does_not_fit(
    tmp_path: Path,
) -> None:
    lengths = [64, 96, 128, 80, 128]  # of one update: gradients are there when the last comes
    own = {"method": "plan", "collect_steps": 4, "margin_gib": 0.0, "on_infeasible": "offload"}
    make = planned(tmp_path, PeakOnTheCpu(STATIC), budget_gib=16e6 / GIB, **own)
    with pytest.raises(InfeasibleBudgetError, match="their inputs in the machine's memory") as no:
        trained(tmp_path, make, lengths, accumulation=5)
    predicted = float(str(no.value).split("predicted peak ")[1].split(" GiB")[0])
    (tmp_path / "memory_records.jsonl").unlink()
    # With 4 inputs of 131,072 bytes on the device it would take 0.0005 GiB more.
    own["budget_gib"] = (predicted * GIB + 0.4e6) / GIB
    make = planned(tmp_path, PeakOnTheCpu(STATIC), **own)
    callback = trained_alike(tmp_path, make, lengths, accumulation=5)
    last = records_in(tmp_path)[-1]
    assert last["offloaded"] and last["infeasible"] and last["k_full"] == N - 1
    assert callback.numbers()["infeasible_steps"] == 1
