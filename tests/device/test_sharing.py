"""Several jobs on one device: how many, by number and by memory."""

from __future__ import annotations

import csv
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.bench import Bench, Gpus, wait_until
from support.launching import GPUS, OURS, WARM, choices

from autocl_sweeper.device import sampling
from autocl_sweeper.device.leases import Lease, LeaseFolder, Occupied
from autocl_sweeper.device.packing import Claim
from autocl_sweeper.device.pool import Grant, Pool
from autocl_sweeper.device.probe import CpuProbe, Device, FakeProbe
from autocl_sweeper.device.reservations import Used
from autocl_sweeper.errors import ConfigurationError, DeviceError
from autocl_sweeper.types import Need

Pools = Callable[..., Pool]

GIB = 1024


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[Pools]:
    """Pools of sweeps that share one machine; each keyword is a field of the pool.

    `seen`: whether a job of it was seen already.
    """
    made: list[Grant] = []

    class Remembering(Pool):
        def acquire(self, **how: Any) -> Grant | None:
            grant = super().acquire(**how)
            made.extend([grant] if grant else [])
            return grant

    def make(
        probe: FakeProbe | CpuProbe, holder: str = "sweep", seen: bool = True, **keys: Any
    ) -> Pool:
        pool = Remembering(probe, LeaseFolder(tmp_path / "leases"), holder=holder, **keys)
        if seen:  # a job that used nothing, so that numbers decide
            pool.expect(0)
        return pool

    yield make
    for grant in made:
        grant.close()


def used(stage: int, peak_mib: int) -> Used:
    return Used(stage=stage, sampled_mib=peak_mib)


def reserves(pool: Pool, stage: int) -> int | None:
    return pool.reservation(Need(), stage).mib


def taken(pool: Pool, most: int = 20, **how: Any) -> list[Grant]:
    """Grants until there is none."""
    found = []
    while len(found) < most and (grant := pool.acquire(**how)) is not None:
        found.append(grant)
    return found


def numbers(grants: list[Grant]) -> list[str]:
    """On which devices, by the last digit of their ids."""
    return ["".join(name[-1] for name in grant.ids) for grant in grants]


GPUS_SHOWN = [device.id for device in FakeProbe.gpus(2).devices()]


@pytest.mark.parametrize(
    ("probe", "ids", "chosen"),
    [
        (FakeProbe.gpus(4), GPUS_SHOWN, False),
        (CpuProbe(2, {"OMP_NUM_THREADS": "3"}), ["cpu-0", "cpu-1"], False),  # the user's: per slot
        (CpuProbe(2, {}), ["cpu-0", "cpu-1"], True),
    ],
)
def test_a_job_is_told_all_its_devices_and_the_threads_that_the_launcher_chose(
    make_pool: Pools, probe: FakeProbe | CpuProbe, ids: list[str], chosen: bool
) -> None:
    """So that a job of two processes can divide them."""
    (grant,) = taken(make_pool(probe, count=2), 1)
    assert grant.environment["AUTOCL_DEVICES"].split(",") == ids == list(grant.ids)
    threads = grant.environment["OMP_NUM_THREADS"] if chosen else None
    assert grant.environment.get("AUTOCL_THREADS") == threads


# -- by number --------------------------------------------------------------------------------------


def test_jobs_spread_before_they_share(make_pool: Pools) -> None:
    pool = make_pool(FakeProbe.gpus(3), jobs_per_device=2)
    assert numbers(taken(pool)) == ["0", "1", "2", "0", "1", "2"]
    assert "has 2 jobs, as many as all who use it allow" in pool.refusal


