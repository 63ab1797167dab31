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
from dataclasses import dataclass, replace

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
    streams: Sequence[Stream], rank: int, world: int, limit: int, memories: Sequence[Stream] = ()
) -> Iterator[Update]:
    """The first `limit` updates of a training.

    A single task's epoch ends with an update of whatever is left; of several, each starts its own
    epochs anew wherever it is. memories: rows to replay, by task, which take turns; their numbers as
    tasks follow those of `streams`.
    """
    feeds = [_endless(task, one, world) for task, one in enumerate((*streams, *memories))]
    turns = itertools.cycle(feeds[len(streams) :])

    def replays(own: Sequence[MicroBatch]) -> list[MicroBatch]:
        return [_share(next(feed), rank, world) for feed in itertools.islice(turns, len(own))]

    if len(streams) > 1:
        for _ in range(limit):
            parts = []
            for stream, feed in zip(streams, feeds, strict=False):
                first = next(feed)
                more = itertools.islice(feed, stream.freq(first.epoch) - 1)
                parts += [_share(whole, rank, world) for whole in (first, *more)]
            yield Update((*parts, *replays(parts)), None)
        return
    [stream] = streams
    done = 0
    for epoch in itertools.count():
        batches, freq = stream.in_epoch(epoch, world), stream.freq(epoch)
        for start in range(0, len(batches), freq):
            if done == limit:
                return
            wholes = (MicroBatch(0, epoch, rows) for rows in batches[start : start + freq])
            part = [_share(whole, rank, world) for whole in wholes]
            done += 1
            ends = epoch + 1 if start + freq >= len(batches) else None
            yield Update((*part, *replays(part)), ends)


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
        batches = math.ceil(sizes(epoch) / (stream.micro_batch_size * world))
        n = math.ceil(batches / stream.freq(epoch))
        total += n if epoch < epochs - 1 or whole == epochs else math.ceil(n * (epochs - epoch))
    return total


def _endless(task: int, stream: Stream, world: int) -> Iterator[MicroBatch]:
    """The micro-batches of all epochs, over all processes."""
    for epoch in itertools.count():
        yield from (MicroBatch(task, epoch, rows) for rows in stream.in_epoch(epoch, world))


def _share(whole: MicroBatch, rank: int, world: int) -> MicroBatch:
    start, end = shard(len(whole.rows), rank, world)
    return replace(whole, rows=whole.rows[start:end])
