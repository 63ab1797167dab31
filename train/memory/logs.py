"""What was measured in a training, from its records or from the log of a script of Mimose's."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from train.memory.records import MODEL, RECORDS, Record, Records

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
SWITCHES = {  # Mimose's; the first one that is on says the method
    "prev_checkpoint": "PC",
    "static_checkpoint": "DCS",
    "dynamic_checkpoint": "DC",
    "gradient_checkpointing": "GC",
}
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
    method, mib, margin = memory.get("method"), memory.get("budget_mib"), model.get("margin_bytes")
    return replace(
        found,
        seconds=results.get("seconds_train", found.seconds),
        method=METHODS.get(method, method),
        budget_gib=memory.get("budget_gib") if mib is None else mib / 1024,
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
    records: list[Record] = []
    whole = Records(Path(), writes=False)
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            records.append(Record.of_json(line))
            whole.add(records[-1])
        except (ValueError, TypeError) as error:
            raise LogError(_broken(name, number, line)) from error
    collected = [one for one in records if one.phase == "collect"]
    return Measured(
        shape_count=dict(Counter(whole.order)),
        memory_count=_lists(whole.peaks),
        shape_order=tuple(whole.order),
        strategy={size: tuple(blocks) for size, blocks in whole.plans.items()},
        max_memory_used=whole.reserved,
        recomputed=tuple(len(one.blocks) for one in records),
        blocks=len(collected[-1].blocks) + 1 if collected else None,  # all but the probe
        predictions=tuple(
            (one.predicted_bytes, one.peak_allocated_bytes)
            for one in records
            if one.predicted_bytes is not None
        ),
        partly=tuple(len(one.selective) for one in records),
        collected=len(collected),
    )


def from_log(text: str, name: str) -> Measured:
    """A log kept by `tee`, with the lines that a script of Mimose's ends with behind any prefix.

    Later lines win. The training's time is that of the last full progress bar with as many steps as
    were measured, or of the last at all.
    """
    found: dict[str, Any] = {}
    overheads: dict[str, Any] = {}
    bars: list[tuple[int, float]] = []
    chosen: dict[str, Any] = {}
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
    full = [seconds for steps, seconds in bars if steps == len(order)] or [s for _, s in bars]
    return Measured(
        shape_count=found.get("shape_count") or {size: len(own) for size, own in memory.items()},
        memory_count=memory,
        shape_order=order,
        strategy=found.get("strategy"),
        max_memory_used=found.get("max_memory_used"),
        seconds=full[-1] if full else overheads.get("training time"),
        recomputed=tuple(len(strategy[size]) for size in order if size in strategy),
        overheads=overheads or None,
        **chosen,
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


def _chosen(command: str) -> dict[str, Any]:
    """Method, budget and margin of a command line of Mimose's scripts."""
    given = dict(OPTION.findall(command))
    numbers = {"budget_gib": "memory_threshold", "margin_gib": "memory_buffer"}
    found = {key: float(given[name]) for key, name in numbers.items() if given.get(name)}
    switched = (
        method
        for name, method in SWITCHES.items()
        if name in given and given[name].lower() not in ("false", "0")
    )
    return {"method": next(switched, "None"), **found}


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
