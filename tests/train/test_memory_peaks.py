"""Peaks that were measured correct the plan they belong to, and never make another one look too small."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
)

from train.config.memory import MemorySettings
from train.memory.features import Shape, shape_of
from train.memory.meter import CpuMeter
from train.memory.peaks import KEPT, PARTLY, RECOMPUTED, Peaks
from train.memory.planner import Collected, Planner
from train.memory.sizes import DryRun

ROW = (1.0, 1.0, 1.0, 1.0)


def planner_of_unlike_blocks() -> Planner:
    """Four blocks, the first kept 100, the last 400; 10 each if recomputed; 50 outside."""
    planner = Planner([0, 1, 2, 3], 1e9, margin=0.0, collect_steps=4)
    held = dict.fromkeys(range(4), 10.0)
    # The last one kept: 10 + 10 + 10 + 400 in its backward pass.
    for probe, kept in enumerate([100.0, 200.0, 300.0, 400.0]):
        planner.collect(ROW, Collected(probe, kept, held, 0.0, 0.0, 50.0 + 430))
    planner.predicted(ROW, ())
    planner.peaks.rows.clear()  # only those that a test measures
    return planner


def test_a_plan_that_took_less_than_predicted_lowers_no_other_below_what_it_can_take() -> None:
    planner = planner_of_unlike_blocks()
    before = [planner.predicted(ROW, range(k)) for k in range(4)]
    choice = planner.plan(ROW, 1, 0.0)
    two = type(choice)((0, 1), before[2], 0.0, 0.0, True)
    assert planner.measured(ROW, two, 400.0, 400.0, 0.0)
    found = [planner.predicted(ROW, range(k)) for k in range(4)]
    # Kept instead of recomputed, the second block adds at most 200 - 10, the first 100 - 10 more.
    assert found == [min(before[0], 400 + 190 + 90), min(before[1], 400 + 190), 400, before[3]]
    assert found[0] < before[0] and found[1] < before[1]


def test_a_plan_that_took_more_than_predicted_raises_every_other_at_least_as_much() -> None:
    planner = planner_of_unlike_blocks()
    before = [planner.predicted(ROW, range(k)) for k in range(4)]
    two = type(planner.plan(ROW, 1, 0.0))((0, 1), before[2], 0.0, 0.0, True)
    planner.measured(ROW, two, before[2] - 100.0, before[2] - 100.0, 0.0)  # bounds the others
    assert planner.measured(ROW, two, before[2] + 100.0, before[2] + 100.0, 0.0)
    found = [planner.predicted(ROW, range(k)) for k in range(4)]
    # 100 more outside of the blocks are 102 more in a first value; what ran bounds those that keep more.
    first, ran = [before[k] + 102 for k in range(4)], before[2] + 100
    assert found == pytest.approx(
        [min(first[0], ran + 90 + 190), min(first[1], ran + 190), ran, first[3]]
    )


def test_a_bound_is_for_plans_that_keep_as_much_or_more_and_for_no_others() -> None:
    held = [(10.0, 40.0, 100.0)] * 3
    peaks = Peaks()
    peaks.add((RECOMPUTED, PARTLY, KEPT), False, ROW, 200.0)

    def bounds(*levels: int, fresh: bool = False) -> list[float]:
        return [*peaks.bounds(levels, fresh, ROW, held)]

    assert bounds(RECOMPUTED, PARTLY, KEPT) == [200.0]
    assert bounds(PARTLY, KEPT, KEPT) == [200.0 + 30 + 60]
    assert bounds(KEPT, KEPT, KEPT) == [200.0 + 90 + 60]
    assert bounds(RECOMPUTED, RECOMPUTED, KEPT) == [] == bounds(KEPT, KEPT, KEPT, fresh=True)
    assert [*peaks.bounds((KEPT,) * 3, False, (2.0, 1.0, 1.0, 1.0), held)] == []  # another size


def test_a_peak_behind_the_blocks_is_no_part_of_what_plans_are_made_of() -> None:
    torch.manual_seed(0)
    config = BertConfig(  # the gradients of its words are more than all blocks of a short batch
        vocab_size=9000,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = BertForSequenceClassification(config).train()

    def batch(length: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(3, 64, (2, length))
        return {"input_ids": ids, "labels": torch.zeros(2, dtype=torch.long)}

    def step(inputs: dict[str, Any]) -> None:
        model(**inputs).loss.backward()

    batches = {shape_of(b): b for b in map(batch, (32, 64, 128, 160))}
    settings = MemorySettings(method="plan", mode="sizes", budget_gib=1.0, collect_steps=4)
    dry = DryRun(settings, model, CpuMeter(), step, states=8, accumulates=False)
    dry.collect(batches)
    words = model.bert.embeddings.word_embeddings.weight.nbytes
    for length in (48, 144):
        inputs = batch(length)
        dry.blocks.enable()
        real = [dry._run(inputs, range(k)) for k in range(4)]
        dry.blocks.disable()
        features = shape_of(inputs).features()
        found = [dry.planner.predicted(features, range(k), True) for k in range(4)]
        assert all(old <= new * 1.001 < 1.01 * old for new, old in zip(found, real, strict=True))
        assert (real[0] == real[3]) is (length == 48) and real[3] > words


def test_a_training_that_ends_before_each_kind_of_block_was_probed_leaves_what_it_knows() -> None:
    planner = Planner([0, 1], 1e9)
    held = {0: 10.0, 1: 10.0}
    planner.collect(ROW, Collected(0, 100.0, held, 0.0, 0.0, 200.0))
    assert "outside" not in planner.all_fits() and "kept 0" in planner.all_fits()
    planner.collect(ROW, Collected(1, 50.0, held, 0.0, 0.0, 190.0))
    assert "outside" in planner.all_fits()


def test_no_plan_of_an_encoder_decoder_is_above_its_budget_once_corrected() -> None:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=160,
    )
    model = BartForConditionalGeneration(config).train()

    def batch(length: int, target: int) -> dict[str, torch.Tensor]:
        labels = torch.randint(3, 64, (4, target))
        return {"input_ids": torch.randint(3, 64, (4, length)), "labels": labels}

    def step(inputs: dict[str, Any]) -> None:
        model(**inputs, use_cache=False).loss.backward()

    batches = {shape_of(b, True): b for b in (batch(64, 16), batch(128, 16), batch(96, 48))}
    settings = MemorySettings(method="plan", mode="sizes", margin_gib=0.0, budget_gib=1.0)
    dry = DryRun(settings, model, CpuMeter(), step, states=8, accumulates=False)
    dry.collect(batches)
    planner = dry.planner
    for shape, inputs in batches.items():
        dry.blocks.enable()
        real = [dry._run(inputs, range(k)) for k in range(4)]
        dry.blocks.disable()

        def looks_small(real: list[float] = real, shape: Shape = shape) -> bool:
            found = [planner.predicted(shape.features(), range(k), True) for k in range(4)]
            return any(new < 0.99 * old for new, old in zip(found, real, strict=True))

        assert not looks_small()
        planner.budget = dry.static_bytes + (max(real) + min(real)) / 2
        planner.cache.clear()
        peak = dry.correct(shape, inputs, 0)
        planned = dry.plan(shape, 0, 1, 1)
        assert planned.fits and planned.predicted == pytest.approx(peak, rel=0.02)
        assert peak <= planner.budget * 1.0001 and not looks_small()
