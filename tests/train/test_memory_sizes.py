"""`memory.mode=sizes`: batches and plans of a run, found on the CPU without training it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import finish
from test_memory_trainer import GIB, batches, bert, collated

from autocl_sweeper.errors import InfeasibleBudgetError
from train.config.memory import MemorySettings
from train.memory.features import Shape
from train.memory.meter import CpuMeter
from train.memory.sizes import DryRun, to_measure
from train.model.text_answer import TextAnswer

TEXT = ["task=boolqa", "model=unify_tiny", "trainer.max_steps=3"]
SIZES = [*TEXT, "memory=plan", "memory.mode=sizes", "memory.collect_steps=4"]


def dry_run(model: torch.nn.Module, **settings: Any) -> DryRun:
    def step(batch: Any) -> None:
        model(**batch).loss.backward()

    memory = MemorySettings(method="plan", mode="sizes", margin_gib=0.0, **settings)
    return DryRun(memory, model, CpuMeter(), step, 8, accumulates=False)


@pytest.mark.parametrize("selective, room", [("auto", 24e6), ("linear", 18e6)])
def test_every_plan_of_a_dry_run_has_the_peak_that_it_predicts_below_the_budget(
    selective: Any, room: float
) -> None:
    model = bert().train()
    before = [p.detach().clone() for p in model.parameters()]
    parameters = sum(p.numel() for p in model.parameters())
    made = {Shape(4, n): collated(batches([n])) for n in (64, 72, 88, 96, 104, 120, 128)}
    budget = 12 * parameters + room
    dry = dry_run(model, budget_gib=budget / GIB, collect_steps=4, selective=selective)
    dry.collect(made)
    assert dry.planner.steps == 4
    chosen = set()
    for shape, batch in made.items():
        planned = dry.plan(shape, 128, 1, 1)
        model.zero_grad()
        meter = CpuMeter()
        dry.blocks.enable()
        dry.blocks.choose(planned.blocks, planned.selective, dry.tier)
        start = meter.start()
        model(**batch).loss.backward()
        peak = 12 * parameters + meter.read()[0] - start  # parameters, and two states of AdamW
        dry.blocks.disable()
        assert planned.predicted == pytest.approx(peak, rel=0.01)
        assert planned.fits and peak <= budget and not planned.extrapolated
        chosen.add((len(planned.blocks), len(planned.selective)))
    assert len(chosen) > 1 and (0, 0) in chosen
    assert any(partly for _, partly in chosen) is (selective == "linear")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_smallest_and_the_largest_size_are_among_those_measured() -> None:
    shapes = [Shape(4, n) for n in (70, 10, 50, 30, 60, 20, 40)]
    assert [one.length for one in to_measure(shapes, 4)] == [10, 70, 50, 30]
    assert to_measure(shapes[:1] * 3, 4) == [Shape(4, 70)]


def test_sizes_are_those_of_the_training_in_its_own_order_and_nothing_is_trained(
    make_job: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("trained", "sized"):
        (tmp_path / name).mkdir()
    trained: list[list[int]] = []
    logits = TextAnswer.logits

    def look(self: TextAnswer, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        if model.training:
            trained.append(list(batch["input_ids"].shape))
        return logits(self, model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(TextAnswer, "logits", look)
        finish(make_job(*TEXT), tmp_path / "trained")
    returned = finish(make_job(*SIZES, "memory.budget_gib=1"), tmp_path / "sized")
    found = json.loads((tmp_path / "sized" / "memory_sizes.json").read_text())
    shapes = [(one["shape"]["rows"], one["shape"]["length"]) for one in found["sizes"]]
    assert [list(shapes[i]) for i in found["order"]] == trained
    assert [one["batches"] for one in found["sizes"]] == [trained.count([*one]) for one in shapes]
    assert returned["micro_batches"] == len(trained) and returned["infeasible_steps"] == 0
    most = max(found["sizes"], key=lambda one: one["kept_all"])
    assert found["largest"] == most and not found["is_bound"]
    assert 0.7 * most["predicted"] < found["measured"] <= 1.02 * most["predicted"]
    assert set(found["evaluation"]) == {"boolqa dev", "boolqa test"}
    table = (tmp_path / "sized" / "memory_sizes.txt").read_text()
    assert len([line for line in table.splitlines() if " of 4 " in line]) == len(shapes)
    assert not (tmp_path / "sized" / "checkpoint").exists()


def test_of_a_longer_run_the_largest_batch_is_a_marked_bound(
    make_job: Callable[..., Any], tmp_path: Path
) -> None:
    finish(make_job(*SIZES, "memory.budget_gib=1", "memory.sizes_steps=1"), tmp_path)
    found = json.loads((tmp_path / "memory_sizes.json").read_text())
    bound = found["largest"]
    assert found["is_bound"] and len(found["order"]) == 1
    assert bound["batches"] == 0 and bound["shape"]["rows"] == 16
    assert bound["shape"]["length"] >= found["sizes"][0]["shape"]["length"]
    assert "bound" in (tmp_path / "memory_sizes.txt").read_text()


@pytest.mark.slow
def test_a_budget_that_the_largest_batch_does_not_fit_is_refused_with_the_table_written(
    make_job: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(
        InfeasibleBudgetError, match=r"memory\.budget_gib=0\.02: no plan fits"
    ) as bad:
        finish(make_job(*SIZES, "memory.budget_gib=0.02"), tmp_path)
    assert "does not fit" in (tmp_path / "memory_sizes.txt").read_text()
    least = float(str(bad.value).split("smallest feasible budget is ")[1].split(" GiB")[0])
    returned = finish(make_job(*SIZES, f"memory.budget_gib={least + 0.001}"), tmp_path)
    assert returned["infeasible_steps"] == 0
