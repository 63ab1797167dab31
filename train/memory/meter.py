"""Peaks of a device's memory."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile, record_function

log = logging.getLogger(__name__)

MARK = "the head is through"  # event in a profile


class Meter(Protocol):
    """Measures the memory of a device from a start to a reading."""

    def start(self) -> float:
        """Forget the peak so far; bytes allocated now."""

    def mark(self) -> None:
        """The head of the model is through, in the middle of the step."""

    def read(self) -> tuple[float, float]:
        """Peaks since the start: bytes allocated and bytes reserved."""

    @property
    def marked(self) -> float | None:
        """The peak up to the mark, once the meter was read; None: there was none."""


class GpuMeter:
    """torch's own count of this process's GPU."""

    def __init__(self) -> None:
        self.marked: float | None = None
        self.most = (0.0, 0.0)  # of what was forgotten

    def start(self) -> float:
        self.most = self.whole()
        self.marked = None
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())

    def mark(self) -> None:
        self.marked = float(torch.cuda.max_memory_allocated())

    def read(self) -> tuple[float, float]:
        return float(torch.cuda.max_memory_allocated()), float(torch.cuda.max_memory_reserved())

    def whole(self) -> tuple[float, float]:
        """The peaks of the whole job so far."""
        allocated, reserved = self.read()
        return max(self.most[0], allocated), max(self.most[1], reserved)


class CpuMeter:
    """What torch's profiler sees allocated and freed, from 0 on. Slow: for a few steps."""

    def __init__(self) -> None:
        self.running: Any = None
        self.marked: float | None = None

    def start(self) -> float:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints two lines for each step
        self.running = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.running.__enter__()
        return 0.0

    def mark(self) -> None:
        with record_function(MARK):
            pass

    def read(self) -> tuple[float, float]:
        self.running.__exit__(None, None, None)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self.running.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        moves = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
        marks = [e["ts"] for e in events if e.get("name") == MARK]
        self.marked = _peak(m for m in moves if m[0] <= marks[0]) if marks else None
        peak = _peak(moves)
        return peak, peak


def used_bytes() -> float | None:
    """Bytes of this process on its GPU, context included, as NVML has them; None: it does not say."""
    import pynvml  # type: ignore[import-untyped, unused-ignore]

    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    except pynvml.NVMLError as error:
        log.info("memory of the context is not known: NVML says %s", error)
        return None
    own = [one.usedGpuMemory for one in running if one.pid == os.getpid()]
    return float(own[0]) if own and own[0] is not None else None


def _peak(moves: Iterable[tuple[float, float]]) -> float:
    """The largest sum of moves as they happened."""
    ordered = sorted(moves, key=lambda one: one[0])
    return float(max(accumulate(moved for _, moved in ordered), default=0))


def meter_of(device: torch.device) -> Meter:
    return GpuMeter() if device.type == "cuda" else CpuMeter()
