"""Jobs of many sizes on one device: whose turn it is, over random streams of jobs in no time."""

from __future__ import annotations

import random

import pytest

from autocl_sweeper.device.packing import Claim, refusal
from autocl_sweeper.device.pool import Grant
from autocl_sweeper.device.probe import Device
from autocl_sweeper.executor.waiting import MOST, PASSED, Waiting, WaitingRoom
from autocl_sweeper.types import Job, Need

TOTAL, FOREIGN = 1000, 60
ALONE = Grant((), {})


class Board:
    """One device and the claims on it; a job of unknown size has None."""

    def __init__(self, sizes: list[int | None], chance: random.Random, limit: int | None) -> None:
        self.sizes, self.chance, self.limit = sizes, chance, limit
        self.room = WaitingRoom()
        self.running: dict[int, Claim] = {}
        self.started: list[int] = []
        self.came: dict[int, int] = {}  # job that had to wait -> how many had started by then

    def fits(self, number: int) -> bool:
        # What they use so far is less than they reserve: half of them load.
        used = {100 * job: (claim.reserved_mib or 0) // 2 for job, claim in self.running.items()}
        device = Device("GPU-0", "Fake", TOTAL, TOTAL - FOREIGN - sum(used.values()), used)
        said = refusal(device, [*self.running.values()], self.claim(number), 0.5,
                       related=lambda pid: [pid // 100])  # fmt: skip
        return not said

    def claim(self, number: int) -> Claim:
        size = self.sizes[number]
        return Claim(1, "ours", 0.0, number, self.limit, size, like=str(size), unknown=size is None)

    def run(self, number: int) -> None:
        self.running[number] = self.claim(number)
        self.started.append(number)

    def end_one(self) -> None:
        del self.running[self.chance.choice([*self.running])]

    def serve(self) -> bool:
        return self.room.serve(
            lambda one: ALONE if self.fits(one.job.number) else None,
            lambda one, grant: self.run(one.job.number),
        )

    def submit(self, number: int) -> None:
        if self.fits(number):
            self.run(number)
            self.room.pass_all()
        else:
            self.came[number] = len(self.started)
            self.room.append(Waiting(Job(number, ()), Need(), alone=False))

    def check(self) -> None:
        claims = [*self.running.values()]
        if len(claims) > 1:
            known = [claim.reserved_mib for claim in claims if claim.reserved_mib is not None]
            assert len(known) == len(claims), "a job of unknown size is beside another"
            assert sum(known) + FOREIGN <= TOTAL
        assert self.limit is None or len(claims) <= self.limit
        assert len(self.room) <= MOST


@pytest.mark.parametrize("limit", [None, 3])
def test_reservations_never_exceed_the_device_and_no_job_is_passed_by_more_than_three(
    limit: int | None,
) -> None:
    for seed in range(1000):
        chance = random.Random(seed)
        sizes = [
            chance.choice([None, 50, 120, 300, 500, 900]) for _ in range(chance.randint(1, 14))
        ]
        board = Board(sizes, chance, limit)
        numbers = iter(range(len(sizes)))
        coming = next(numbers, None)
        while len(board.started) < len(sizes) or board.running:
            while coming is not None and board.serve() and chance.random() < 0.8:
                board.submit(coming)
                board.check()
                coming = next(numbers, None)
            if coming is None:
                board.serve()
            board.check()
            if board.running:
                board.end_one()
        assert sorted(board.started) == [*range(len(sizes))], "each of them ran once"
        for number, before in board.came.items():
            later = [n for n in board.started[before : board.started.index(number)] if n > number]
            assert len(later) <= PASSED, (seed, number)


def test_a_job_that_has_to_be_alone_lets_no_other_start_before_it() -> None:
    room = WaitingRoom()
    room.append(Waiting(Job(1, ()), Need(), alone=True))
    room.append(Waiting(Job(2, ()), Need(), alone=False))
    ran: list[int] = []
    assert not room.serve(lambda one: ALONE if one.job.number == 2 else None,
                          lambda one, grant: ran.append(one.job.number))  # fmt: skip
    assert ran == [] and len(room) == 2
    assert room.serve(lambda one: ALONE, lambda one, grant: ran.append(one.job.number))
    assert ran == [1, 2] and len(room) == 0
