"""Peaks of a GPU's memory."""

from __future__ import annotations

from typing import Protocol

import torch


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
