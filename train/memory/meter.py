"""Peaks of a device's memory."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile, record_function

log = logging.getLogger(__name__)

MARK = "the next part of the step begins"  # event in a profile


class Meter(Protocol):
    """Measures the memory of a device from a start to a reading."""

    def start(self) -> float:
        """Forget the peak so far; bytes allocated now."""

    def mark(self) -> None:
        """A part of the step is over, and the next one begins."""

    def read(self) -> tuple[float, float]:
        """Peaks since the start: bytes allocated and bytes reserved."""

    @property
    def parts(self) -> Sequence[float]:
        """Allocated bytes at the peak of each part, as it was last read: one more than marks."""


class GpuMeter:
    """torch's own count of this process's GPU."""

    def __init__(self) -> None:
        self.most = (0.0, 0.0)  # of what was forgotten
        self.over: list[tuple[float, float]] = []  # of parts of the step
        self.parts: Sequence[float] = ()

    def start(self) -> float:
        self.most = self.whole()
        self.over = []
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())

    def mark(self) -> None:
        self.over.append(_gpu_peaks())
        torch.cuda.reset_peak_memory_stats()

    def read(self) -> tuple[float, float]:
        found = [*self.over, _gpu_peaks()]
        self.parts = [allocated for allocated, _ in found]
        return max(self.parts), max(reserved for _, reserved in found)

    def whole(self) -> tuple[float, float]:
        """The peaks of the whole job so far."""
        found = [self.most, *self.over, _gpu_peaks()]
        return max(one[0] for one in found), max(one[1] for one in found)


class CpuMeter:
    """What torch's profiler sees allocated and freed, from 0 on. Slow: for a few steps."""

    def __init__(self) -> None:
        self.running: Any = None
        self.parts: Sequence[float] = ()

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
        self.parts = _peaks(moves, [e["ts"] for e in events if e.get("name") == MARK])
        return max(self.parts), max(self.parts)


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


def _gpu_peaks() -> tuple[float, float]:
    return float(torch.cuda.max_memory_allocated()), float(torch.cuda.max_memory_reserved())


def _peaks(moves: Iterable[tuple[float, float]], marks: Iterable[float]) -> list[float]:
    """The largest sum of moves, as they happened, in each part between marks.

    moves: when, and bytes. marks: when.
    """
    now, peaks, ends = 0.0, [0.0], [*sorted(marks), math.inf]
    for when, moved in sorted(moves, key=lambda one: one[0]):
        while when > ends[len(peaks) - 1]:
            peaks.append(now)
        now += moved
        peaks[-1] = max(peaks[-1], now)
    return peaks + [now] * (len(ends) - len(peaks))


def meter_of(device: torch.device) -> Meter:
    return GpuMeter() if device.type == "cuda" else CpuMeter()
