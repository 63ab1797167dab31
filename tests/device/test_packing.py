"""How jobs share a device: the arithmetic alone, held against oracles that count one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocl_sweeper.device.packing import Claim, balance, refusal, use_of
from autocl_sweeper.device.probe import Device

TOTAL = 1000


def device(
    free_mib: int | None, processes: Mapping[int, int | None] | None = None, total: int = TOTAL
) -> Device:
    return Device("GPU-a", "Fake", total if free_mib is not None else None, free_mib, processes)


def claim(
    job: int | None = None,
    reserved: int | None = None,
    limit: int | None = None,
    holder: str = "ours",
    declares: bool = False,
    base: int | None = 0,
    stage: int = 1,
) -> Claim:
    declared = reserved if declares else None
    return Claim(1, holder, 0.0, job, limit, reserved, declared, base, stage)


def family(pid: int) -> Sequence[int] | None:
    """Process 1234 belongs to job 12; what begins with 9 is hidden in another pid namespace."""
    return None if str(pid).startswith("9") else [pid, pid // 100]


def decide(board: Device, claims: Sequence[Claim], ours: Claim, free_memory: float = 0.5) -> str:
    return refusal(board, claims, ours, free_memory, related=family)


@pytest.mark.parametrize(
    ("board", "claims", "ours", "expected"),
    [
        # Loading: it uses 10 and counts as the 400 it reserved.
        (device(990, {1201: 10}), [claim(12, 400)], claim(reserved=600), ""),
        (device(990, {1201: 10}), [claim(12, 400)], claim(reserved=601), "has 600 of 1000"),
        # It uses more than it reserved: that counts.
        (device(500, {1201: 500}), [claim(12, 400)], claim(reserved=501), "has 500 of 1000"),
        # 100 that nobody of us has are foreign.
        (device(890, {1201: 10}), [claim(12, 400)], claim(reserved=501), "has 500 of 1000"),
        (device(890, {1201: 10}), [claim(12, 400)], claim(reserved=500), ""),
        # Two processes of one job, one of them in a session of its own.
        (device(400, {1201: 300, 1202: 300}), [claim(12, 400)], claim(reserved=401), "has 400"),
        # Nobody says whose memory it is: 100 were there before.
        (device(600, None), [claim(12, 200, base=100)], claim(reserved=600), ""),
        (device(600, None), [claim(12, 200, base=100)], claim(reserved=601), "has 600"),
        (device(600, None), [claim(12, 500, base=100)], claim(reserved=401), "has 400"),
        (device(600, {9001: None}), [claim(12, 500, base=100)], claim(reserved=400), ""),
        (device(600, {1201: None}), [claim(12, 500, base=100)], claim(reserved=401), "has 400"),
        # By number: the strictest decides, whoever it is.
        (device(990), [claim(12, limit=2)], claim(limit=4), ""),
        (device(990), [claim(12, limit=2), claim(13, limit=4)], claim(limit=4), "has 2 jobs"),
        (device(990), [claim(12, limit=4), claim(13, limit=4)], claim(limit=2), "has 2 jobs"),
        (device(990), [claim(12, limit=1)], claim(limit=4), "is leased by pid 1: ours (job 12)"),
        (device(990), [claim(12, limit=4)], claim(limit=1), "is leased by"),
        # A sweep that counts memory and one that does not keep apart, in either order.
        (device(990), [claim(12, 100, declares=True, holder="b")], claim(limit=3), "is shared by"),
        (device(990), [claim(12, limit=3, holder="b")], claim(reserved=9, declares=True), "is sha"),
        (device(990), [claim(12, limit=3)], claim(reserved=9, declares=True), ""),
        # One of our own that began before anything was measured counts as we do now.
        (device(990, {1201: 10}), [claim(12)], claim(reserved=500), ""),
        (device(990, {1201: 10}), [claim(12)], claim(reserved=501), "has 499"),
        (device(990, {1201: 10}), [claim(12, stage=2)], claim(reserved=501), ""),
        # Somebody who is no job of ours computes there.
        (device(900, {4401: 10}), [claim(12, 100)], claim(reserved=10), "is in use: 1 foreign"),
        (device(900, {9001: 10}), [], claim(reserved=10), "is in use: 1 foreign"),
        (device(499, {}), [], claim(reserved=10), "has only 49 %"),
        # A measured peak with its margin may exceed any device; what was declared may not.
        (device(990, {}), [], claim(reserved=1100), ""),
        (device(990, {}), [], claim(reserved=991, declares=True), "has 990 of 1000"),
        # Boards without a memory of their own: by number alone.
        (device(None), [claim(12, limit=2)], claim(limit=2), ""),
        (device(None), [claim(12)], claim(reserved=10), "does not tell its memory"),
    ],
)
def test_a_job_joins_only_where_it_fits(
    board: Device, claims: Sequence[Claim], ours: Claim, expected: str
) -> None:
    said = decide(board, claims, ours)
    assert said.startswith(expected) and bool(said) == bool(expected), said


def test_memory_that_is_kept_free_is_given_to_no_job() -> None:
    board, there = device(800, {1201: 100}), [claim(12, 300)]  # 100 are foreign: 600 are left
    assert refusal(board, there, claim(reserved=400), 0.8, family, keep_free_mib=200) == ""
    said = refusal(board, there, claim(reserved=400), 0.8, family, keep_free_mib=201)
    assert said.startswith("has 399 of 1000") and said.endswith("201 kept free)")


class Ledger:
    """A naive device: every MiB has an owner, written down one after the other."""

    def __init__(self, total: int) -> None:
        self.cells: list[str | None] = [None] * total

    def fill(self, owner: str, mib: int) -> None:
        free = [place for place, cell in enumerate(self.cells) if cell is None]
        for place in free[:mib]:
            self.cells[place] = owner

    def owned(self, owner: str) -> int:
        return self.cells.count(owner)


jobs_on_it = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=5
)  # what each reserved and uses


@given(jobs_on_it, st.integers(0, 40), st.integers(1, 120))
def test_the_balance_is_that_of_a_ledger_kept_by_hand(
    jobs: list[tuple[int, int]], foreign: int, wanted: int
) -> None:
    jobs[0] = jobs[0][0], max(1, jobs[0][1])  # one has begun, so NVML shows ours
    ledger = Ledger(400)
    for number, (_, used) in enumerate(jobs):
        ledger.fill(f"job {number}", used)
    ledger.fill("foreign", foreign)
    free = ledger.cells.count(None)
    for number, (reserved, used) in enumerate(jobs):
        ledger.fill(f"job {number}", max(0, reserved - used))  # what it may still come to need
    processes = {1000 + 100 * n: used for n, (_, used) in enumerate(jobs) if used}
    claims = [claim(10 + n, reserved) for n, (reserved, _) in enumerate(jobs)]
    board = device(free, processes, 400)
    use = use_of(board, [10 + n for n in range(len(jobs))], family)
    found = balance(board, claims, claim(), use)
    assert found is not None
    assert found.foreign_mib == ledger.owned("foreign")
    assert found.claimed_mib == sum(ledger.owned(f"job {n}") for n in range(len(jobs)))
    fits = ledger.cells.count(None) >= wanted
    assert (decide(board, claims, claim(reserved=wanted), 0.5) == "") == fits


@settings(max_examples=40)  # each of them draws a hundred numbers
@given(st.data(), st.booleans())
def test_jobs_that_keep_to_their_reservation_never_run_out_of_memory(
    data: st.DataObject, told: bool
) -> None:
    """They come, load and go in any order, with or without figures per process."""
    base = data.draw(st.integers(0, 200))
    running: dict[int, tuple[int, int]] = {}  # session -> reserved, used
    for session in range(10, 30):
        used = sum(now for _, now in running.values()) + base
        processes = {100 * job: now for job, (_, now) in running.items() if now}
        board = device(TOTAL - used, processes if told else None)
        claims = [claim(job, most, base=base) for job, (most, _) in running.items()]
        wanted = data.draw(st.integers(1, 600), label="wanted")
        if not decide(board, claims, claim(reserved=wanted), 0.5):
            running[session] = (wanted, 0)
        for job, (most, now) in list(running.items()):
            running[job] = (most, data.draw(st.integers(now, most), label=f"{job} uses"))
            if data.draw(st.integers(0, 3)) == 0:
                del running[job]
        assert base + sum(most for most, _ in running.values()) <= TOTAL


def test_a_process_counts_for_the_job_it_descends_from_even_in_a_session_of_its_own() -> None:
    import os
    import subprocess

    with subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
        try:
            board = device(900, {child.pid: 70})
            assert use_of(board, [os.getpid()]).by_job == {os.getpid(): 70}
            assert use_of(board, [child.pid]).by_job == {child.pid: 70}
            other = use_of(board, [2**22 + 1])  # a session that no process is in
            assert (other.by_job, list(other.strangers)) == (None, [child.pid])
        finally:
            child.kill()
