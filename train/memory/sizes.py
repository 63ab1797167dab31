"""The dry run: sizes of a training's batches, and the plan of each, from a few steps that train nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autocl_sweeper.errors import InfeasibleBudgetError
from train.config.memory import MemorySettings
from train.memory.blocks import Blocks, check_tier, planner_of
from train.memory.collector import Collector, collected
from train.memory.features import Shape, shape_of
from train.memory.meter import Meter
from train.memory.selective import KEPT
from train.memory.static import Static, gib, made_with

JSON, TABLE = "memory_sizes.json", "memory_sizes.txt"
CORRECTIONS = 4  # of the plan of one size, at most


class _Seen(BaseException):
    """Ends a forward pass before it begins."""


def shape_seen(model: torch.nn.Module, call: Callable[[], Any], has_decoder: bool) -> Shape:
    """The shape of the batch that `call` gives to the model, which does not run."""
    seen: list[Shape] = []

    def look(module: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        seen.append(shape_of(kwargs, has_decoder))
        raise _Seen

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        call()
    except _Seen:
        return seen[0]
    finally:
        hook.remove()
    raise AssertionError("the model was not called")


def largest_of(shapes: Sequence[Shape]) -> Shape:
    """A shape that none of these exceeds in any size."""
    return Shape(*(max(getattr(one, n) for one in shapes) for n in ("rows", "length", "target")))


def to_measure(shapes: Sequence[Shape], steps: int) -> list[Shape]:
    """The smallest, the largest, then others evenly between them; at most `steps`."""
    ordered = sorted(set(shapes), key=lambda one: one.features())
    last = len(ordered) - 1
    n = min(steps, len(ordered))
    spread = [ordered[round(i * last / max(1, n - 1))] for i in range(n)]
    return [*spread[:1], *spread[:0:-1]]


@dataclass(frozen=True)
class Planned:
    """What is predicted for all batches of one size, bytes with the static part."""

    shape: Shape
    batches: int
    first: int  # update that has the first of them, from 1; 0: a bound, no batch
    kept_all: float  # peak where nothing is recomputed
    blocks: tuple[int, ...]
    predicted: float  # peak with these blocks recomputed
    margin: float
    least_budget: float
    fits: bool
    extrapolated: bool
    selective: tuple[int, ...]  # blocks that are recomputed in part


class DryRun:
    """Fits the bytes of a model's steps by running some, without an update, and plans with them.

    step: forward and backward pass of a batch as in training. accumulates: an update has several
    micro-batches. states: bytes of the optimizer for a trainable parameter.
    """

    def __init__(
        self,
        settings: MemorySettings,
        model: torch.nn.Module,
        meter: Meter,
        step: Callable[[Any], None],
        states: int,
        accumulates: bool,
    ) -> None:
        self.settings, self.model, self.meter, self.step = settings, model, meter, step
        self.blocks = Blocks(model)
        self.planner = planner_of(self.blocks, settings)
        self.static = Static.of(model, states)
        self.fresh = not accumulates  # later micro-batches find gradients there
        wanted = settings.selective  # auto: a GPU in training decides
        self.tier = wanted if check_tier(wanted, self.blocks) and wanted in KEPT else None
        self.before = 0.0  # bytes before the last step that ran

    @property
    def static_bytes(self) -> float:
        """Bytes before a step."""
        return self.static.total - (self.static.gradients if self.fresh else 0.0)

    def collect(self, batches: Mapping[Shape, Any]) -> None:
        """Run steps on these batches until the planner knows enough, or all were measured."""
        shapes = to_measure([*batches], self.settings.collect_steps)
        kinds = len(self.planner.distinct)
        self.blocks.enable()
        collector = Collector(self.blocks.layers, self.meter.mark, self.tier is not None)
        try:
            self._run(batches[shapes[0]], ())  # what a first step allocates for good
            while self.planner.collecting and self.planner.steps < kinds * len(shapes):
                shape = shapes[self.planner.steps // kinds]
                probe = self.planner.probe
                collector.start(probe)
                self._run(batches[shape], self.blocks.all_but(probe))
                found = collected(collector, self.before, self.meter, self.fresh)
                self.planner.collect(shape.features(), found)
            if self.tier is not None and collector.outputs is not None:
                self.planner.tier = collector.outputs.tier(self.tier)
        finally:
            collector.close()
            self.blocks.disable()

    def kept_all(self, shape: Shape) -> float:
        """The predicted peak of a batch where nothing is recomputed, bytes with the static part."""
        return self.static_bytes + self.planner.predicted(shape.features(), (), self.fresh)

    def plan(self, shape: Shape, longest: int, batches: int, first: int) -> Planned:
        """The plan of a batch. longest: length of the largest, which method static plans for."""
        wanted = shape
        if self.settings.method == "static":
            wanted = replace(shape, length=max(shape.length, self.settings.max_size or longest))
        choice = self.planner.plan(
            wanted.features(), wanted.length, self.static_bytes, fresh=self.fresh
        )
        peak = self.planner.predicted(shape.features(), choice.blocks, self.fresh, choice.selective)
        return Planned(
            *(shape, batches, first, self.kept_all(shape), choice.blocks, self.static_bytes + peak),
            *(choice.margin, choice.least_budget, choice.fits, choice.extrapolated),
            choice.selective,
        )

    def correct(self, shape: Shape, batch: Any, longest: int) -> float:
        """Run a batch under its plan, the next one of what that shows, until they agree; the peak."""
        self.blocks.enable()
        try:
            for _ in range(CORRECTIONS):
                choice = self.planner.plan(shape.features(), longest, self.static_bytes, self.fresh)
                peak = self.static_bytes + self._run(batch, choice.blocks, choice.selective)
                if not self.planner.measured(
                    shape.features(), choice, peak, peak, self.static_bytes
                ):
                    break
            return peak
        finally:
            self.blocks.disable()

    def _run(self, batch: Any, blocks: Sequence[int], selective: Sequence[int] = ()) -> float:
        """The peak of a step above what was there before it."""
        self.blocks.choose(blocks, selective, self.tier)
        if self.fresh:
            self.model.zero_grad(set_to_none=True)
        self.before = self.meter.start()
        self.step(batch)
        return self.meter.read()[0] - self.before


@dataclass(frozen=True)
class Sizes:
    """All that a dry run has found."""

    sizes: tuple[Planned, ...]  # in the order in which they are first met
    order: tuple[int, ...]  # of each micro-batch in the run's own order, the index of its size
    largest: Planned  # that with the most predicted bytes, or a bound
    is_bound: bool
    measured_shape: Shape  # of the batch looked at with the most predicted bytes
    measured: float  # its peak, run under its plan, bytes with the static part
    # Task and part -> rows, length and bytes of its largest batch.
    evaluation: Mapping[str, Mapping[str, float]]
    static: Static
    steps: int  # that were run to find it
    blocks: int

    def numbers(self) -> dict[str, float]:
        """What the job returns of it."""
        unfit = sum(one.batches for one in self.sizes if not one.fits)
        return {
            "micro_batches": len(self.order),
            "sizes": len(self.sizes),
            "largest_rows": self.largest.shape.rows,
            "largest_length": self.largest.shape.length,
            "predicted_peak_mib": self.largest.predicted / 2**20,
            "static_mib": self.static.total / 2**20,
            "least_budget_gib": self.largest.least_budget / 2**30,
            "infeasible_steps": unfit,
        }

    def table(self, settings: MemorySettings) -> str:
        budget = settings.budget_bytes
        lines = [
            f"budget {'none' if budget is None else gib(budget)}, static part {gib(self.static.total)} "
            f"({self.static}), {self.steps} steps measured",
            f"{'rows':>6} {'length':>7} {'target':>7} {'batches':>8} {'first':>6} {'kept all':>11} "
            f"{'recomputed':>11} {'peak':>11} {'least budget':>13}",
        ]
        shown = sorted(self.sizes, key=lambda one: one.kept_all)
        for one in [*shown, self.largest] if self.is_bound else shown:
            marks = [
                *(["largest"] if one is self.largest and not self.is_bound else []),
                *(["bound"] if not one.first else []),
                *(["wider margin"] if one.extrapolated else []),
                *([] if one.fits else ["does not fit"]),
            ]
            partly = f"+{len(one.selective)}" if one.selective else ""
            recomputed = f"{len(one.blocks)}{partly} of {self.blocks}"
            lines.append(
                f"{one.shape.rows:>6} {one.shape.length:>7} {one.shape.target or '-':>7} "
                f"{one.batches:>8} {one.first or '-':>6} {gib(one.kept_all):>11} {recomputed:>11} "
                f"{gib(one.predicted):>11} {gib(one.least_budget):>13}  {', '.join(marks)}".rstrip()
            )
        one = next(one for one in self.sizes if one.shape == self.measured_shape)
        lines.append(
            f"{one.shape.rows} x {one.shape.length}, run under its plan: predicted {gib(one.predicted)}, "
            f"measured {gib(self.measured)}"
        )
        for name, one_of in self.evaluation.items():
            lines.append(
                f"evaluation, {name}: largest batch {one_of['rows']:g} x {one_of['length']:g}, one pass "
                f"without gradients {gib(one_of['bytes'])} above the static part (generation not run)"
            )
        return "\n".join(lines) + "\n"

    def write(self, folder: Path, settings: MemorySettings) -> None:
        """memory_sizes.json and memory_sizes.txt."""
        values = {**asdict(settings), **asdict(self), "made_with": made_with()}
        (folder / JSON).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        (folder / TABLE).write_text(self.table(settings), encoding="utf-8")

    def refuse_unfit(self, settings: MemorySettings) -> None:
        """Raise InfeasibleBudgetError where the largest batch, of training or evaluation, does not fit."""
        told = []
        one = self.largest
        if not one.fits:
            told.append(
                f"{settings.named_budget}: no plan fits "
                f"{'a bound of all batches, ' if self.is_bound else ''}"
                f"{one.shape.rows} x {one.shape.length}: predicted peak {gib(one.predicted)} with "
                f"{len(one.blocks)} blocks recomputed, {gib(self.static.total)} of it static, and a margin "
                f"of {gib(one.margin)}. The smallest feasible budget is {gib(one.least_budget)}"
            )
        for name, found in self.evaluation.items():
            needed = self.static.parameters + self.static.states + found["bytes"]
            if settings.budget_bytes is not None and needed > settings.budget_bytes:
                told.append(
                    f"{settings.named_budget}: the largest batch of the evaluation of {name}, "
                    f"{found['rows']:g} x {found['length']:g}, needs {gib(needed)} with parameters and "
                    "optimizer states, and plans are for training alone. Set micro_valid_batch_size of "
                    f"task.{name.partition(' ')[0]}.dataset smaller, or a larger budget"
                )
        if told:
            raise InfeasibleBudgetError("\n".join([*told, f"All sizes are in {TABLE}"]))
