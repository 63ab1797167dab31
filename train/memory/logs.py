"""What was measured in a training, from its records or from the log of a script of Mimose's."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from train.memory.records import MODEL, RECORDS

RESULTS = "all_results.json"
METHODS = {"none": "None", "gc": "GC", "plan": "DC", "static": "DCS", "fixed": "PC"}  # Mimose's


class LogError(ValueError):
    """A log or a file of records that cannot be read; the message names the line."""


@dataclass(frozen=True)
class Measured:
    """The last training in a log. What is not in it is empty or None."""

    shape_count: Mapping[int, int]  # size -> micro-batches
    memory_count: Mapping[int, tuple[float, ...]]  # size -> peak allocated bytes of each
    shape_order: tuple[int, ...] = ()
    strategy: Mapping[int, tuple[int, ...]] | None = None  # size -> recomputed blocks
    max_memory_used: float | None = None  # peak reserved bytes
    seconds: float | None = None  # of the training
    method: str | None = None  # of the command line: None, GC, DC, DCS or PC
    budget_gib: float | None = None
    margin_gib: float | None = None  # of the budget, left free by plans
    overheads: Mapping[str, Any] | None = None  # detection: seconds of collector and estimator
    recomputed: tuple[int, ...] = ()  # blocks, of each micro-batch
    blocks: int | None = None  # of the model
    predictions: tuple[tuple[float, float], ...] = ()  # predicted and measured peak, bytes
    partly: tuple[int, ...] = ()  # blocks recomputed in part, of each micro-batch
    collected: int = 0  # first micro-batches, which ran before there was a plan


NAMES = (
    *("shape_count", "memory_count", "shape_order", "strategy", "max_memory_used", "shape_memory"),
    *("collector_overhead", "estimator_overhead", "training time"),
)
LINE = re.compile(rf"(?<!\w)({'|'.join(NAMES)})(_\w+)?\s*[=:]\s*(\S.*)$")
# 100%|####| 640/640 [1:02:59<00:00, 5.9s/it]
BAR = re.compile(r"100%\|[^|]*\|\s*(\d+)/\d+\s*\[(?:(\d+):)?(\d+):(\d+)<")
OPTION = re.compile(r"--(\w+)(?:[= ]([^\s-]\S*))?")


def read(path: Path) -> Measured:
    """The training of a job folder, a file of records or a log. Raises LogError."""
    file = path / RECORDS if path.is_dir() else path
    if path.is_dir() and not file.exists() and (path / RESULTS).exists():
        return _of_job(Measured({}, {}), path)  # its method records nothing
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise LogError(
            f"{path}: {error.strerror}. Give a job folder with {RECORDS}, or a log"
        ) from error
    if file.suffix != ".jsonl":
        return from_log(text, str(file))
    return _of_job(from_records(text, str(file)), file.parent)


def _of_job(found: Measured, folder: Path) -> Measured:
    """With what else the folder of a job says: method, budget, margin, blocks, seconds of training."""
    memory = _loaded(folder / ".hydra" / "resolved.yaml").get("memory", {})
    model, results = _loaded(folder / MODEL), _loaded(folder / RESULTS)
    budget = memory.get("budget_gib")
    if memory.get("budget_mib") is not None:
        budget = memory["budget_mib"] / 1024
    margin = model.get("margin_bytes")
    method = memory.get("method")
    return replace(
        found,
        seconds=results.get("seconds_train", found.seconds),
        method=METHODS.get(method, method),
        budget_gib=budget,
        margin_gib=None if margin is None else margin / 2**30,
        blocks=len(model["kinds"]) if "kinds" in model else found.blocks,
    )


def _loaded(path: Path) -> Mapping[str, Any]:
    """A mapping in YAML or JSON; empty where the file is missing. Raises LogError."""
    if not path.exists():
        return {}
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValueError, TypeError) as error:
        raise LogError(f"{path}: cannot be read: {error}. Remove it, or give the log") from error


def from_records(text: str, name: str) -> Measured:
    """Records as a job writes them. They do not hold the time of the whole training."""
    peaks: dict[int, list[float]] = {}
    order: list[int] = []
    strategy: dict[int, tuple[int, ...]] = {}
    reserved, collected = 0.0, 0
    recomputed: list[int] = []
    partly: list[int] = []
    predictions: list[tuple[float, float]] = []
    blocks: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            one = json.loads(line)
            size = int(one["size"])
            peaks.setdefault(size, []).append(float(one["peak_allocated_bytes"]))
            reserved = max(reserved, float(one["peak_reserved_bytes"]))
            recomputed.append(len(one["blocks"]))
            partly.append(len(one.get("selective", ())))
            if one["phase"] != "collect":
                strategy[size] = tuple(one["blocks"])
            if one["phase"] == "plan":
                pair = (float(one["predicted_bytes"]), float(one["peak_allocated_bytes"]))
                predictions.append(pair)
            if one["phase"] == "collect":
                blocks = len(one["blocks"]) + 1  # all but the probe
                collected += 1
        except (ValueError, KeyError, TypeError) as error:
            raise LogError(_broken(name, number, line)) from error
        order.append(size)
    count = dict(Counter(order))
    measured = {size: tuple(own) for size, own in peaks.items()}
    return Measured(
        *(count, measured, tuple(order), strategy, reserved),
        recomputed=tuple(recomputed),
        blocks=blocks,
        predictions=tuple(predictions),
        partly=tuple(partly),
        collected=collected,
    )


def from_log(text: str, name: str) -> Measured:
    """A log kept by `tee`, with the lines that a script of Mimose's ends with behind any prefix.

    Later lines win. The training's time is that of the last full progress bar with as many steps as
    were measured, or of the last at all.
    """
    found: dict[str, Any] = {}
    overheads: dict[str, Any] = {}
    bars: list[tuple[int, float]] = []
    chosen: tuple[str | None, float | None, float | None] = (None, None, None)
    for number, line in _lines(text):
        if bar := BAR.search(line):
            steps, hours, minutes, seconds = (int(group or 0) for group in bar.groups())
            bars.append((steps, float(hours * 3600 + minutes * 60 + seconds)))
        if ".py" in line and "--" in line:
            chosen = _chosen(line)
        match = LINE.search(line)
        if match is None:
            continue
        key, more, value = match.groups()
        try:
            if more or key.endswith(("overhead", "time")):
                overheads[key + (more or "")] = ast.literal_eval(value)
            else:
                found[key] = _VALUES[key](ast.literal_eval(value))
        except (ValueError, SyntaxError, TypeError, AttributeError) as error:
            raise LogError(_broken(name, number, line)) from error
    if not found and not overheads:
        raise LogError(
            f"{name}: holds none of the lines {', '.join(NAMES)}. Give the whole log of a training that"
            " ended, or the folder of a job of ours"
        )
    memory = found.get("memory_count") or found.get("shape_memory") or {}
    order = found.get("shape_order", ())
    strategy = found.get("strategy") or {}
    count = found.get("shape_count") or {size: len(own) for size, own in memory.items()}
    own = [seconds for steps, seconds in bars if steps == len(order)]
    made = Measured(count, memory, order, found.get("strategy"), found.get("max_memory_used"))
    return replace(
        made,
        seconds=own[-1] if own else (bars[-1][1] if bars else overheads.get("training time")),
        method=chosen[0],
        budget_gib=chosen[1],
        margin_gib=chosen[2],
        recomputed=tuple(len(strategy[size]) for size in order if size in strategy),
        overheads=overheads or None,
    )


def _counts(value: Any) -> dict[int, int]:
    return {int(size): int(n) for size, n in value.items()}


def _lists(value: Any) -> dict[int, tuple[float, ...]]:
    return {int(size): tuple(map(float, own)) for size, own in value.items()}


_VALUES: Mapping[str, Any] = {
    "shape_count": _counts,
    "memory_count": _lists,
    "shape_memory": _lists,
    "shape_order": lambda value: tuple(int(size) for size in value),
    "strategy": lambda value: {int(size): tuple(blocks) for size, blocks in value.items()},
    "max_memory_used": float,
}


def _chosen(command: str) -> tuple[str, float | None, float | None]:
    """Method, budget and margin of a command line of Mimose's scripts."""
    given = dict(OPTION.findall(command))
    budget, margin = (
        float(given[name]) if given.get(name) else None
        for name in ("memory_threshold", "memory_buffer")
    )
    for name, method in (
        ("prev_checkpoint", "PC"),
        ("static_checkpoint", "DCS"),
        ("dynamic_checkpoint", "DC"),
        ("gradient_checkpointing", "GC"),
    ):
        if name in given and given[name].lower() not in ("false", "0"):
            return method, budget, margin
    return "None", budget, margin


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; what a progress bar wrote over is a line of its own."""
    for number, line in enumerate(text.split("\n"), start=1):
        for part in line.split("\r"):
            yield number, part


def _broken(name: str, number: int, line: str) -> str:
    shown = line if len(line) <= 80 else line[:77] + "..."
    return (
        f"{name}:{number}: cannot be read, it is cut off or damaged: {shown}\n  Measure again, or remove "
        "the line if the rest suffices"
    )
