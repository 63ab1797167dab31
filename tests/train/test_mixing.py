"""Which rows are seen in which update: one task, several, in one process or more."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.mixing import Stream, total_updates, updates


def stream(rows: int, size: int, *freq: int) -> Stream:
    """Rows 0, 1, 2, ... in the first epoch, 100, 101, ... in the second, and so on."""
    return Stream(lambda epoch: range(100 * epoch, 100 * epoch + rows), size, freq or (1,))


def seen(
    streams: list[Stream], limit: int, rank: int = 0, world: int = 1
) -> list[list[tuple[int, ...]]]:
    made = updates(streams, rank, world, limit)
    return [[part.rows for part in update.micro_batches] for update in made]


def test_an_epoch_of_a_single_task_ends_with_an_update_of_whatever_is_left() -> None:
    assert seen([stream(5, 2, 2)], 4) == [
        [(0, 1), (2, 3)],
        [(4,)],
        [(100, 101), (102, 103)],
        [(104,)],
    ]


def test_update_freq_may_change_by_epoch_and_the_last_one_stays() -> None:
    sizes = [len(update) for update in seen([stream(4, 1, 4, 2, 1)], 11)]
    assert sizes == [4, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]


def test_every_update_visits_all_tasks_in_order_and_each_begins_its_epochs_anew() -> None:
    assert seen([stream(3, 2), stream(2, 1, 3)], 3) == [
        [(0, 1), (0,), (1,), (100,)],
        [(2,), (101,), (200,), (201,)],
        [(100, 101), (300,), (301,), (400,)],
    ]


def test_every_own_micro_batch_brings_one_of_the_earlier_tasks_which_take_turns() -> None:
    memories = [stream(2, 2), stream(3, 2)]
    made = updates([stream(5, 2, 2)], 0, 1, 2, memories)
    parts = [[(part.task, part.rows) for part in update.micro_batches] for update in made]
    assert parts == [
        [(0, (0, 1)), (0, (2, 3)), (1, (0, 1)), (2, (0, 1))],
        [(0, (4,)), (1, (100, 101))],
    ]
    several = updates([stream(2, 1), stream(2, 1)], 0, 1, 2, memories)
    assert [[part.task for part in update.micro_batches] for update in several] == [
        [0, 1, 2, 3]
    ] * 2


def test_the_end_of_an_epoch_is_told_for_a_single_task_only() -> None:
    alone = updates([stream(5, 2, 2)], 0, 1, 4)
    assert [update.ends_epoch for update in alone] == [None, 1, None, 2]
    together = updates([stream(2, 2), stream(2, 2)], 0, 1, 3)
    assert [update.ends_epoch for update in together] == [None] * 3


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3
    ),
    st.integers(1, 4),
)
def test_processes_together_see_the_rows_that_one_process_would_see(
    tasks: list[tuple[int, int, int]], world: int
) -> None:
    apart = [stream(rows, size, freq) for rows, size, freq in tasks]
    at_once = [stream(rows, size * world, freq) for rows, size, freq in tasks]
    shares = [seen(apart, 4, rank, world) for rank in range(world)]
    for whole, *parts in zip(seen(at_once, 4), *shares, strict=True):
        for micro, *own in zip(whole, *parts, strict=True):
            assert micro == tuple(itertools.chain(*own))


@pytest.mark.parametrize(
    ("streams", "world", "epochs", "limit", "total"),
    [
        ([stream(10, 4)], 1, 3, -1, 9),
        ([stream(10, 4, 2)], 1, 3, -1, 6),
        ([stream(10, 4, 2, 1)], 1, 3, -1, 2 + 3 + 3),
        ([stream(10, 4)], 2, 3, -1, 6),
        ([stream(10, 4)], 1, 3, 7, 7),
        ([stream(10, 4)], 1, 3, 20, 20),
        ([stream(10, 4)], 1, 0.5, -1, 2),
        ([stream(10, 4), stream(10, 4)], 1, 3, 7, 7),
    ],
)
def test_the_number_of_updates_is_known_before(
    streams: list[Stream], world: int, epochs: float, limit: int, total: int
) -> None:
    assert total_updates(streams, lambda epoch: 10, world, epochs, limit) == total
    assert len(seen(streams, total, world=world)) == total
