"""Which blocks of each micro-batch are recomputed: callbacks of the Trainer, by method."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autocl_sweeper.errors import InfeasibleBudgetError
from train.config.memory import PLANNED, MemorySettings
from train.memory.blocks import WHOLE, Blocks, check_indices, check_tier, planner_of
from train.memory.collector import Collector, collected
from train.memory.features import Shape, shape_of
from train.memory.meter import Meter
from train.memory.planner import Choice, Planner
from train.memory.records import write_model
from train.memory.selective import KEPT, cheapest, checkpointing, timed
from train.memory.static import OTHER_STATES, STATE_BYTES, Static, gib, trainable
from train.memory.steps import MeasuredSteps, Running

log = logging.getLogger(__name__)


class RecomputedBlocks(MeasuredSteps):
    """Blocks of the model can be recomputed while it is trained."""

    planner: Planner | None = None

    def __init__(
        self, settings: MemorySettings, model: torch.nn.Module, folder: Path, meter: Meter | None
    ) -> None:
        super().__init__(settings, model, folder, meter)
        self.blocks = Blocks(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.blocks.enable()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_end(args, state, control, **kwargs)
        self.blocks.disable()

    def leave(self) -> None:
        super().leave()
        if self.records.order and self.records.writes:
            write_model(self.records.folder, self.blocks.kinds, self.planner)


class FixedBlocks(RecomputedBlocks):
    """Recomputes the same blocks in every step: methods gc, fixed and every_n."""

    def __init__(
        self, settings: MemorySettings, model: torch.nn.Module, folder: Path, meter: Meter | None
    ) -> None:
        super().__init__(settings, model, folder, meter)
        n = len(self.blocks.layers)
        chosen = {"gc": range(n), "every_n": range(0, n, settings.n)}
        self.chosen = tuple(chosen.get(settings.method, settings.blocks or ()))
        check_indices(self.chosen, self.blocks)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.blocks.choose(self.chosen)
        log.info("%d of %d blocks are recomputed", len(self.chosen), len(self.blocks.layers))


class PlannedBlocks(RecomputedBlocks):
    """Recomputes as few blocks as each micro-batch needs under the budget: methods plan and static."""

    unplanned = "collect"

    def __init__(
        self, settings: MemorySettings, model: torch.nn.Module, folder: Path, meter: Meter
    ) -> None:
        super().__init__(settings, model, folder, meter)
        self.planner: Planner = planner_of(self.blocks, settings)
        self.states = 0.0  # bytes of the optimizer's, which the first update allocates
        self.collector: Collector | None = None
        self.logged: set[tuple[tuple[int, ...], ...]] = set()
        wanted = settings.selective
        alike = check_tier(wanted, self.blocks) and settings.planner == "prefix"
        self.tier = wanted if alike and (wanted != "auto" or torch.cuda.is_available()) else "none"

    # -- what the Trainer calls ------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = str(getattr(args.optim, "value", args.optim))
        self.states = STATE_BYTES.get(optimizer, OTHER_STATES) * trainable(self.model)
        static = Static.of(self.model, STATE_BYTES.get(optimizer, 0))
        if static.total + self.planner.margin(False) > self.planner.budget:
            raise InfeasibleBudgetError(
                f"{self.settings.named_budget}: is below the static part of any batch, "
                f"{gib(static.total)} ({static}), and a margin of {gib(self.planner.margin(False))}. "
                f"No smaller budget than {gib(self.planner.least_budget(static.total, False))} is "
                "feasible; memory.mode=sizes finds the one that is. Set a larger one, or take a smaller "
                "model or delta"
            )
        super().on_train_begin(args, state, control, **kwargs)
        assert self.meter is not None
        self.collector = Collector(self.blocks.layers, self.meter.mark, self.tier != "none")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_end(args, state, control, **kwargs)
        self._stop_collecting()

    # -- one micro-batch -------------------------------------------------------------------------

    def _shape(self, kwargs: dict[str, Any]) -> Shape | None:
        return shape_of(kwargs, self.blocks.has_decoder)

    def _prepare(self) -> None:
        if self.collector is not None and not self.planner.collecting:
            self._choose_tier(self.collector)
            self._stop_collecting()

    def _choose_tier(self, found: Collector) -> None:
        """Whether blocks may be recomputed in part, by work where a tier is asked for, else by time."""
        if self.tier == "none" or found.outputs is None:
            return
        if self.tier != "auto":
            self.planner.tier = found.outputs.tier(self.tier)
            return
        tiers = {name: checkpointing(name) for name in KEPT}
        functions = {"kept": None, "whole": WHOLE, **tiers}
        seconds = timed(found.blocks[found.probe], functions, found.call)
        tier = self.planner.tier = cheapest(seconds, self.planner.held_by(found.probe, [*KEPT]))
        log.info(
            "a block takes %s: %s",
            ", ".join(f"{1e3 * took:.2f} ms {name}" for name, took in seconds.items()),
            f"tier {tier.name}" if tier else "no block is recomputed in part",
        )

    def _choose(self, shape: Shape, static: float, fresh: bool) -> Choice | None:
        if self.collector is not None:
            probe = self.planner.probe
            self.blocks.choose(self.blocks.all_but(probe))
            # Timed afterwards: the arguments of the last probe.
            self.collector.keeps_call = (
                self.tier == "auto" and self.planner.steps + 1 >= self.settings.collect_steps
            )
            self.collector.start(probe)
            return None
        choice = self._plan(shape, static, fresh)
        tier = self.planner.tier
        self.blocks.choose(
            choice.blocks, choice.selective, tier.name if tier else None, choice.offload
        )
        return choice

    def _plan(self, shape: Shape, static: float, fresh: bool) -> Choice:
        planned = shape
        if self.settings.method == "static" and self.settings.max_size is not None:
            planned = replace(shape, length=max(shape.length, self.settings.max_size))
        if not self.step:  # states of the optimizer come with the first update
            static += self.states
        choice = self.planner.plan(planned.features(), planned.length, static, fresh)
        if not choice.fits:
            choice = self._unfit(choice, planned, static, fresh)
        if (choice.blocks, choice.selective) not in self.logged:
            self.logged.add((choice.blocks, choice.selective))
            partly = f", {len(choice.selective)} in part" if choice.selective else ""
            log.info(
                "batches like %d x %d: %d of %d blocks are recomputed%s, predicted peak %s",
                *(shape.rows, shape.length, len(choice.blocks), len(self.blocks.layers)),
                *(partly, gib(choice.predicted)),
            )
        return choice

    def _unfit(self, choice: Choice, shape: Shape, static: float, fresh: bool) -> Choice:
        """What to do with a batch that has no plan. Raises InfeasibleBudgetError."""
        how = self.settings.on_infeasible
        recomputed = f"with {len(choice.blocks)} blocks recomputed"
        if how == "offload":
            choice = self.planner.offloaded(choice, shape.features(), static, fresh)
            recomputed += " and their inputs in the machine's memory"
        message = (
            f"{self.settings.named_budget}: no plan fits a batch of {shape.rows} x {shape.length}"
            f" in update {self.step + 1}: predicted peak {gib(choice.predicted)} {recomputed}, "
            f"{gib(static)} of it static, and a margin of {gib(choice.margin)}. The smallest feasible "
            f"budget is {gib(choice.least_budget)}"
        )
        if how == "raise" or (how == "offload" and not choice.offload):
            self.leave()
            raise InfeasibleBudgetError(
                f"{message}; or make batches smaller, or set memory.on_infeasible="
                f"{'offload, or warn' if how == 'raise' else 'warn'}"
            )
        log.warning("%s", message)
        return choice

    def _learn(self, one: Running, allocated: float, reserved: float) -> tuple[int, ...]:
        features, choice = one.shape.features(), one.choice
        if choice is not None:
            if not choice.offload:  # a plan of its own, which is never corrected
                self.planner.measured(features, choice, allocated, reserved, one.static)
            return choice.blocks
        found, meter = self.collector, self.meter
        assert found is not None and meter is not None
        self.planner.collect(features, collected(found, one.static, meter, one.fresh))
        return self.blocks.all_but(found.probe)

    def _stop_collecting(self) -> None:
        if self.collector is not None:
            self.collector.close()
            self.collector = None


def recomputing(
    settings: MemorySettings, model: torch.nn.Module, folder: Path, meter: Meter
) -> MeasuredSteps | None:
    """The callback of memory.method; None where nothing is recomputed or recorded.

    Raises SettingsError.
    """
    if settings.method in PLANNED:
        return PlannedBlocks(settings, model, folder, meter)
    is_measured = torch.cuda.is_available() if settings.measures is None else settings.measures
    own = meter if is_measured else None
    if settings.method == "none":
        return None if own is None else MeasuredSteps(settings, model, folder, own)
    return FixedBlocks(settings, model, folder, own)
