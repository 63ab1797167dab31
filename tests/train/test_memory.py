"""What a training may take of a device."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import finish, meeting_of, model_of

from autocl_sweeper.errors import EvaluationMemoryError
from autocl_sweeper.outcome import cause_of
from autocl_sweeper.types import OUT_OF_DEVICE_MEMORY, Cause
from train.config.memory import MemorySettings
from train.config.typed import SettingsError
from train.data.rows import load
from train.loop.evaluation import predict
from train.memory.budget import limit_memory, use_expandable_segments
from train.memory.meter import GpuMeter


def test_a_memory_budget_holds_for_the_gpu_and_is_refused_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"memory\.budget_mib=512: limits the memory of a GPU"):
        limit_memory(MemorySettings(budget_mib=512))
    with pytest.raises(SettingsError, match=r"memory\.mode=sizes plans for this one here"):
        limit_memory(MemorySettings(budget_mib=512))
    limit_memory(MemorySettings(budget_mib=512, mode="sizes"))
    limit_memory(MemorySettings())

    class Device:
        total_memory = 2048 * 2**20

    shares: list[tuple[float, int]] = []
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Device)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *one: shares.append(one)
    )
    limit_memory(MemorySettings(budget_mib=512))
    limit_memory(MemorySettings(budget_gib=4))
    limit_memory(MemorySettings(budget_gib=1, hard_cap=False))
    assert shares == [(0.25, 0), (1.0, 0)]
    # Beside other jobs of a sweep: the smaller of its budget and of what it reserves.
    monkeypatch.setenv("AUTOCL_MEMORY_FRACTION", "0.4")
    limit_memory(MemorySettings(budget_mib=512))
    limit_memory(MemorySettings(budget_gib=4))
    monkeypatch.setenv("LOCAL_RANK", "1")
    limit_memory(MemorySettings())
    assert shares[2:] == [(0.25, 0), (0.4, 0), (0.4, 1)]
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize(
    "before, name, after",
    [
        ({}, "PYTORCH_ALLOC_CONF", "expandable_segments:True"),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"},
            "PYTORCH_CUDA_ALLOC_CONF",
            "max_split_size_mb:64,expandable_segments:True",
        ),
        (
            {"PYTORCH_ALLOC_CONF": "expandable_segments:False"},
            "PYTORCH_ALLOC_CONF",
            "expandable_segments:False",
        ),
    ],
)
def test_segments_of_the_allocator_grow_unless_the_environment_says_otherwise(
    before: dict[str, str], name: str, after: str
) -> None:
    environ = dict(before)
    use_expandable_segments(environ)
    assert environ == {**before, name: after}


@pytest.mark.parametrize("task", ["digits_01", "sentiment"])
def test_a_job_that_recomputes_its_blocks_returns_the_numbers_of_one_that_does_not(
    make_job: Callable[..., Any], tmp_path: Path, task: str
) -> None:
    model = [] if task == "digits_01" else ["model=unify_tiny"]
    found = []
    for method in ("memory=none", "memory=gc"):
        overrides = [f"task={task}", *model, "model.dropout=0.1", "trainer.max_steps=3", method]
        found.append(finish(make_job(*overrides), tmp_path / method.replace("=", "_")))
    plain, recomputed = found
    assert plain["train_loss"] == recomputed["train_loss"] and plain["score"] == recomputed["score"]


def test_out_of_memory_in_an_evaluation_is_a_cause_of_its_own_that_names_the_batch_size(
    make_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:

    run = make_job()
    task = meeting_of(run)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(type(task), "answers", full)
    with pytest.raises(EvaluationMemoryError, match=r"micro_valid_batch_size smaller") as error:
        predict(model_of(run), task, load(task.plan, run.evaluation), "dev")
    assert cause_of(error.value) is Cause.EVALUATION_MEMORY and Cause.EVALUATION_MEMORY in (
        OUT_OF_DEVICE_MEMORY
    )
    assert cause_of(error.value.__cause__) is Cause.DEVICE_MEMORY


def test_an_evaluation_keeps_the_logits_of_no_batch_but_the_one_it_is_at(
    make_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:

    run = make_job("task.digits_01.dataset.micro_valid_batch_size=8")
    task, alive = meeting_of(run), []
    real, answers = type(task).logits, type(task).answers
    seen: list[weakref.ref[Any]] = []

    def logits(self: Any, *args: Any) -> Any:
        found = real(self, *args)
        seen.append(weakref.ref(found))
        return found

    def counted(self: Any, *args: Any) -> Any:
        alive.append(sum(one() is not None for one in seen))
        return answers(self, *args)

    monkeypatch.setattr(type(task), "logits", logits)
    monkeypatch.setattr(type(task), "answers", counted)
    predict(model_of(run), task, load(task.plan, run.evaluation), "dev", 3, with_loss=True)
    assert alive == [0, 0, 0] and len(seen) >= 3


def test_peaks_of_the_parts_of_a_step_and_of_the_job_outlast_each_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    peaks = {"allocated": 0, "reserved": 0}

    def use(allocated: int) -> None:
        peaks["allocated"] = max(peaks["allocated"], allocated)
        peaks["reserved"] = max(peaks["reserved"], allocated + 5)

    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda: peaks.update(allocated=10, reserved=15)
    )
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 10)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peaks["allocated"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: peaks["reserved"])
    meter = GpuMeter()
    assert meter.start() == 10
    for part in (70, 40):
        use(part)
        meter.mark()
    use(60)
    assert meter.read() == (70, 75) and meter.parts == [70, 40, 60]
    meter.start()
    use(30)
    assert meter.read() == (30, 35) and meter.parts == [30] and meter.whole() == (70, 75)