def test_the_strictest_sweep_on_a_device_decides_how_many_are_there(make_pool: Pools) -> None:
    probe = FakeProbe.gpus(1)
    two = make_pool(probe, "two", jobs_per_device=2)
    three = make_pool(probe, "three", jobs_per_device=3)
    alone = make_pool(probe, "alone")
    first, second = taken(three, 2)
    assert two.acquire() is None
    second.close()
    joined = two.acquire()
    assert joined is not None
    assert three.acquire() is None  # it would allow a third, the other sweep does not
    joined.close()
    assert len(taken(three)) == 2
    assert alone.acquire() is None
    first.close()


class AnotherController(LeaseFolder):
    """Leases as a process with another number takes them."""

    def take(
        self,
        device_id: str,
        claim: Claim,
        objection: Callable[[Occupied], str] = lambda occupied: "",
    ) -> Lease | str:
        return super().take(device_id, replace(claim, pid=1), objection)


def test_who_waits_for_a_whole_device_gets_it_though_others_would_share_it_for_ever(
    make_pool: Pools,
) -> None:
    probe = FakeProbe.gpus(2)
    many, alone = make_pool(probe, "many", jobs_per_device=2), make_pool(probe, "alone")
    many.leases = AnotherController(many.leases.path)
    running = taken(many)
    running.pop().close()  # GPU 1 has one job left, GPU 0 has two
    assert alone.acquire() is None
    assert many.acquire() is None, "the emptiest device is left to empty"
    assert "which waits to have it alone" in many.refusal
    running[0].close()
    assert numbers(taken(many)) == ["0"], "and no other device"
    running[1].close()
    assert numbers(taken(alone, 1)) == ["1"]
    assert alone.acquire() is None
    running[2].close()
    assert numbers(taken(many)) == ["0"], "who has a device has no second one emptied for it"


def test_a_job_that_must_be_alone_gets_a_device_of_its_own_pool(make_pool: Pools) -> None:
    pool = make_pool(FakeProbe.gpus(2), jobs_per_device=2)
    shared = pool.acquire()
    alone = pool.acquire(alone=True)
    assert shared is not None and alone is not None
    assert (shared.alone, alone.alone) == (False, True)
    assert shared.ids != alone.ids
    assert numbers(taken(pool)) == ["0"]


def test_jobs_of_several_devices_share_them_all_or_nothing(make_pool: Pools) -> None:
    pool = make_pool(FakeProbe.gpus(3), jobs_per_device=2, count=2)
    assert numbers(taken(pool)) == ["01", "20", "12"]
    assert pool.acquire() is None


