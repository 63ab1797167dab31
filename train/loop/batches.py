"""Micro-batches as the Trainer gets them: one item per optimizer update."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from train.data.mixing import MicroBatch, Stream, Update, total_updates, updates
from train.data.rows import Rows
from train.model.family import Meeting


@dataclass(frozen=True)
class Training:
    """One of the tasks that are trained together, and how much of it an update takes."""

    task: Meeting
    rows: Rows
    micro_batch_size: int
    update_freq: tuple[int, ...]
    seed: int

    def example(self, epoch: int, i: int, training: bool = True) -> Any:
        """A row of an epoch, from 0, as the model reads it; alike in every process that draws it."""
        where = f"task {self.task.plan.name}, training row {i + 1}"
        rng = np.random.default_rng([self.seed, epoch, i])
        return self.task.example(self.rows.train(epoch)[i], rng, training, where)

    def order(self, epoch: int) -> list[int]:
        """Row indices in the order of an epoch, from 0; the same in every process."""
        n = len(self.rows.train(epoch))
        if not self.task.plan.task.dataset.shuffle:
            return list(range(n))
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order: list[int] = torch.randperm(n, generator=generator).tolist()
        return order


class Updates(torch.utils.data.IterableDataset[list[dict[str, Any]]]):
    """The updates of a training in order, each a list of own micro-batches (possibly empty ones)."""

    def __init__(
        self,
        tasks: Sequence[Training],
        rank: int,
        world: int,
        epochs: float,
        limit: int,
        replayed: Sequence[Training] = (),
    ) -> None:
        """`limit`: updates, 0 or less for no limit; with several tasks it alone ends the training.

        replayed: earlier tasks, with the rows of them that are kept.
        """
        self.tasks = [*tasks, *replayed]
        self.streams, self.memories = (
            [Stream(cache(t.order), t.micro_batch_size, t.update_freq) for t in some]
            for some in (tasks, replayed)
        )
        self.rank, self.world = rank, world
        self.total = total_updates(
            self.streams, lambda e: len(tasks[0].rows.train(e)), world, epochs, limit
        )
        self.single = len(tasks) == 1

    def __len__(self) -> int:
        return self.total

    def plan(self) -> Iterator[Update]:
        return updates(self.streams, self.rank, self.world, self.total, self.memories)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for update in itertools.islice(self.plan(), first, None, step):
            yield [self._batch(part) for part in update.micro_batches]

    def _batch(self, part: MicroBatch) -> dict[str, Any]:
        training = self.tasks[part.task]
        examples = [training.example(part.epoch, i) for i in part.rows]
        return {"task": part.task, "batch": training.task.batch(examples) if examples else {}}


def ends_of_epochs(updates: Updates) -> dict[int, int]:
    """Number of the update, from 1 -> epoch of the only task, from 1, that ends with it."""
    if not updates.single:
        return {}
    ends = enumerate((u.ends_epoch for u in updates.plan()), start=1)
    return {step: epoch for step, epoch in ends if epoch is not None}
