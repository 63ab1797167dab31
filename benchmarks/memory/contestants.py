"""The methods that are compared, each as a run that gives numbers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.memory.discipline import Job
from benchmarks.memory.families import BLOCKS
from benchmarks.memory.training import Setting, Steps, run
from train.config.memory import MemorySettings
from train.memory.planner import MARGIN, WIDER

GIB = 2.0**30
UNPLANNED: Mapping[str, MemorySettings] = {
    "none": MemorySettings(),
    "gc": MemorySettings(method="gc"),
    "every_2": MemorySettings(method="every_n", n=2),
    "every_4": MemorySettings(method="every_n", n=4),
}
PLANNED = (
    "prefix",
    "tiered",
    "static",
    "bucket_greedy",
    "fixed",
    "none_capped",
)  # each under a budget


@dataclass
class Known:
    """What earlier runs of a task found, which later ones need."""

    peaks: dict[str, float]  # method -> bytes
    plans: dict[str, tuple[int, ...]]  # budget's name -> what static recomputes
    flops: dict[str, list[float]]  # none and gc -> of each step after collection


Budget = Callable[[Known], float]  # bytes


def share_of(share: float) -> Budget:
    """A budget between the peak of gc and that of none."""

    def bytes_of(known: Known) -> float:
        low, high = known.peaks["gc"], known.peaks["none"]
        return low + share * (high - low)

    return bytes_of


def jobs(
    setting: Setting,
    methods: Sequence[str],
    budgets: Mapping[str, Budget],
    capped: bool,
    timed: bool = True,
) -> list[Job]:
    """A run per method, and per budget of those that need one; budgets by the name in the table.

    capped: the device refuses more than the budget.
    """
    known = Known({}, {}, {})
    made = [
        Job(setting.family.name, method, _act(setting, method, None, None, known, capped, timed))
        for method in methods
        if method in UNPLANNED
    ]
    for name, budget in budgets.items():
        for method in sorted(methods, key=lambda one: one == "fixed"):  # it has the plan of static
            if method in PLANNED:
                act = _act(setting, method, name, budget, known, capped, timed)
                made.append(Job(setting.family.name, f"{method}@{name}", act))
    return made


def _act(
    setting: Setting,
    method: str,
    name: str | None,
    budget: Budget | None,
    known: Known,
    capped: bool,
    timed: bool,
) -> Callable[[Path], dict[str, Any]]:
    def act(folder: Path) -> dict[str, Any]:
        limit = None if budget is None else budget(known)
        memory = UNPLANNED.get(method)
        if memory is None:
            assert limit is not None and name is not None
            memory = settings_of(method, limit, setting, known.plans.get(name))
        if capped:
            _cap(limit)
        counted = not setting.on_gpu and method in ("none", "gc", "tiered")
        steps = run(setting, memory, folder, counted, timed)
        if method in UNPLANNED and steps.allocated:
            known.peaks[method] = max(steps.allocated)
        if method in UNPLANNED and steps.flops:
            known.flops[method] = steps.flops
        if not steps.flops and {"none", "gc"} <= known.flops.keys():
            steps.flops = flops_of(
                known, [one["blocks"] for one in steps.records[setting.collect :]]
            )
        if method == "static" and steps.records and name is not None:
            known.plans[name] = tuple(steps.records[-1]["blocks"])
        return {
            "budget_gib": None if limit is None else limit / GIB,
            **numbers(setting, method, steps, limit),
        }

    return act


def flops_of(known: Known, blocks: Sequence[Sequence[int]]) -> list[float]:
    """FLOPs of steps that recompute these blocks of BLOCKS alike ones, each by as much as gc does."""
    steps = zip(known.flops["none"], known.flops["gc"], blocks, strict=False)  # or it broke off
    return [plain + len(own) * (full - plain) / BLOCKS for plain, full, own in steps]


def settings_of(
    method: str, limit: float, setting: Setting, blocks: tuple[int, ...] | None
) -> MemorySettings:
    """The settings of a method under a budget in bytes. blocks: of `fixed`."""
    if method == "none_capped":
        return MemorySettings()
    if method == "fixed":
        return MemorySettings(method="fixed", blocks=blocks or ())
    longest = max(setting.lengths) ** (1 if setting.family.median else 2)  # an image has pixels
    planned = MemorySettings(
        method="plan",
        budget_gib=limit / GIB,
        collect_steps=setting.collect,
        on_infeasible="warn",
        selective="none",
    )
    if method == "tiered":  # by time on a GPU, by work on the CPU
        return replace(planned, selective="auto" if setting.on_gpu else "attention")
    if method == "static":
        return replace(planned, method="static", max_size=longest)
    return replace(planned, planner="bucket_greedy" if method == "bucket_greedy" else "prefix")


def _cap(limit: float | None) -> None:
    """Free what the last run has left, and hold this process to the budget from here on."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if limit is None else min(1.0, limit / total))


def numbers(setting: Setting, method: str, steps: Steps, limit: float | None) -> dict[str, Any]:
    """What a run's line holds; the collected steps are only in `collect_s`."""
    after = steps.seconds[setting.collect :]
    tokens = [setting.rows * n for n in setting.lengths]
    planned = [one for one in steps.records if one["phase"] == "plan"]
    errors = [
        abs(one["predicted_bytes"] / one["peak_allocated_bytes"] - 1)
        for one in planned
        if one["peak_allocated_bytes"] and method != "static"  # it predicts the largest batch alone
    ]
    hits = [one["plan_us"] for one in planned if one["cache_hit"]]
    misses = [one["plan_us"] for one in planned if not one["cache_hit"]]
    peaks, later = steps.allocated[setting.collect :], steps.records[setting.collect :]
    made: dict[str, Any] = {
        "ended": steps.ended,
        "steps": len(steps.allocated),
        "training_s": steps.training_s,
        "step_s": median(after) if after else None,
        "steps_s": sum(after) if after else None,
        "collect_s": sum(steps.seconds[: setting.collect]) if planned else None,
        "tokens_per_s": sum(tokens[setting.collect :]) / sum(after) if after else None,
        "peak_allocated_gib": max(steps.allocated, default=0.0) / GIB,
        "peak_reserved_gib": max(steps.reserved, default=0.0) / GIB,
        "over_budget": None if limit is None else sum(n > limit for n in peaks),
        "above": [
            limit is not None
            and one["peak_allocated_bytes"]
            > limit * (1 - MARGIN * (WIDER if one["extrapolated"] else 1))
            for one in later
        ],
        "blocks": [len(one["blocks"]) for one in later],
        "infeasible": sum(one["infeasible"] for one in planned) if planned else None,
        "error": max(errors, default=None),
        "hits": len(hits),
        "hit_us": median(hits) if hits else None,
        "miss_us": median(misses) if misses else None,
        "plan_us": mean(hits + misses) if planned else None,
        "flops": sum(steps.flops) or None,
    }
    return made
