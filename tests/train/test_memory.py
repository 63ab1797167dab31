"""What a training may take of a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.runs import finish


def test_a_memory_budget_holds_for_the_gpu_and_is_refused_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from train.config.memory import MemorySettings
    from train.config.typed import SettingsError
    from train.memory.budget import limit_memory

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"memory\.budget_mib=512: limits the memory of a GPU"):
        limit_memory(MemorySettings(budget_mib=512))
    with pytest.raises(SettingsError, match=r"memory\.mode=sizes plans for this one here"):
        limit_memory(MemorySettings(budget_mib=512))
    limit_memory(MemorySettings(budget_mib=512, mode="sizes"))
    limit_memory(MemorySettings())

    class Device:
        total_memory = 2048 * 2**20

    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Device)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    limit_memory(MemorySettings(budget_mib=512))
    limit_memory(MemorySettings(budget_gib=4))
    limit_memory(MemorySettings(budget_gib=1, hard_cap=False))
    assert shares == [0.25, 1.0]
    # Beside other jobs of a sweep: the smaller of its budget and of what it reserves.
    monkeypatch.setenv("AUTOCL_MEMORY_FRACTION", "0.4")
    limit_memory(MemorySettings(budget_mib=512))
    limit_memory(MemorySettings(budget_gib=4))
    limit_memory(MemorySettings())
    assert shares[2:] == [0.25, 0.4, 0.4]


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
