"""A fixed load: products of matrices. `python -m benchmarks.memory.load` prints a step's median in ms."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

STEPS = 300


def fixed_load(on_gpu: bool) -> Callable[[], float]:
    """One step of the load: runs it and gives its seconds."""
    import torch

    size = 8192 if on_gpu else 256
    one = torch.ones(size, size, device="cuda" if on_gpu else "cpu")

    def step() -> float:
        began = time.perf_counter()
        float((one @ one)[0, 0])  # waits for the device
        return time.perf_counter() - began

    return step


if __name__ == "__main__":
    import torch

    step = fixed_load(torch.cuda.is_available())
    print(1000 * median(step() for _ in range(STEPS)))
