"""The section `memory`: training under a memory budget, and Mimose's names for its keys."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from typing import Any, Literal

from train.config.typed import Problem, SettingsError, SettingsErrors, option, read_value, shown

log = logging.getLogger(__name__)

Method = Literal["none", "gc", "plan", "static", "fixed", "every_n"]
PLANNED = ("plan", "static")  # methods that need a budget


@dataclass(frozen=True)
class MemorySettings:
    """What training may take of a device, and which blocks it recomputes to keep to that."""

    method: Method = option(
        "none",
        "which blocks are recomputed in the backward pass; gc: all; plan: as few as each batch needs; "
        "static: as few as the largest batch needs; fixed: those in blocks; every_n: every n-th",
    )
    planner: Literal["prefix", "bucket_greedy"] = option(
        "prefix", "of plan and static: our planner, or that of Mimose's code, for comparison"
    )
    mode: Literal["train", "sizes"] = option(
        "train",
        "sizes: do not train; write the sizes of all batches and the plan of each into the job folder, "
        "also on the CPU",
    )
    budget_gib: float | None = option(
        None,
        "GPU memory of a process; null: no limit",
        unit="GiB of 2^30 bytes",
        check=lambda v: v is None or 0 < v < float("inf"),
        rule="must be a finite number above 0, or null",
    )
    budget_mib: int | None = option(None, "the same in MiB; give one of them", unit="MiB", least=1)
    margin_gib: Literal["auto"] | float = option(
        "auto",
        "part of the budget that plans leave free; auto: 1 % of it, or more where reserved memory or "
        "wrong predictions ask for it",
        unit="GiB of 2^30 bytes",
        check=lambda v: v == "auto" or 0 <= v < float("inf"),
        rule="must be auto, or a finite number, 0 or more",
    )
    collect_steps: int = option(
        8,
        "micro-batches whose bytes are counted before the first plan; up to three times as many while "
        "all have the same size",
        unit="micro-batches",
        least=1,
    )
    hard_cap: bool = option(
        True, "more than the budget is an out-of-memory error; false: the budget is for plans alone"
    )
    on_infeasible: Literal["raise", "warn", "offload"] = option(
        "raise",
        "where no plan of a batch fits: end the job before the step; warn: go on with the smallest peak; "
        "offload: inputs of recomputed blocks wait in the machine's memory",
    )
    selective: Literal["auto", "none", "linear", "attention"] = option(
        "auto",
        "of plan: blocks may be recomputed in part, with the outputs of their linear layers kept, or of all"
        " matrix products (attention); auto: whichever a GPU is seen to be faster with, if any",
    )
    records: Literal["auto"] | bool = option(
        "auto",
        "write memory_records.jsonl: peaks and seconds of each micro-batch; auto: on a GPU. On the CPU a"
        " profiler measures them, which is slow; plan and static always write it",
    )
    empty_cache: bool = option(
        False, "give cached GPU memory back before each micro-batch, which costs time"
    )
    max_size: int | None = option(
        None, "of static: length of the largest batch", unit="tokens", least=1
    )
    blocks: tuple[int, ...] | None = option(
        None, "of fixed: indices of recomputed blocks, the first is 0"
    )
    sizes_steps: int = option(
        20000,
        "of mode sizes: micro-batches whose size is looked at; the largest of a longer run is a bound",
        unit="micro-batches",
        least=1,
    )
    n: int = option(2, "of every_n: the first, then every n-th block is recomputed", least=1)

    def __post_init__(self) -> None:
        if self.budget_gib is not None and self.budget_mib is not None:
            raise SettingsError(
                f"memory.budget_gib={self.budget_gib} and memory.budget_mib={self.budget_mib}: are one "
                "setting in two units. Remove one of them"
            )
        budget = self.budget_bytes
        if self.method in PLANNED and not budget:
            raise SettingsError(
                f"memory.method={self.method}: plans need a budget. Set memory.budget_gib"
            )
        if self.margin_gib != "auto" and budget and self.margin_gib * 2**30 >= budget:
            raise SettingsError(
                f"memory.margin_gib={self.margin_gib}: leaves nothing of a budget of "
                f"{budget / 2**30:g} GiB. It must be below memory.budget_gib"
            )
        if self.method == "static" and self.max_size is None and self.mode == "train":
            raise SettingsError(
                "memory.method=static: plans for the largest batch alone. Set its length in "
                "memory.max_size; memory.mode=sizes finds it"
            )
        if (self.method == "fixed") != (self.blocks is not None):
            raise SettingsError(
                f"memory.blocks={shown(self.blocks)}: is the list of recomputed blocks of "
                f"memory.method=fixed, and the method is {self.method}. Set both or none"
            )
        is_prefix = self.method in PLANNED and self.planner == "prefix"
        if self.selective in ("linear", "attention") and not is_prefix:
            raise SettingsError(
                f"memory.selective={self.selective}: is for plans of memory.planner=prefix, and the method "
                f"is {self.method} with planner {self.planner}. Set memory=plan, or leave it at auto"
            )
        if self.blocks and (len(set(self.blocks)) < len(self.blocks) or min(self.blocks) < 0):
            raise SettingsError(
                f"memory.blocks={list(self.blocks)}: must be different indices, 0 or more"
            )

    @property
    def measures(self) -> bool | None:
        """Whether micro-batches are recorded whatever the method; None: where there is a GPU."""
        return None if self.records == "auto" else self.records

    def refuse_processes(self, count: int) -> None:
        """Raise SettingsError where a job of `count` processes cannot do what `mode` asks for."""
        if self.mode == "sizes" and count > 1:
            raise SettingsError(
                f"memory.mode=sizes: looks at the batches of one process, and env asks for {count}. "
                "Set env.nproc_per_node=1 and env.nnodes=1"
            )

    @property
    def budget_bytes(self) -> float | None:
        """The budget in bytes; None: no limit."""
        if self.budget_mib is not None:
            return self.budget_mib * 2.0**20
        return None if self.budget_gib is None else self.budget_gib * 2.0**30

    @property
    def named_budget(self) -> str:
        """The budget as it was set."""
        if self.budget_mib is not None:
            return f"memory.budget_mib={self.budget_mib}"
        return f"memory.budget_gib={shown(self.budget_gib)}"

    @property
    def margin_bytes(self) -> float | None:
        """The margin in bytes; None: automatic."""
        return None if self.margin_gib == "auto" else self.margin_gib * 2.0**30


# Key of `trainer` -> why it cannot stand beside a memory method.
BESIDE: Mapping[str, str] = {
    "activation_checkpointing": "recomputes every block whatever the plan says",
    "auto_find_batch_size": "changes the batches that plans are made for",
    "torch_compile": "compiles each plan anew and leaves out most of them after the eighth",
    "ddp_static_graph": "needs the same graph in every step, and plans change it",
}


def refuse_beside(memory: MemorySettings, trainer: Mapping[str, Any], delta: str) -> None:
    """Raise SettingsErrors for options of `trainer`, and kinds of delta, that no method can work with."""
    if memory.method == "none":
        return
    if delta == "prefix":
        raise SettingsError(
            f"delta._name=prefix: its keys and values arrive through past_key_values, which a recomputed "
            f"block drops, and memory.method={memory.method} is set. Use another delta, or memory=none"
        )
    told = f"memory.method={memory.method} is set. Remove one of them (memory=none takes the method away)"
    problems = [
        Problem(f"trainer.{key}", f"trainer.{key}=true: {why}, and {told}")
        for key, why in BESIDE.items()
        if trainer.get(key)
    ]
    if problems:
        raise SettingsErrors(problems)


# -- Mimose's names -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One option of Mimose's training scripts."""

    type: Any
    to: str = ""  # our key
    value: Any = None  # of it when true; None: the value given
    method: Method | None = None  # what it chooses when true or given
    why: str = ""  # it is not taken, or has no effect


