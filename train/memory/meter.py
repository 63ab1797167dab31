"""Peaks of a device's memory."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile


class Meter(Protocol):
    """Measures the memory of a device from a start to a reading."""

    def start(self) -> float:
        """Forget the peak so far; bytes allocated now."""

    def read(self) -> tuple[float, float]:
        """Peaks since the start: bytes allocated and bytes reserved."""


class GpuMeter:
    """torch's own count of this process's GPU."""

    def start(self) -> float:
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())

    def read(self) -> tuple[float, float]:
        return float(torch.cuda.max_memory_allocated()), float(torch.cuda.max_memory_reserved())


class CpuMeter:
    """What torch's profiler sees allocated and freed, from 0 on. Slow: for a few steps."""

    def __init__(self) -> None:
        self.running: Any = None

    def start(self) -> float:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints two lines for each step
        self.running = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.running.__enter__()
        return 0.0

    def read(self) -> tuple[float, float]:
        self.running.__exit__(None, None, None)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self.running.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        moves = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
        now = peak = 0
        for _, moved in sorted(moves, key=lambda one: one[0]):  # as they happened
            now += moved
            peak = max(peak, now)
        return float(peak), float(peak)


def meter_of(device: torch.device) -> Meter:
    return GpuMeter() if device.type == "cuda" else CpuMeter()
