"""What a job leaves of its plans: a line per micro-batch, the model of its bytes, and Mimose's log lines."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from train.memory.planner import Planner
from train.memory.static import made_with

RECORDS, MODEL = "memory_records.jsonl", "memory_model.json"
BUFFERED = 200  # lines between two writes


@dataclass(frozen=True)
class Record:
    """One micro-batch. Bytes are those of the process on its device."""

    step: int  # the update it is part of, from 1
    size: int  # tokens of a sequence, padding included
    features: tuple[float, ...]
    phase: Literal["collect", "plan", "fixed"]  # fixed: every step recomputes the same
    blocks: tuple[int, ...]  # recomputed ones
    predicted_bytes: float | None
    peak_allocated_bytes: float
    peak_reserved_bytes: float
    static_bytes: float
    step_s: float
    plan_us: float
    cache_hit: bool
    extrapolated: bool
    infeasible: bool
    shape: tuple[int, ...] = ()  # rows, tokens, tokens of the target or 0
    selective: tuple[int, ...] = ()  # blocks that are recomputed in part
    offloaded: bool = False  # inputs of recomputed blocks waited in the machine's memory

    @classmethod
    def of_json(cls, line: str) -> Record:
        """The record that `as_json` wrote. Raises ValueError or TypeError."""
        told = json.loads(line)
        names = [one.name for one in dataclasses.fields(cls)]
        return cls(**{name: told[name] for name in names if name in told})

    def as_json(self) -> str:
        counts = {"k_full": len(self.blocks), "k_sac": len(self.selective)}
        return json.dumps({**dataclasses.asdict(self), **counts})


@dataclass
class Records:
    """The records of one job, written to its folder as they come."""

    folder: Path
    writes: bool = True  # false: another process of the job does
    waiting: list[Record] = field(default_factory=list)
    peaks: dict[int, list[float]] = field(default_factory=dict)  # size -> of each micro-batch
    order: list[int] = field(default_factory=list)
    plans: dict[int, tuple[int, ...]] = field(default_factory=dict)
    reserved: float = 0.0
    static: float = 0.0
    infeasible: int = 0

    def add(self, one: Record) -> None:
        self.waiting.append(one)
        self.peaks.setdefault(one.size, []).append(one.peak_allocated_bytes)
        self.order.append(one.size)
        if one.phase != "collect":
            self.plans[one.size] = one.blocks
        self.reserved = max(self.reserved, one.peak_reserved_bytes)
        self.static = max(self.static, one.static_bytes)
        self.infeasible += one.infeasible
        if len(self.waiting) >= BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Write the waiting lines."""
        if self.writes and self.waiting:
            with (self.folder / RECORDS).open("a", encoding="utf-8") as file:
                file.writelines(one.as_json() + "\n" for one in self.waiting)
        self.waiting = []

    def mimose_lines(self) -> list[str]:
        """The lines that the log of Mimose's scripts ends with."""
        return [
            f"shape_count={json.dumps(Counter(self.order))}",
            f"memory_count={json.dumps(self.peaks)}",
            f"shape_order={json.dumps(self.order)}",
            f"strategy: {json.dumps(self.plans)}",
            f"max_memory_used={round(self.reserved)}",
        ]

    def numbers(self, budget: float | None, allocated: float, reserved: float) -> dict[str, float]:
        """What the job returns of it. allocated, reserved: peaks of the whole job."""
        found = {
            "peak_allocated_mib": allocated / 2**20,
            "peak_reserved_mib": reserved / 2**20,
            "static_mib": self.static / 2**20,
            "infeasible_steps": self.infeasible,
        }
        return found if budget is None else {**found, "budget_gib": budget / 2**30}


def write_model(folder: Path, kinds: Sequence[int], planner: Planner | None) -> None:
    """memory_model.json: kinds of the blocks, the fits of a planner and how often it planned."""
    values: dict[str, Any] = {"kinds": tuple(kinds), "made_with": made_with()}
    if planner is not None:
        fits = {
            part: {**dataclasses.asdict(found), "rows": len(planner.rows[part].measured)}
            for part, found in planner.all_fits().items()
        }
        tier = planner.tier
        values |= {
            "fits": fits,
            "tier": None if tier is None else dataclasses.asdict(tier),
            "margin_bytes": planner.margin(False),
            "solved": planner.solved,
            "cache_hits": planner.hits,
            "refits": planner.refits,
        }
    (folder / MODEL).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