# fmt: off
ROWS: Mapping[str, Row] = {
    "memory_threshold": Row(float, "budget_gib"),
    "memory_buffer": Row(float, "margin_gib"),
    "warmup_iters": Row(int, "collect_steps"),
    "dynamic_checkpoint": Row(bool, method="plan"),
    "static_checkpoint": Row(bool, method="static"),
    "max_input_size": Row(int, "max_size"),
    "min_input_size": Row(int, why="it has no effect in Mimose either"),
    "prev_checkpoint": Row(list[int], "blocks", method="fixed"),
    "memory_predict_test": Row(bool, why="predicted and measured bytes are always recorded"),
    "use_sublinear": Row(bool, why="there are no segments of blocks; memory=every_n is the static baseline"),
    "use_dtr": Row(bool, why="it needs a patched torch; memory=plan does without"),
    "only_input_size": Row(bool, "mode", "sizes"),
    "profile_memory": Row(bool, "empty_cache", True),
    "offload": Row(bool, "on_infeasible", "offload"),
}
# fmt: on
HARMLESS = ("min_input_size", "memory_predict_test")


def _said(row: Row) -> str:
    if row.to:
        return f"Mimose's name of {row.to}"
    return f"Mimose's; true: method {row.method}" if row.method else f"Mimose's; {row.why}"


MemoryKeys = make_dataclass(
    "MemoryKeys",
    [(name, row.type | None, option(None, _said(row))) for name, row in ROWS.items()],
    bases=(MemorySettings,),
    namespace={
        "__doc__": "What may stand in `memory`: the app's options, and Mimose's.",
        "__post_init__": lambda self: None,  # whether values fit together is asked once, of ours
    },
    frozen=True,
)


def translate_memory(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settled section `memory` with Mimose's names turned into ours. Raises SettingsErrors."""
    made = {key: value for key, value in values.items() if key not in ROWS}
    problems: list[Problem] = []
    methods: dict[str, str] = {}  # method -> who chooses it
    for key, value in values.items():
        row, name = ROWS.get(key), f"memory.{key}"
        if row is None or value is None:
            continue
        try:
            given = read_value(row.type, value, name)
        except SettingsErrors as error:
            problems += error.problems
            continue
        if given is False:
            continue
        if row.why and key in HARMLESS:
            log.info("%s=%s: %s", name, shown(given), row.why)
        elif row.why:
            problems.append(
                Problem(name, f"{name}={shown(given)} is not taken over: {row.why}. Remove it")
            )
        if row.method:
            methods[row.method] = name
        if row.to:
            other, given = made.get(row.to), given if row.value is None else row.value
            if other not in (None, given, "auto"):
                told = f"{name}={shown(given)} and memory.{row.to}={shown(other)}: say two things "
                problems.append(Problem(name, f"{told}about one setting. Remove one of them"))
            made[row.to] = given
    # Mimose's scripts give static_checkpoint beside dynamic_checkpoint, as a kind of it.
    chosen = next((m for m in ("fixed", "static", "plan") if m in methods), None)
    method = made.get("method", "none")
    if chosen is not None and method == "none":
        made["method"] = chosen
    elif chosen is not None and method != chosen and (method, chosen) != ("static", "plan"):
        told = (
            f"{methods[chosen]} chooses memory.method={chosen}, and memory.method={method} is set"
        )
        problems.append(Problem(methods[chosen], f"{told}. Remove one"))
    if problems:
        raise SettingsErrors(problems)
    return made
