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

from train.config.memory import PLANNED, MemorySettings
from train.memory.blocks import Blocks, check_indices
from train.memory.collector import Collector
from train.memory.features import Shape, shape_of
from train.memory.meter import Meter
from train.memory.planner import Choice, Collected, Planner
from train.memory.records import Record, Records, write_model

log = logging.getLogger(__name__)

STATE_BYTES = 8  # of AdamW in fp32, for each trainable parameter


class InfeasibleBudget(RuntimeError):
    """No plan of a batch fits the budget; found before its step ran."""


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
        self.running: _Running | None = None
        self.collector: Collector | None = None
        self.hook: Any = None
        self.logged: set[tuple[int, ...]] = set()

    # -- what the Trainer calls ------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = [p for p in self.model.parameters() if p.device.type != "meta"]
        static = sum(p.numel() * p.element_size() for p in parameters)
        if static > self.budget:
            raise InfeasibleBudget(
                f"{self.settings.named_budget}: the parameters alone take {_gib(static)}. Set a "
                "larger budget"
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
        self.records.flush()
        if self.planner.rows and self.records.writes:
            write_model(self.folder, self.planner, _made_with())
        for line in self.records.mimose_lines():
            log.info("%s", line)

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
            trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            static += STATE_BYTES * trainable
        choice = self.planner.plan(planned.features(), planned.length, static, fresh)
        if choice.blocks not in self.logged:
            self.logged.add(choice.blocks)
            log.info(
                "batches like %d x %d: %d of %d blocks are recomputed, predicted peak %s",
                *(shape.rows, shape.length, len(choice.blocks), len(self.blocks.layers)),
                _gib(choice.predicted),
            )
        if not choice.fits:
            message = (
                f"{self.settings.named_budget}: no plan fits a batch of {shape.rows} x {shape.length}"
                f" in update {self.step + 1}: predicted peak {_gib(choice.predicted)} with "
                f"{len(choice.blocks)} blocks recomputed, {_gib(static)} of it static, and a margin of "
                f"{_gib(choice.margin)}. The smallest feasible budget is "
                f"{_gib(choice.least_budget)}; or make batches smaller, or set "
                "memory.on_infeasible=warn"
            )
            if self.settings.on_infeasible == "raise":
                self.records.flush()
                raise InfeasibleBudget(message)
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


def _gib(value: float) -> str:
    return f"{value / 2**30:.3f} GiB"


def _made_with() -> dict[str, str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"torch": torch.__version__, "transformers": transformers.__version__, "gpu": gpu}