def test_starts_on_a_device_keep_their_distance_and_other_devices_do_not_wait(
    make_pool: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("autocl_sweeper.device.leases.time.time", lambda: now)
    probe = FakeProbe.gpus(2)
    pool = make_pool(probe, "slow", jobs_per_device=3, stagger_s=30)
    hasty = make_pool(probe, "hasty", jobs_per_device=3)
    for place in ("0", "1"):
        (grant,) = taken(pool, 1)
        assert numbers([grant]) == [place]
        pool.began(grant, os.getpid(), 1, Need())
    assert pool.acquire() is None
    assert "had a start less than 30 s ago (stagger_s)" in pool.refusal
    (grant,) = taken(hasty, 1)
    hasty.began(grant, os.getpid(), 1, Need())  # it counts, whoever starts it
    now = 1029.9
    assert pool.acquire() is None
    now = 1030.0
    assert len(taken(pool)) == 3


def test_cpu_slots_are_shared_by_number_and_say_that_memory_has_no_effect(
    make_pool: Pools, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(CpuProbe(2, {}), jobs_per_device=2, memory_per_job_mib=100)
    pool.check()
    assert "memory_per_job_mib=100 has no effect on CPU slots" in caplog.text
    assert numbers(taken(pool)) == ["0", "1", "0", "1"]


# -- by memory --------------------------------------------------------------------------------------


def test_declared_memory_alone_says_how_many_share_a_device(make_pool: Pools) -> None:
    probe = FakeProbe([Device("GPU-0", "small", 20 * GIB, 20 * GIB, {}),
                       Device("GPU-1", "large", 80 * GIB, 79 * GIB, {})])  # fmt: skip
    pool = make_pool(probe, memory_per_job_mib=20 * GIB)
    assert numbers(taken(pool)) == ["0", "1", "1", "1"]  # 3 x 20 in 79: what is foreign counts


def test_peaks_of_finished_jobs_replace_what_was_declared_once_there_are_some(
    make_pool: Pools, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pool = make_pool(FakeProbe.gpus(1, 80 * GIB), memory_per_job_mib=30 * GIB)
    assert reserves(pool, 1) == 30 * GIB
    pool.learn(used(1, 10_000))
    pool.learn(used(1, 9_000))
    assert reserves(pool, 1) == 30 * GIB  # the next one may be a larger model
    pool.learn(used(1, 5_000))
    assert reserves(pool, 1) == 11_000  # the largest, and a tenth
    assert reserves(pool, 2) == 30 * GIB  # another stage is another model
    pool.learn(used(2, 40_000))
    assert reserves(pool, 2) == 44_000  # more than declared counts at once
    assert caplog.messages == [
        "jobs of stage 1 reserve 11000 MiB from now on: the largest of 3 used 10000",
        "jobs of stage 2 reserve 44000 MiB from now on: the largest of 1 used 40000",
    ]


def test_a_measured_stage_packs_by_its_peaks(make_pool: Pools) -> None:
    pool = make_pool(FakeProbe.gpus(1, 80 * GIB), jobs_per_device=8)
    first = taken(pool, stage=1)
    assert len(first) == 8
    for grant in first:
        grant.close()
    pool.learn(used(1, 25 * GIB))  # 27.5 with the margin: two of them in 79.5
    assert len(taken(pool, stage=1)) == 2
    assert taken(pool, stage=2) == []  # they reserve what the stage before needed
    pool.learn(used(2, 2 * GIB))
    assert len(taken(pool, stage=2)) == 6  # as many as jobs_per_device allows


def test_before_the_next_job_is_known_the_smaller_reservation_of_two_kinds_counts(
    make_pool: Pools,
) -> None:
    pool = make_pool(FakeProbe.gpus(1, 80 * GIB), jobs_per_device=8)
    pool.learn(used(1, 60 * GIB))
    pool.learn(used(2, 10 * GIB))
    (first,) = taken(pool, 1, stage=1)
    pool.began(first, os.getpid(), 1, Need())
    (second,) = taken(pool, 1, stage=2)  # 66 and 11 of the 79.5
    pool.began(second, os.getpid(), 2, Need())
    second.close()
    (third,) = taken(pool, 1)
    assert third.leases[0].claim.reserved_mib == 11 * GIB
    assert pool.suits(third, 2, Need())
    assert not pool.suits(third, 1, Need()), "it turned out to need 66"


def test_while_nobody_knows_what_jobs_need_a_device_has_one_of_them(make_pool: Pools) -> None:
    probe = FakeProbe.gpus(2, 80 * GIB)
    first = make_pool(probe, seen=False, jobs_per_device=4)
    assert numbers(taken(first)) == ["0", "1"]
    assert "it is not known yet what memory such jobs need" in first.refusal
    other = make_pool(probe, "other", seen=False, jobs_per_device=4)
    assert numbers(taken(other)) == [], "its jobs, too, have a device of their own"
    first.expect(30 * GIB)  # 33 with the margin, and one of its own on each counts as much
    assert numbers(taken(first)) == ["0", "1"]
    assert "has 13" in first.refusal  # of 79.5


@pytest.mark.parametrize(
    "known",
    [
        lambda pool: pool.expect(0),
        lambda pool: pool.learn(used(1, 1 * GIB)),
        lambda pool: pool.learn(used(3, 1 * GIB)),  # another stage is the best guess
        lambda pool: setattr(pool, "memory_per_job_mib", 1 * GIB),
    ],
    ids=["nothing to be seen", "this stage", "another stage", "declared"],
)
def test_once_something_is_known_jobs_share(
    make_pool: Pools, known: Callable[[Pool], None]
) -> None:
    pool = make_pool(FakeProbe.gpus(1, 80 * GIB), seen=False, jobs_per_device=3)
    assert len(taken(pool, stage=1)) == 1
    known(pool)
    assert len(taken(pool, stage=1)) == 2


def test_boards_that_do_not_tell_their_memory_are_shared_by_number_from_the_start(
    make_pool: Pools,
) -> None:
    for probe in (FakeProbe([Device("GPU-0", "unified", None, None, {})]), CpuProbe(1, {})):
        assert len(taken(make_pool(probe, seen=False, jobs_per_device=3))) == 3


def test_a_peak_is_level_when_it_has_not_grown_for_a_while(
    make_pool: Pools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0])
    monkeypatch.setattr(sampling, "time", clock)
    monkeypatch.setattr(sampling, "PERIOD_S", 1000.0)  # it looks when it is told to
    probe = FakeProbe.gpus(1, 80 * GIB)
    pool = make_pool(probe, seen=False, jobs_per_device=4)
    sampler = sampling.Sampler(pool, lambda number, reason: None)
    sampler.add(0, os.getpid(), [probe.devices()[0].id], {}, tmp_path / "devices.csv", Need())
    # Seconds, MiB in use -> what the next ones reserve.
    table = [(2, 0, None), (50, 500, None), (58, 8_000, None), (66, 9_900, None),
             (75, 10_000, None), (76, 10_000, 11_000), (80, 20_000, 11_000), (89, 20_000, 11_000),
             (90, 15_000, 22_000)]  # fmt: skip
    for seconds, used_mib, reserved_mib in table:
        now[0] = float(seconds)
        probe.change(probe.devices()[0].id, processes={os.getpid(): used_mib} if used_mib else {})
        sampler.sample()
        assert reserves(pool, 1) == reserved_mib, seconds
    sampler.close()


# -- settings ---------------------------------------------------------------------------------------

KEYS = {
    "cpu_slots": 2, "devices_per_job": 1, "jobs_per_device": 1, "max_devices": None,
    "memory_per_job_mib": None, "free_memory": 0.8, "stagger_s": 0.0, "keep_free_mib": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("jobs_per_device", 0, "hydra.launcher.jobs_per_device=0: at least 1"),
        ("devices_per_job", 0, "hydra.launcher.devices_per_job=0: at least 1"),
        ("max_devices", 0, "hydra.launcher.max_devices=0: at least 1"),
        ("memory_per_job_mib", -5, "hydra.launcher.memory_per_job_mib=-5: at least 1"),
        ("free_memory", 80, "hydra.launcher.free_memory=80: a share from 0 to 1"),
        ("stagger_s", -1.0, "hydra.launcher.stagger_s=-1: .* cannot be negative"),
        ("keep_free_mib", -1, "hydra.launcher.keep_free_mib=-1: .* cannot be negative"),
    ],
)
def test_a_key_that_makes_no_sense_is_an_error_before_any_job(
    key: str, value: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    Pool.of(KEYS, "sweep")
    with pytest.raises(ConfigurationError, match=expected):
        Pool.of({**KEYS, key: value}, "sweep")


def test_memory_that_no_device_has_is_an_error_that_lists_what_each_has(make_pool: Pools) -> None:
    probe = FakeProbe([Device("GPU-0", "small", 20 * GIB, 20 * GIB),
                       Device("GPU-1", "large", 80 * GIB, 80 * GIB)])  # fmt: skip
    make_pool(probe, memory_per_job_mib=80 * GIB).check()
    with pytest.raises(DeviceError) as error:
        make_pool(probe, memory_per_job_mib=90_000).check()
    assert "memory_per_job_mib=90000 is more than any device has:" in str(error.value)
    assert "\n  GPU-0 small: 20480 MiB\n  GPU-1 large: 81920 MiB\n" in str(error.value)
    with pytest.raises(DeviceError, match="more than enough devices have"):
        make_pool(probe, memory_per_job_mib=30_000, count=2).check()
    with pytest.raises(DeviceError, match="a job wants 3 devices, and 2 can serve it"):
        make_pool(probe, count=3).check()


# -- whole sweeps -----------------------------------------------------------------------------------


def crowd(ledger: list[dict[str, Any]]) -> int:
    """The most jobs on one device at any time."""
    running: dict[str, int] = {}
    most = 0
    for event in ledger:
        device = event["devices"]
        running[device] = running.get(device, 0) + (1 if event["event"] == "start" else -1)
        most = max(most, *running.values())
    return most


def test_two_sweeps_share_one_device_with_two_jobs_and_never_more(
    benches: Callable[..., Bench],
    gpus: Gpus,
    tmp_path: Path,
) -> None:
    one, other = (gpus.seen_by(benches("chain", name)) for name in ("one", "other"))
    hold = tmp_path / "hold"
    hold.touch()
    for bench in (one, other):
        bench.leases = tmp_path / "leases-of-both"
        bench.environment |= {
            "AUTOCL_LEASE_DIR": str(bench.leases),
            "CUDA_VISIBLE_DEVICES": GPUS[0],
            "LEDGER": str(one.ledger_file),
            "HOLD": str(hold),
        }
    memory = "hydra.launcher.memory_per_job_mib=100"  # known, so that number decides
    first = one.start(*WARM, "lr=1", "hydra.launcher.jobs_per_device=2", memory)
    wait_until(lambda: one.ledger("start"), "a job of the one")
    second = other.start(*WARM, choices(3), "hydra.launcher.jobs_per_device=3", memory)
    wait_until(lambda: len(one.ledger("start")) == 2, "a job of the other joins it")
    hold.unlink()
    for bench, process in ((one, first), (other, second)):
        assert process.wait(300) == 0, bench.printed(process)
        assert {event["state"] for event in bench.finished().values()} == {"COMPLETE"}
    assert crowd(one.ledger()) == 2
    assert len(one.ledger("end")) == 4
    assert one.nothing_is_left()
    (event,) = one.finished().values()
    assert event["device"]["ids"] == [GPUS[0]]
    with open(one.sweep / "trials.csv", newline="") as file:
        assert [row["device/ids"] for row in csv.DictReader(file)] == [GPUS[0]]


@pytest.mark.slow
def test_a_whole_sweep_is_measured_through_nvml(on_gpus: Bench, gpus: Gpus) -> None:
    shared = "hydra.launcher.jobs_per_device=2"
    process = on_gpus.start_held(1, *OURS, choices(2), shared, CUDA_VISIBLE_DEVICES="2")
    (first,) = on_gpus.ledger("start")
    gpus.change(2, pids={first["pid"]: 9000}, free_mib=81_559 - 9559)
    wait_until(lambda: len(on_gpus.ledger("start")) == 2, "another one joins it")
    assert "jobs reserve 9900 MiB until one has finished: one that runs uses 9000" in (
        on_gpus.printed(process)
    )
    used = {event["pid"]: 9000 + 1000 * event["trial"] for event in on_gpus.ledger("start")}
    gpus.change(2, pids=used, free_mib=81_559 - 19_559, utilisation=70, temperature_c=71)
    time.sleep(5 * sampling.PERIOD_S)
    output = on_gpus.release(process)
    for trial, event in on_gpus.finished().items():
        use = event["device"]
        assert (use["ids"], use["peak_mib"]) == ([GPUS[2]], 9000 + 1000 * trial)
        assert use["max_temperature_c"] == 71 and 0 < use["mean_utilisation"] <= 70
    assert re.search("jobs of stage 1 reserve (9900|11000) MiB from now on", output)
