"""One training of some steps with transformers' own Trainer, and what it took."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from autocl_sweeper.errors import InfeasibleBudgetError
from benchmarks.memory.families import Family, Size, batches, model
from train.config.memory import MemorySettings
from train.memory.checkpointing import recomputing
from train.memory.meter import CpuMeter, GpuMeter, Meter
from train.memory.records import RECORDS
from train.memory.static import STATE_BYTES, Static

SEED = 3


@dataclass(frozen=True)
class Setting:
    """What is trained: the same for all methods that are compared."""

    family: Family
    rows: int
    lengths: tuple[int, ...]
    size: Size
    attention: str = "eager"
    bf16: bool = False
    collect: int = 8  # first steps, which neither step times nor FLOPs count

    @property
    def on_gpu(self) -> bool:
        return self.size == "base"


@dataclass
class Steps:
    """What each step took; bytes are those of the process with its static part."""

    seconds: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)  # of steps after collection
    allocated: list[float] = field(default_factory=list)
    reserved: list[float] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)  # of each step
    training_s: float | None = (
        None  # the whole training by the Trainer's own clock; None: it broke off
    )
    ended: str = ""  # "out of memory" or the message of an infeasible budget


Reading = tuple[float, ...]  # allocated bytes at the peak of each part of a step


class StaticMeter:
    """The profiler's peaks on top of parameters and optimizer states, as a GPU would count them.

    What it read is kept. known: readings of the same training, given again without a profiler.
    """

    def __init__(self, static: float, known: Sequence[Reading] | None = None) -> None:
        self.static, self.inner = static, CpuMeter()
        self.known = None if known is None else iter(known)
        self.seen: list[Reading] = []

    def start(self) -> float:
        if self.known is None:
            self.inner.start()
        return self.static

    def mark(self) -> None:
        if self.known is None:
            self.inner.mark()

    def read(self) -> tuple[float, float]:
        if self.known is not None:
            self.seen.append(next(self.known))
        else:
            self.inner.read()
            self.seen.append(tuple(peak + self.static for peak in self.inner.parts))
        return max(self.parts), max(self.parts)

    @property
    def parts(self) -> Reading:
        return self.seen[-1]


class _Clock(TrainerCallback):
    """Seconds and FLOPs of each step."""

    def __init__(self, steps: Steps, flops: bool, setting: Setting) -> None:
        self.steps, self.setting = steps, setting
        self.counter: Any = FlopCounterMode(display=False) if flops else None
        self.began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.counter is not None and state.global_step >= self.setting.collect:
            self.counter.__enter__()
        self.began = self._now()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.counter is not None and state.global_step >= self.setting.collect:
            self.counter.__exit__(None, None, None)
            self.steps.flops.append(self.counter.get_total_flops())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.seconds.append(self._now() - self.began)

    def _now(self) -> float:
        if self.setting.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


def run(
    setting: Setting, memory: MemorySettings, folder: Path, flops: bool = False, timed: bool = True
) -> Steps:
    """Train by a method. On the CPU once for peaks, and again as it was for FLOPs and for the time.

    The counter of FLOPs keeps tensors alive and the profiler takes time, so each has a pass of its own.
    """
    if setting.on_gpu:
        found = _once(setting, memory, folder, GpuMeter(), flops=False)
        leave(folder, memory, found)
        return found
    static = Static.of(model(setting.family, setting.size), STATE_BYTES["adamw_torch"])
    held = static.total - static.gradients  # those are freed before each step
    measured = StaticMeter(held)
    found = _once(setting, memory, folder / "peaks", measured, flops=False)
    found.seconds, found.training_s = [], None
    if flops and not found.ended:
        again = StaticMeter(held, measured.seen)
        found.flops = _once(setting, memory, folder / "flops", again, flops=True).flops
    if timed and not found.ended:
        again = StaticMeter(held, measured.seen)
        clocked = _once(setting, memory, folder / "time", again, flops=False)
        found.seconds, found.training_s = clocked.seconds, clocked.training_s
        found.records = clocked.records
    leave(folder / "peaks", memory, found)
    return found


def leave(folder: Path, memory: MemorySettings, steps: Steps) -> None:
    """Write what `python -m train.memory report` asks of the folder of a job."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    own = {"method": memory.method, "budget_gib": memory.budget_gib}
    (folder / ".hydra" / "resolved.yaml").write_text(json.dumps({"memory": own}), encoding="utf-8")
    if steps.training_s is not None:
        results = json.dumps({"seconds_train": steps.training_s})
        (folder / "all_results.json").write_text(results, encoding="utf-8")


def _once(
    setting: Setting, memory: MemorySettings, folder: Path, meter: Meter, flops: bool
) -> Steps:
    folder.mkdir(parents=True, exist_ok=True)
    steps = Steps()
    device = torch.device("cuda" if setting.on_gpu else "cpu")
    made = model(setting.family, setting.size, setting.attention)
    method = recomputing(replace(memory, records=True), made, folder, meter)
    assert method is not None
    vocabulary = getattr(made.config, "vocab_size", 0)
    data = batches(setting.family, setting.rows, setting.lengths, vocabulary)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,  # an item of the data is a batch
        num_train_epochs=1,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        use_cpu=device.type == "cpu",
        bf16=setting.bf16,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        optim="adamw_torch",
        seed=SEED,
        train_sampling_strategy="sequential",
    )
    trainer = Trainer(
        model=made,
        args=arguments,
        train_dataset=data,
        data_collator=lambda items: items[0],
        callbacks=[
            method,
            _Clock(steps, flops, setting),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        steps.training_s = float(trainer.train().metrics["train_runtime"])
    except InfeasibleBudgetError as error:
        steps.ended = str(error)
    except torch.OutOfMemoryError as error:
        steps.ended = f"out of memory: {str(error).splitlines()[0]}"
    if (folder / RECORDS).exists():
        lines = (folder / RECORDS).read_text(encoding="utf-8").splitlines()
        steps.records = [json.loads(line) for line in lines]
        steps.allocated = [one["peak_allocated_bytes"] for one in steps.records]
        steps.reserved = [one["peak_reserved_bytes"] for one in steps.records]
    return steps
