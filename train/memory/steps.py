"""What each micro-batch of a training took, on the Trainer as it is: a callback and a forward hook."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback

from train.config.memory import MemorySettings
from train.memory.features import Shape, shape_of
from train.memory.meter import GpuMeter, Meter, used_bytes
from train.memory.planner import Choice
from train.memory.records import Record, Records

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """The micro-batch between its forward pass and the end of its backward pass."""

    shape: Shape
    static: float
    fresh: bool  # gradients are not there yet
    began_s: float
    plan_us: float
    choice: Choice | None  # None: it is collected, or has the same plan as all others


class MeasuredSteps(TrainerCallback):
    """Records the peak and the seconds of every micro-batch; blocks are as they were chosen before.

    meter: None: nothing is recorded.
    """

    unplanned: Literal["fixed", "collect"] = "fixed"  # phase of steps without a choice

    def __init__(
        self, settings: MemorySettings, model: torch.nn.Module, folder: Path, meter: Meter | None
    ) -> None:
        self.settings, self.model, self.meter = settings, model, meter
        self.records = Records(folder)
        config = getattr(model, "config", None)
        self.has_decoder = bool(getattr(config, "is_encoder_decoder", False))
        self.step = 0  # updates done
        self.running: Running | None = None
        self.trained: list[torch.nn.Parameter] = []
        self.hook: Any = None
        self.chosen: tuple[int, ...] = ()  # recomputed in every step

    # -- what the Trainer calls ------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.records.writes = state.is_world_process_zero
        if self.meter is not None:
            self.hook = self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._finish()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._finish()
        if self.hook is not None:
            self.hook.remove()
        self.leave()
        if self.records.order:
            for line in self.records.mimose_lines():
                log.info("%s", line)

    def leave(self) -> None:
        """Write what is known by now into the job folder."""
        self.records.flush()

    def numbers(self) -> dict[str, float]:
        """What the job returns of it; peaks are those of the whole job, evaluation included."""
        if self.meter is None:
            return {}
        if not isinstance(self.meter, GpuMeter):  # peaks on the CPU are no memory to reserve
            return {"infeasible_steps": self.records.infeasible}
        found = self.records.numbers(self.settings.budget_bytes, *self.meter.whole())
        used = used_bytes()  # of the process: what is not reserved is its context
        reserved = torch.cuda.memory_reserved()
        return found if used is None else {**found, "context_mib": (used - reserved) / 2**20}

    # -- one micro-batch -------------------------------------------------------------------------

    def _before_forward(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if not module.training or not torch.is_grad_enabled():
            return
        self._finish()
        shape = self._shape(kwargs)
        if shape is None:
            return
        assert self.meter is not None
        self._prepare()
        if self.settings.empty_cache and torch.cuda.is_available():
            torch.cuda.empty_cache()
        static = self.meter.start()
        fresh = all(p.grad is None for p in self.trained)
        began = time.perf_counter()
        choice = self._choose(shape, static, fresh)
        took = time.perf_counter() - began
        self.running = Running(shape, static, fresh, began, took * 1e6, choice)

    def _shape(self, kwargs: dict[str, Any]) -> Shape | None:
        """The shape of a batch; None: it has none that is known, and nothing is recorded of it."""
        try:
            return shape_of(kwargs, self.has_decoder)
        except ValueError as error:
            log.warning("memory.records: nothing is recorded, since %s", error)
            self.hook.remove()
            return None

    def _prepare(self) -> None:
        """What has to be done between two micro-batches, outside of what is measured."""

    def _choose(self, shape: Shape, static: float, fresh: bool) -> Choice | None:
        """Choose the blocks that this micro-batch recomputes. None: there is no choice."""
        return None

    def _learn(self, one: Running, allocated: float, reserved: float) -> tuple[int, ...]:
        """Take what a micro-batch has shown; the blocks that it recomputed."""
        return self.chosen

    def _finish(self) -> None:
        """Take the peak of the micro-batch whose backward pass is over."""
        if self.running is None:
            return
        assert self.meter is not None
        one, self.running = self.running, None
        allocated, reserved = self.meter.read()
        seconds = time.perf_counter() - one.began_s
        choice = one.choice
        blocks = self._learn(one, allocated, reserved)
        self.records.add(
            Record(
                step=self.step + 1,
                size=one.shape.length,
                shape=(one.shape.rows, one.shape.length, one.shape.target),
                features=one.shape.features(),
                phase=self.unplanned if choice is None else "plan",
                blocks=blocks,
                selective=() if choice is None else choice.selective,
                predicted_bytes=None if choice is None else choice.predicted,
                peak_allocated_bytes=allocated,
                peak_reserved_bytes=reserved,
                static_bytes=one.static,
                step_s=seconds,
                plan_us=one.plan_us,
                cache_hit=choice is not None and choice.cached,
                extrapolated=choice is not None and choice.extrapolated,
                infeasible=choice is not None and not choice.fits,
                offloaded=choice is not None and choice.offload,
            )
        )
