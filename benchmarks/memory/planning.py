"""The planner alone, over an epoch of batches like SWAG's with the blocks of bert-base: what a plan takes."""

from __future__ import annotations

import gc
import time
from statistics import mean, median

from benchmarks.memory.families import BLOCKS, FAMILIES, lengths
from train.memory.features import Shape
from train.memory.planner import Collected, Planner

WIDTH, HEADS = 768, 12  # of bert-base
GIB = 2.0**30
EPOCH = 4597  # batches: 73,546 rows of SWAG by 16
STEP_S = 3779 / (3 * EPOCH)  # of the published training without recomputation, on a V100
STATIC = 110e6 * 16  # bytes: parameters, gradients, AdamW in fp32
COLLECT = 8


def kept(rows: int, length: int) -> float:
    """Bytes of a block in fp32 with eager attention on a GPU, where a mask's element has one byte."""
    return rows * (9.0 * HEADS * length**2 + 66.0 * WIDTH * length + 16.0 * length)


def planning(budget_gib: float = 6.0) -> str:
    """Microseconds of the processor's time for plans that are cached, and for others."""
    family = FAMILIES["multiple-choice"]
    sizes = lengths(family, EPOCH)
    planner = Planner([0] * BLOCKS, budget_gib * GIB, None, COLLECT)
    for length in sizes[:COLLECT]:
        whole = kept(family.rows, length)
        stash = 4.0 * family.rows * length * WIDTH
        mask = 4.0 * family.rows * length**2
        backward = [(i + 3) * stash + whole + mask for i in range(BLOCKS)]
        held = dict.fromkeys(range(BLOCKS), stash)
        head = BLOCKS * stash + whole + mask
        planner.collect(
            Shape(family.rows, length).features(),
            Collected(
                BLOCKS - 1, whole, held, whole, mask, backward[-1], head, backward, 3 * stash
            ),
        )
    took: dict[bool, list[float]] = {True: [], False: []}
    gc.collect()
    for length in sizes[COLLECT:]:
        began = time.thread_time()
        choice = planner.plan(Shape(family.rows, length).features(), length, STATIC)
        took[choice.cached].append(1e6 * (time.thread_time() - began))
    average = mean(took[True] + took[False])
    return (
        f"{len(sizes) - COLLECT} batches, {len(took[False])} sizes: a cached plan takes "
        f"{median(took[True]):.1f} us, another {median(took[False]):.0f} us (median; the slowest "
        f"{max(took[False]):.0f} us), {average:.1f} us on average: {1e-4 * average / STEP_S:.4f} % of the "
        f"{1000 * STEP_S:.0f} ms that a step took in the published training"
    )
