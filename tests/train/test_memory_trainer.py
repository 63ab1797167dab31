"""Plans on transformers' own Trainer: what is trained, what is counted, what a step takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.records import records_in
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    SwinConfig,
    SwinForImageClassification,
    Trainer,
    TrainingArguments,
)

from autocl_sweeper.device.predicted import read_model
from autocl_sweeper.errors import InfeasibleBudgetError
from autocl_sweeper.outcome import cause_of
from autocl_sweeper.types import Cause
from train.config.memory import MemorySettings
from train.config.typed import SettingsError
from train.memory.blocks import Blocks
from train.memory.checkpointing import PlannedBlocks, recomputing
from train.memory.collector import Collector

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "memory.json").read_text()
)
ROWS, N = 4, 6
GIB = 2**30


def bert(attention: str = "eager") -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=N,
        num_attention_heads=4,
        intermediate_size=256,
        num_labels=2,
        attn_implementation=attention,
    )
    return BertForSequenceClassification(config)


class PeakOnTheCpu:
    """Allocated bytes by the profiler's own events, from `static` on."""

    def __init__(self, static: float) -> None:
        self.static = static
        self.running: Any = None
        self.parts: list[float] = []

    def start(self) -> float:
        self.running = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.running.__enter__()
        return self.static

    def mark(self) -> None:
        with record_function("next part"):
            pass

    def read(self) -> tuple[float, float]:
        self.running.__exit__(None, None, None)
        events = self.running.profiler.kineto_results.events()
        now, self.parts = self.static, [self.static]
        for event in sorted(events, key=lambda one: one.start_ns()):
            if event.name() == "next part":
                self.parts.append(now)
            elif event.name() == "[memory]":
                now += event.nbytes()
                self.parts[-1] = max(self.parts[-1], now)
        return max(self.parts), max(self.parts)


class NoMeter:
    parts: tuple[float, ...] = (0.0,)

    def start(self) -> float:
        return 0.0

    def mark(self) -> None:
        pass

    def read(self) -> tuple[float, float]:
        return 0.0, 0.0


def batches(lengths: list[int], rows: int = ROWS) -> list[dict[str, Any]]:
    """Rows in the order they are trained in, so that each batch has one length."""
    drawn = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(0, 64, (n,), generator=drawn), "labels": i % 2}
        for n in lengths
        for i in range(rows)
    ]


def collated(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = torch.stack([row["input_ids"] for row in rows])
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # otherwise no mask is made
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def trained(
    folder: Path,
    callback: Callable[[torch.nn.Module], Any] = lambda model: None,
    lengths: list[int] | None = None,
    accumulation: int = 1,
    model: torch.nn.Module | None = None,
    resume: bool = False,
    **more: Any,
) -> tuple[dict[str, torch.Tensor], list[float], Any]:
    """Parameters and losses of a training with dropout, and its callback."""
    lengths = [16, 48, 32, 64, 24, 40, 56, 64, 16, 48] if lengths is None else lengths
    model = bert() if model is None else model
    own = callback(model)
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
        "train_sampling_strategy": "sequential",
    }
    arguments = TrainingArguments(**{**settings, **more})
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=batches(lengths),  # type: ignore[arg-type]
        eval_dataset=batches([24]),  # type: ignore[arg-type]
        data_collator=collated,  # type: ignore[arg-type]
        callbacks=[] if own is None else [own],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {n: p.detach().clone() for n, p in model.named_parameters()}, losses, own


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def trained_alike(
    folder: Path,
    callback: Callable[[torch.nn.Module], Any],
    lengths: list[int] | None = None,
    made: Callable[[], torch.nn.Module] = bert,
    **more: Any,
) -> Any:
    """The callback of a training that ends, to the bit, as the same one without it."""
    plain, losses, _ = trained(folder, lengths=lengths, model=made(), **more)
    found, own_losses, own = trained(folder, callback, lengths, model=made(), **more)
    assert same(plain, found) and losses == own_losses
    return own


def planned(folder: Path, meter: Any, **settings: Any) -> Callable[[torch.nn.Module], Any]:
    def make(model: torch.nn.Module) -> Any:
        return recomputing(MemorySettings(**settings), model, folder, meter)

    return make


