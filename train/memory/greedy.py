"""The planner of Mimose's public code, for comparison (arXiv 2209.02478)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROUNDING = 5  # sizes are rounded up to a multiple of it
ALIKE = 0.9  # blocks of one bucket have at least this share of its largest


def bucket_greedy(block_bytes: Sequence[float], need: float) -> list[int]:
    """Indices of blocks to recompute, in the order they are picked, until `need` bytes are saved.

    From the end of the buckets, the first block that covers the need is taken, else the very last.
    """
    order: list[int] = []
    bucket: list[int] = []
    for i in sorted(range(len(block_bytes)), key=lambda i: (-block_bytes[i], i)):
        if bucket and block_bytes[i] < ALIKE * block_bytes[bucket[0]]:
            order += sorted(bucket, reverse=True)
            bucket = []
        bucket.append(i)
    order += sorted(bucket, reverse=True)
    picked: list[int] = []
    while need > 0 and order:
        covering = (i for i in reversed(order) if block_bytes[i] >= need)
        chosen = next(covering, order[-1])
        order.remove(chosen)
        picked.append(chosen)
        need -= block_bytes[chosen]
    return picked


def rounded_up(size: int) -> int:
    """`size` as its plans are cached."""
    return -(-size // ROUNDING) * ROUNDING


def quadratic(sizes: Sequence[float], measured: Sequence[float]) -> tuple[float, float, float]:
    """Coefficients of bytes over size, highest degree first, by least squares."""
    second, first, constant = np.polyfit(sizes, measured, 2).tolist()
    return second, first, constant
