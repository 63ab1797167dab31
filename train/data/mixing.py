"""The order of rows: which of them a process sees in which update, of one task or several.

An update visits all tasks in order; of each it takes `update_freq` micro-batches. A task's rows pass
in epochs of their own, each in a new order, and a task weighs as much as it brings to an update: there
is no other ratio between tasks. The order depends on seed and epoch alone. Every process knows it whole
and takes its contiguous share of every micro-batch, so as many processes as one likes see, together, the
rows that one process would see. Replayed rows of earlier tasks come in micro-batches of
their own, one for each of an update's others. Standard library only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from train.data.specs import shard


@dataclass(frozen=True)
class MicroBatch:
    """The share of one process in one micro-batch of a task."""

    task: int
    epoch: int  # of the task, from 0
    rows: tuple[int, ...]  # indices into the rows of this epoch, may be empty


@dataclass(frozen=True)
class Stream:
    """The rows of one task as training goes through them, epoch after epoch."""

    order: Callable[[int], Sequence[int]]  # epoch, from 0 -> row indices in the order to visit them
    micro_batch_size: int  # rows per process
    update_freq: tuple[int, ...]  # micro-batches per update, by epoch; the last one stays

    def in_epoch(self, epoch: int, world: int) -> list[tuple[int, ...]]:
        """The micro-batches of an epoch, over all processes; the last one may be short."""
        order = tuple(self.order(epoch))
        size = self.micro_batch_size * world
        return [order[start : start + size] for start in range(0, len(order), size)]

    def freq(self, epoch: int) -> int:
        return self.update_freq[min(epoch, len(self.update_freq) - 1)]


@dataclass(frozen=True)
class Update:
    """One optimizer update. `ends_epoch`: the last one of an epoch of the only task, from 1."""

    micro_batches: tuple[MicroBatch, ...]
    ends_epoch: int | None


def updates(
    streams: Sequence[Stream],
    rank: int,
    world: int,
    epochs: int | None,
    limit: int | None,
    memories: Sequence[Stream] = (),
) -> Iterator[Update]:
    """The updates of a training, until `epochs` of a single task or `limit` updates are over.

    A single task's epoch ends with an update of whatever is left; of several, each starts its own
    epochs anew wherever it is. memories: rows to replay, by task, which take turns; their numbers as
    tasks follow those of `streams`.
    """
    feeds_of_memories = itertools.cycle(
        [
            zip(itertools.repeat(task), _endless(memory, world), strict=False)
            for task, memory in enumerate(memories, start=len(streams))
        ]
    )

    def replays(own: Sequence[MicroBatch]) -> list[MicroBatch]:
        some = map(next, itertools.islice(feeds_of_memories, len(own)))
        return [_share(task, *rows, rank, world) for task, rows in some]

    if len(streams) > 1:
        assert limit is not None, "several tasks share no epoch: only a number of updates ends them"
        feeds = [_endless(stream, world) for stream in streams]
        for _ in range(limit):
            parts = []
            for task, (stream, feed) in enumerate(zip(streams, feeds, strict=True)):
                epoch, rows = next(feed)
                parts.append(_share(task, epoch, rows, rank, world))
                for _ in range(stream.freq(epoch) - 1):
                    parts.append(_share(task, *next(feed), rank, world))
            yield Update((*parts, *replays(parts)), None)
        return
    [stream] = streams
    done, epoch = 0, 0
    while epochs is None or epoch < epochs:
        batches, freq = stream.in_epoch(epoch, world), stream.freq(epoch)
        for start in range(0, len(batches), freq):
            if done == limit:
                return
            part = [_share(0, epoch, rows, rank, world) for rows in batches[start : start + freq]]
            done += 1
            ends = epoch + 1 if start + freq >= len(batches) else None
            yield Update((*part, *replays(part)), ends)
        epoch += 1


def total_updates(
    streams: Sequence[Stream], sizes: Callable[[int], int], world: int, epochs: float, limit: int
) -> int:
    """The real number of updates. `sizes`: rows by epoch.

    A `limit` above 0 counts instead of the epochs, as transformers' max_steps does.
    """
    assert limit > 0 or len(streams) == 1, "several tasks share no epoch"
    if limit > 0:
        return limit
    [stream] = streams
    total, whole = 0, math.ceil(epochs)
    for epoch in range(whole):
        n = math.ceil(
            math.ceil(sizes(epoch) / (stream.micro_batch_size * world)) / stream.freq(epoch)
        )
        total += n if epoch < epochs - 1 or whole == epochs else math.ceil(n * (epochs - epoch))
    return total


def _endless(stream: Stream, world: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    epoch = 0
    while True:
        for rows in stream.in_epoch(epoch, world):
            yield epoch, rows
        epoch += 1


def _share(task: int, epoch: int, rows: tuple[int, ...], rank: int, world: int) -> MicroBatch:
    start, end = shard(len(rows), rank, world)
    return MicroBatch(task, epoch, rows[start:end])