# -- what is trained -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "gc"},
        {"method": "every_n", "n": 2},
        {"method": "fixed", "blocks": (1, 4)},
        {"method": "plan", "budget_gib": 1.0, "collect_steps": 4},
    ],
    ids=lambda one: one["method"],
)
def test_parameters_and_losses_are_those_without_recomputing_to_the_bit(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    callback = trained_alike(tmp_path, planned(tmp_path, NoMeter(), **settings))
    assert not any(layer.gradient_checkpointing for layer in callback.blocks.layers)


def test_chosen_blocks_and_no_others_are_recomputed(tmp_path: Path) -> None:
    model = bert()
    ran: list[int] = []
    for i, layer in enumerate(model.bert.encoder.layer):
        layer.intermediate.register_forward_hook(lambda *_, i=i: ran.append(i))
    settings = {"method": "fixed", "blocks": (1, 4)}
    trained(tmp_path, planned(tmp_path, NoMeter(), **settings), [16], model=model)
    assert sorted(ran) == [0, 1, 1, 2, 3, 4, 4, 5]


# -- what is counted -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [16, 128])
def test_the_collector_counts_the_bytes_of_a_block_exactly(length: int) -> None:
    model = bert().train()
    blocks = Blocks(model)
    blocks.enable()
    blocks.choose(range(N - 1))
    collector = Collector(blocks.layers, lambda: None)
    collector.start(N - 1)
    batch = collated(batches([length]))
    model(**batch)
    assert collector.kept == GOLDEN["bert_block_bytes"]["cpu_fp32_measured"][str(length)]
    assert set(collector.stashes.values()) == {ROWS * length * 64 * 4 + 5056}
    assert collector.shared == ROWS * length * length * 4
    collector.close()
    before = collector.kept
    model(**collated(batches([length // 2])))
    assert collector.kept == before  # its hooks are gone


def test_peaks_of_a_step_are_predicted_and_stay_below_the_budget(tmp_path: Path) -> None:
    static = 10e6
    lengths = [64, 96, 128, 80, *(72, 128, 104, 64, 128, 120, 88, 128)]
    budget = static + 24e6
    settings = {"method": "plan", "budget_gib": budget / GIB, "collect_steps": 4, "margin_gib": 0.0}
    make = planned(tmp_path, PeakOnTheCpu(static), **settings)
    callback = trained_alike(tmp_path, make, lengths)
    records = records_in(tmp_path)
    assert [one["phase"] for one in records] == ["collect"] * 4 + ["plan"] * 8
    for one in records[4:]:
        assert one["peak_allocated_bytes"] <= budget and not one["infeasible"]
        assert one["predicted_bytes"] == pytest.approx(one["peak_allocated_bytes"], rel=0.01)
    assert {len(one["blocks"]) for one in records[4:]} >= {0, 2}
    assert callback.planner.hits == 2 == sum(one["cache_hit"] for one in records)
    # What the launcher reads of it, to reserve room for jobs with other batches.
    model = read_model(tmp_path)
    assert model is not None
    largest = max(one["predicted_bytes"] for one in records[4:] if len(one["blocks"]) == 2)
    assert model.peak_mib(budget_mib=24e6 / 2**20) * 2**20 + static == pytest.approx(
        largest, rel=0.01
    )


@pytest.mark.parametrize("margin", [0.0, "auto"])
def test_an_infeasible_batch_ends_the_training_before_its_step_and_names_a_budget_that_runs(
    tmp_path: Path, margin: Any
) -> None:
    lengths = [64, 96, 128, 80, 128]
    settings = {"method": "plan", "collect_steps": 4, "margin_gib": margin}
    make = planned(tmp_path, PeakOnTheCpu(10e6), budget_gib=16e6 / GIB, **settings)
    with pytest.raises(
        InfeasibleBudgetError, match=r"no plan fits a batch of 4 x 128 in update 5"
    ) as bad:
        trained(tmp_path, make, lengths)
    assert cause_of(bad.value) is Cause.INFEASIBLE_BUDGET
    for part in ("predicted peak", "of it static", "a margin of"):
        assert part in str(bad.value)
    least = float(str(bad.value).split("smallest feasible budget is ")[1].split(" GiB")[0])
    assert len(records_in(tmp_path)) == 4  # of the steps before
    assert (tmp_path / "memory_model.json").exists()
    (tmp_path / "memory_records.jsonl").unlink()
    make = planned(tmp_path, PeakOnTheCpu(10e6), budget_gib=least + 0.0005, **settings)
    trained(tmp_path, make, lengths)
    last = records_in(tmp_path)[-1]
    assert last["phase"] == "plan" and last["peak_allocated_bytes"] <= (least + 0.0005) * GIB


def test_micro_batches_of_one_update_are_planned_one_by_one(tmp_path: Path) -> None:
    settings = {"method": "plan", "budget_gib": 1.0, "collect_steps": 3}
    lengths = [16, 32, 48, 64, 24, 40]
    trained_alike(tmp_path, planned(tmp_path, NoMeter(), **settings), lengths, accumulation=2)
    records = records_in(tmp_path)
    assert [one["step"] for one in records] == [1, 1, 2, 2, 3, 3]
    assert [one["size"] for one in records] == lengths


# -- which models ----------------------------------------------------------------------------------


def test_nested_layers_are_planned_inside_and_the_outer_ones_stay_off() -> None:
    config = SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2
    )
    blocks = Blocks(SwinForImageClassification(config))
    assert [type(layer).__name__ for layer in blocks.layers] == ["SwinLayer"] * 2
    assert blocks.kinds == [0, 1]
    blocks.enable()
    blocks.choose([0])
    on = [
        type(m).__name__ for m in blocks.owner.modules() if getattr(m, "gradient_checkpointing", 0)
    ]
    assert "SwinStage" not in on and on.count("SwinLayer") == 1


def test_a_model_without_blocks_and_an_index_that_is_no_block_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the model Linear has no layers"):
        Blocks(torch.nn.Linear(2, 2))
    with pytest.raises(SettingsError, match=r"BertForSequenceClassification has 6 blocks, 0 to 5"):
        planned(tmp_path, NoMeter(), method="fixed", blocks=(6,))(bert())


def test_a_budget_below_the_static_part_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = bert()
    parameters = sum(p.numel() for p in model.parameters())
    static = (4 + 4 + 8) * parameters  # in fp32: parameters, gradients, AdamW
    below = {"method": "plan", "margin_gib": 0.0, "budget_gib": (static - 1) / GIB}
    with pytest.raises(
        InfeasibleBudgetError, match=r"is below the static part of any batch"
    ) as bad:
        trained(tmp_path, planned(tmp_path, NoMeter(), **below))
    assert f"{4 * parameters / GIB:.3f} GiB gradients" in str(bad.value)
    assert (
        cause_of(bad.value) is Cause.INFEASIBLE_BUDGET
        and not (tmp_path / "memory_records.jsonl").exists()
    )
    enough = {**below, "budget_gib": static / GIB, "on_infeasible": "warn", "collect_steps": 1}
    trained(tmp_path, planned(tmp_path, NoMeter(), **enough), [16])
    assert isinstance(planned(tmp_path, NoMeter(), **enough)(model), PlannedBlocks)
