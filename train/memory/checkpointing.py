"""Which blocks of each micro-batch are recomputed, on the Trainer as it is: a callback and a forward hook."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from autocl_sweeper.errors import InfeasibleBudgetError
from train.config.memory import PLANNED, MemorySettings
from train.memory.blocks import Blocks, check_indices
from train.memory.collector import Collector
from train.memory.features import Shape, shape_of
from train.memory.meter import Meter
from train.memory.planner import Choice, Collected, Planner
from train.memory.records import Record, Records, write_model

log = logging.getLogger(__name__)

STATE_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "sgd": 0}  # of a trainable parameter
OTHER_STATES = 8  # assumed in plans for optimizers that are not among them


class RecomputedBlocks(TrainerCallback):
    """Recomputes the same blocks in every step: methods gc, fixed and every_n."""

    def __init__(self, settings: MemorySettings, model: torch.nn.Module) -> None:
        self.blocks = Blocks(model)
        n = len(self.blocks.layers)
        chosen = {"gc": range(n), "every_n": range(0, n, settings.n)}
        self.chosen = chosen.get(settings.method, settings.blocks or ())
        check_indices(self.chosen, self.blocks)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.blocks.enable()
        self.blocks.choose(self.chosen)
        log.info("%d of %d blocks are recomputed", len(self.chosen), len(self.blocks.layers))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.blocks.disable()


@dataclass(frozen=True)
class _Running:
    """The micro-batch between its forward pass and the end of its backward pass."""

    shape: Shape
    static: float
    fresh: bool  # gradients are not there yet
    began_s: float
    plan_us: float
    choice: Choice | None  # None: it is collected


class PlannedBlocks(TrainerCallback):
    """Recomputes as few blocks as each micro-batch needs under the budget: methods plan and static."""

    def __init__(
        self, settings: MemorySettings, model: torch.nn.Module, folder: Path, meter: Meter
    ) -> None:
        assert settings.budget_bytes is not None
        self.settings, self.model, self.folder, self.meter = settings, model, folder, meter
        self.blocks = Blocks(model)
        self.budget = settings.budget_bytes
        self.planner = Planner(
            self.blocks.kinds,
            self.budget,
            settings.margin_bytes,
            settings.collect_steps,
            settings.planner,
            self.blocks.gradients,
        )
        self.records = Records(folder)
        self.has_decoder = bool(getattr(self.blocks.owner.config, "is_encoder_decoder", False))
        self.step = 0  # updates done
        self.states = 0.0  # bytes of the optimizer's, which the first update allocates
        self.running: _Running | None = None
        self.collector: Collector | None = None
        self.hook: Any = None
        self.logged: set[tuple[int, ...]] = set()

    # -- what the Trainer calls ------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = str(getattr(args.optim, "value", args.optim))
        self.states = STATE_BYTES.get(optimizer, OTHER_STATES) * trainable(self.model)
        static = Static.of(self.model, STATE_BYTES.get(optimizer, 0))
        if static.total + self.planner.margin(False) > self.budget:
            raise InfeasibleBudgetError(
                f"{self.settings.named_budget}: is below the static part of any batch, "
                f"{gib(static.total)} ({static}), and a margin of {gib(self.planner.margin(False))}. "
                f"No smaller budget than {gib(self.planner.least_budget(static.total, False))} is "
                "feasible; memory.mode=sizes finds the one that is. Set a larger one, or take a smaller "
                "model or delta"
            )
        self.step = state.global_step
        self.records.writes = state.is_world_process_zero
        self.blocks.enable()
        self.collector = Collector(self.blocks.layers)
        self.hook = self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._finish()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._finish()
        self.hook.remove()
        self._stop_collecting()
        self.blocks.disable()
        self.leave()
        for line in self.records.mimose_lines():
            log.info("%s", line)

    def leave(self) -> None:
        """Write what is known by now into the job folder."""
        self.records.flush()
        if self.planner.rows and self.records.writes:
            write_model(self.folder, self.planner, made_with())

    # -- one micro-batch -------------------------------------------------------------------------

    def _before_forward(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if not module.training or not torch.is_grad_enabled():
            return
        self._finish()
        shape = shape_of(kwargs, self.has_decoder)
        static = self.meter.start()
        fresh = all(p.grad is None for p in self.model.parameters() if p.requires_grad)
        began = time.perf_counter()
        choice = None
        if self.planner.collecting and self.collector is not None:
            probe = self.planner.probe
            self.blocks.choose([i for i in range(len(self.blocks.layers)) if i != probe])
            self.collector.start(probe)
        else:
            self._stop_collecting()
            choice = self._choose(shape, static, fresh)
            self.blocks.choose(choice.blocks)
        took = time.perf_counter() - began
        self.running = _Running(shape, static, fresh, began, took * 1e6, choice)

    def _choose(self, shape: Shape, static: float, fresh: bool) -> Choice:
        planned = shape
        if self.settings.method == "static" and self.settings.max_size is not None:
            planned = replace(shape, length=max(shape.length, self.settings.max_size))
        if not self.step:  # states of the optimizer come with the first update
            static += self.states
        choice = self.planner.plan(planned.features(), planned.length, static, fresh)
        if choice.blocks not in self.logged:
            self.logged.add(choice.blocks)
            log.info(
                "batches like %d x %d: %d of %d blocks are recomputed, predicted peak %s",
                *(shape.rows, shape.length, len(choice.blocks), len(self.blocks.layers)),
                gib(choice.predicted),
            )
        if not choice.fits:
            message = (
                f"{self.settings.named_budget}: no plan fits a batch of {shape.rows} x {shape.length}"
                f" in update {self.step + 1}: predicted peak {gib(choice.predicted)} with "
                f"{len(choice.blocks)} blocks recomputed, {gib(static)} of it static, and a margin of "
                f"{gib(choice.margin)}. The smallest feasible budget is "
                f"{gib(choice.least_budget)}; or make batches smaller, or set "
                "memory.on_infeasible=warn"
            )
            if self.settings.on_infeasible == "raise":
                self.leave()
                raise InfeasibleBudgetError(message)
            log.warning("%s", message)
        return choice

    def _finish(self) -> None:
        """Take the peak of the micro-batch whose backward pass is over."""
        if self.running is None:
            return
        one, self.running = self.running, None
        allocated, reserved = self.meter.read()
        features = one.shape.features()
        if one.choice is None:
            found = self.collector
            assert found is not None
            kind = self.planner.kinds[found.probe]
            kept, stashes, shared = float(found.kept), found.stashes, float(found.shared)
            peak = allocated - one.static
            self.planner.collect(
                features,
                Collected(
                    kind=kind,
                    kept=kept,
                    stash=stashes[found.probe],
                    largest=float(found.largest),
                    shared=shared,
                    outside=self.planner.outside(kind, stashes, kept, shared, peak, one.fresh),
                ),
            )
            blocks = tuple(i for i in range(len(self.blocks.layers)) if i != found.probe)
        else:
            blocks = one.choice.blocks
            self.planner.measured(features, one.choice, allocated, reserved, one.static)
        self.records.add(
            Record(
                step=self.step + 1,
                size=one.shape.length,
                features=features,
                phase="collect" if one.choice is None else "plan",
                blocks=blocks,
                predicted_bytes=None if one.choice is None else one.choice.predicted,
                peak_allocated_bytes=allocated,
                peak_reserved_bytes=reserved,
                static_bytes=one.static,
                step_s=time.perf_counter() - one.began_s,
                plan_us=one.plan_us,
                cache_hit=one.choice is not None and one.choice.cached,
                extrapolated=one.choice is not None and one.choice.extrapolated,
                infeasible=one.choice is not None and not one.choice.fits,
            )
        )

    def _stop_collecting(self) -> None:
        if self.collector is not None:
            self.collector.close()
            self.collector = None


def recomputing(
    settings: MemorySettings, model: torch.nn.Module, folder: Path, meter: Meter
) -> RecomputedBlocks | PlannedBlocks | None:
    """The callback of memory.method; None where nothing is recomputed. Raises SettingsError."""
    if settings.method == "none":
        return None
    if settings.method in PLANNED:
        return PlannedBlocks(settings, model, folder, meter)
    return RecomputedBlocks(settings, model)


def gib(value: float) -> str:
    return f"{value / 2**30:.3f} GiB"


@dataclass(frozen=True)
class Static:
    """Bytes that every step of a training needs, whatever its batch."""

    parameters: float
    gradients: float
    states: float  # of the optimizer

    @classmethod
    def of(cls, model: torch.nn.Module, states: int) -> Static:
        """states: bytes of the optimizer for each trainable parameter."""
        own = [p for p in model.parameters() if p.device.type != "meta"]
        sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in own]
        gradients = sum(n for n, trained in sizes if trained)
        return cls(sum(n for n, _ in sizes), gradients, states * trainable(model))

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.states

    def __str__(self) -> str:
        return (
            f"{gib(self.parameters)} parameters, {gib(self.gradients)} gradients, "
            f"{gib(self.states)} optimizer states"
        )


def trainable(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def made_with() -> dict[str, str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"torch": torch.__version__, "transformers": transformers.__version__, "gpu": gpu}
