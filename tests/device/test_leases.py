"""Leases are raced by processes; which devices are free, and who may have them."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.bench import wait_until
from support.machine import clean_environment

from autocl_sweeper.device.choice import Refusal, lease_free
from autocl_sweeper.device.leases import Lease, LeaseFolder
from autocl_sweeper.device.probe import CpuProbe, Device, FakeProbe
from autocl_sweeper.errors import DeviceError


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[LeaseFolder]:
    taken: list[Lease] = []

    class Remembering(LeaseFolder):
        def try_lease(self, device_id: str, holder: str) -> Lease | None:
            lease = super().try_lease(device_id, holder)
            taken.extend([lease] if lease else [])
            return lease

    yield Remembering(tmp_path / "leases")
    for lease in taken:
        lease.close()


def ids_of(taken: Any) -> list[str]:
    assert not isinstance(taken, Refusal), str(taken)
    return [lease.device_id for lease in taken]


# -- which devices are free -----------------------------------------------------------------------


def test_every_device_has_its_own_reason(leases: LeaseFolder) -> None:
    probe = FakeProbe.gpus(4)
    ids = [device.id for device in probe.devices()]
    held = leases.try_lease(ids[0], "boolq/0003")
    probe.change(ids[1], free_mib=9788)
    probe.change(ids[2], problem="NVML: GPU is lost")
    probe.change(ids[3], processes={11: None, 12: 500})
    refusal = lease_free(probe, leases)
    assert isinstance(refusal, Refusal)
    assert list(refusal.reasons) == ids
    reasons = list(refusal.reasons.values())
    assert f"leased by pid {os.getpid()}: boolq/0003" in reasons[0]
    assert "12 % of 81559 MiB" in reasons[1]
    assert reasons[2] == "NVML: GPU is lost"
    assert "2 foreign" in reasons[3]
    assert str(refusal).startswith("1 wanted: GPU-fa000000 is leased by pid")
    assert held is not None


def test_two_devices_are_leased_together_or_not_at_all(leases: LeaseFolder) -> None:
    probe = FakeProbe.gpus(3)
    ids = [device.id for device in probe.devices()]
    others = [leases.try_lease(ids[0], "another"), leases.try_lease(ids[2], "another")]
    refusal = lease_free(probe, leases, 2)
    assert isinstance(refusal, Refusal)
    assert sorted(refusal.reasons) == ids
    assert refusal.reasons[ids[1]] == "is free, but one alone is not enough"
    assert ids_of(lease_free(probe, leases, 1)) == [ids[1]]  # it was given back
    assert others[0] is not None
    others[0].close()
    assert isinstance(lease_free(probe, leases, 2), Refusal)  # ids[1] is ours by now
    assert ids_of(lease_free(probe, leases, 1)) == [ids[0]]


def test_a_sweep_that_cannot_get_all_takes_nothing_another_one_may_need(
    leases: LeaseFolder,
) -> None:
    probe = FakeProbe.gpus(3)
    ids = [device.id for device in probe.devices()]
    first, second = leases.try_lease(ids[0], "ahead of us"), leases.try_lease(ids[1], "too")
    refusal = lease_free(probe, leases, 2)
    assert isinstance(refusal, Refusal)
    assert refusal.reasons[ids[2]] == "was not tried: it would not be enough"
    assert first is not None and second is not None


def test_only_the_first_devices_are_considered(leases: LeaseFolder) -> None:
    probe = FakeProbe.gpus(8)
    ids = [device.id for device in probe.devices()]
    assert ids_of(lease_free(probe, leases, 2, max_devices=2)) == ids[:2]
    refusal = lease_free(probe, leases, 1, max_devices=2)
    assert isinstance(refusal, Refusal) and list(refusal.reasons) == ids[:2]
    assert ids_of(lease_free(probe, leases, 6)) == ids[2:]


@pytest.mark.parametrize(("count", "max_devices"), [(9, None), (3, 2), (0, None), (1, 0)])
def test_what_can_never_be_leased_is_an_error_not_a_wait(
    leases: LeaseFolder, count: int, max_devices: int | None
) -> None:
    with pytest.raises(DeviceError, match=f"wants {count} devices"):
        lease_free(FakeProbe.gpus(8), leases, count, max_devices=max_devices)


class Changing(FakeProbe):
    """Shows one list of devices before the leases are taken and another one after."""

    def __init__(self, readings: Sequence[Sequence[Device]]) -> None:
        super().__init__(readings[0])
        self.readings = list(readings)

    def devices(self, load: bool = False) -> list[Device]:
        return list(self.readings.pop(0) if len(self.readings) > 1 else self.readings[0])


def test_a_device_taken_between_reading_and_lease_is_given_back(leases: LeaseFolder) -> None:
    before = FakeProbe.gpus(3).devices()
    full = [replace(before[0], free_mib=10), before[1], before[2]]
    assert ids_of(lease_free(Changing([before, full]), leases)) == [before[1].id]
    gone = [before[2]]
    assert ids_of(lease_free(Changing([before, gone]), leases)) == [before[2].id]
    free = leases.try_lease(before[0].id, "")
    assert free is not None  # it was given back


def test_a_reading_that_fails_leaves_no_lease_behind(leases: LeaseFolder) -> None:
    class Broken(FakeProbe):
        looks = 0

        def devices(self, load: bool = False) -> list[Device]:
            self.looks += 1
            if self.looks == 2:
                raise KeyboardInterrupt
            return super().devices()

    probe = Broken(FakeProbe.gpus(1).devices())
    with pytest.raises(KeyboardInterrupt):
        lease_free(probe, leases)
    assert len(ids_of(lease_free(probe, leases))) == 1


def test_cpu_slots_are_leased_like_devices(leases: LeaseFolder) -> None:
    probe = CpuProbe(2, {})
    assert ids_of(lease_free(probe, leases)) == ["cpu-0"]
    assert ids_of(lease_free(probe, leases)) == ["cpu-1"]
    assert isinstance(lease_free(probe, leases), Refusal)


# -- leases ---------------------------------------------------------------------------------------


def test_a_lease_is_taken_once_and_free_after_close(leases: LeaseFolder) -> None:
    lease = leases.try_lease("GPU-a", "first")
    assert lease is not None
    assert leases.try_lease("GPU-a", "second") is None
    assert leases.holder("GPU-a") == f"pid {os.getpid()}: first"
    lease.close()
    lease.close()
    with pytest.raises(ValueError, match="GPU-a is closed"):
        lease.filenos()
    again = leases.try_lease("GPU-a", "x")
    assert again is not None
    assert leases.holder("GPU-a") == f"pid {os.getpid()}: x"
    assert leases.file("GPU-a").read_text().count("\n") == 1  # the longer text is gone
    assert leases.holder("GPU-b") is None


def test_the_id_of_a_device_cannot_leave_the_folder(leases: LeaseFolder) -> None:
    lease = leases.try_lease("MIG-GPU-1234/../1/0", "")
    assert lease is not None
    assert {path.parent for path in leases.path.iterdir()} == {leases.path}


def test_descriptors_of_leases_reach_only_the_jobs_they_are_passed_to(leases: LeaseFolder) -> None:
    lease = leases.try_lease("GPU-a", "")
    assert lease is not None and not any(map(os.get_inheritable, lease.filenos()))


def start(code: str, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def go(racers: Sequence[subprocess.Popen[str]]) -> None:
    """Starts them all once all are ready."""
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()


SHARERS = """
import os, sys
from pathlib import Path
from autocl_sweeper.device.leases import Lease, LeaseFolder
from autocl_sweeper.device.packing import Claim, refusal
from autocl_sweeper.device.probe import Device
folder, witness, limit = LeaseFolder(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
mine, device = witness / f"{os.getpid()}-{limit}", Device("GPU-a", "")
claim = Claim(os.getpid(), str(limit), limit=limit)
most = won = 0
print("ready", flush=True)
sys.stdin.readline()
while won < 60:
    lease = folder.take("GPU-a", claim, lambda there: refusal(device, there.claims, claim, 0.8))
    if isinstance(lease, Lease):
        won += 1
        mine.touch()
        os.sched_yield()
        there = os.listdir(witness)
        most = max(most, len(there))
        assert len(there) <= min(int(name.partition("-")[2]) for name in there), there
        mine.unlink()
        lease.close()
print(won, most)
"""


def test_of_processes_that_race_for_places_the_strictest_on_a_device_decides(
    tmp_path: Path,
) -> None:
    (tmp_path / "witness").mkdir()
    # The folder does not exist: creating it is part of the race.
    racers = [start(SHARERS, tmp_path / "new", tmp_path / "witness", n) for n in (1, 1, 2, 3, 3)]
    go(racers)
    answers = [racer.communicate(timeout=300)[0].split() for racer in racers]
    assert [int(won) for won, _ in answers] == [60] * 5
    assert [int(most) for _, most in answers[:2]] == [1, 1], "alone is alone"
    assert max(int(most) for _, most in answers) >= 2


PAIRS = """
import sys
from pathlib import Path
from autocl_sweeper.device.probe import FakeProbe
from autocl_sweeper.device.choice import Refusal, lease_free
from autocl_sweeper.device.leases import LeaseFolder
folder, wanted = LeaseFolder(Path(sys.argv[1])), int(sys.argv[2])
probe = FakeProbe.gpus(4)
won = 0
while won < wanted:
    got = lease_free(probe, folder, 3)
    if not isinstance(got, Refusal):
        won += 1
        for lease in got: lease.close()
print(won)
"""


def test_sweeps_that_want_several_devices_each_do_not_starve_each_other(tmp_path: Path) -> None:
    sweeps = [start(PAIRS, tmp_path / "leases", 200) for _ in range(3)]
    assert [sweep.communicate(timeout=300)[0] for sweep in sweeps] == ["200\n"] * 3


CREATOR = """
import os, subprocess, sys, time
from pathlib import Path
from autocl_sweeper.device.packing import Claim
from autocl_sweeper.device.leases import LeaseFolder
claim = Claim(os.getpid(), "a job that outlives its sweep", limit=int(sys.argv[3]))
lease = LeaseFolder(Path(sys.argv[1])).take("GPU-a", claim)
job = subprocess.Popen(["sleep", "600"], pass_fds=lease.filenos(), stdout=subprocess.DEVNULL)
other = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
if sys.argv[2] == "close":
    lease.close()
print(job.pid, other.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Processes to kill at the end, if a test fails before it does."""
    started: list[int] = []
    yield started
    for pid in started:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("ours", "limit"), [("close", 1), ("keep", 1), ("close", 2)])
def test_a_lease_lives_as_long_as_the_job_that_inherited_it(
    leases: LeaseFolder, pids: list[int], ours: str, limit: int
) -> None:
    creator = start(CREATOR, leases.path, ours, limit)
    assert creator.stdout is not None
    job, other = map(int, creator.stdout.readline().split())
    pids += [job, other]
    assert leases.try_lease("GPU-a", "") is None
    creator.kill()
    creator.communicate()
    assert leases.try_lease("GPU-a", "") is None
    there = leases.look("GPU-a")
    assert there is not None and len(there.claims) == 1
    said = leases.words("GPU-a", there.claims[0])
    assert said.startswith(f"pid {creator.pid}: a job that outlives its sweep (ended; 'fuser ")
    os.kill(job, signal.SIGKILL)
    wait_until(lambda: leases.try_lease("GPU-a", ""), "the job, no child of ours, is gone")
    os.kill(other, 0)  # a process started without the descriptor does not keep it


def test_a_lock_file_deleted_by_a_cleaner_is_not_leased_twice_from_then_on(
    leases: LeaseFolder,
) -> None:
    first = leases.try_lease("GPU-a", "")
    assert first is not None
    first.close()
    shutil.rmtree(leases.path)
    assert leases.try_lease("GPU-a", "") is not None
    assert leases.try_lease("GPU-a", "") is None


def test_a_lock_on_a_file_that_was_replaced_meanwhile_is_no_lease(
    leases: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases.file("GPU-a").touch()
    before = leases.file("GPU-a").stat().st_ino
    real = fcntl.flock
    locked: list[int] = []

    def slow(fd: int, how: int) -> None:
        if os.fstat(fd).st_ino == before:
            leases.file("GPU-a").unlink()
            leases.file("GPU-a").touch()
        locked.append(os.fstat(fd).st_ino)
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    lease = leases.try_lease("GPU-a", "")
    assert lease is not None and locked.count(before) == 1
    assert os.fstat(lease.filenos()[0]).st_ino == leases.file("GPU-a").stat().st_ino


def test_the_folder_is_ours_alone(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path / "deep" / "leases")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    LeaseFolder(folder.path)
    (tmp_path / "link").symlink_to(folder.path)
    with pytest.raises(DeviceError, match="links are not followed"):
        LeaseFolder(tmp_path / "link")
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="not a folder"):
        LeaseFolder(tmp_path / "file")
    folder.path.chmod(0o777)
    with pytest.raises(DeviceError, match="every account may write"):
        LeaseFolder(folder.path)


def test_a_folder_of_another_account_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(DeviceError, match="belongs to uid"):
        LeaseFolder(tmp_path)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, f"/tmp/autocl-leases-{os.geteuid()}"),
        ({"TMPDIR": "/var/tmp"}, f"/tmp/autocl-leases-{os.geteuid()}"),
        ({"AUTOCL_LEASE_DIR": ""}, f"/tmp/autocl-leases-{os.geteuid()}"),
        ({"AUTOCL_LEASE_DIR": "elsewhere"}, "elsewhere"),
    ],
)
def test_all_sweeps_of_an_account_meet_in_one_folder(
    monkeypatch: pytest.MonkeyPatch,
    environ: Mapping[str, str],
    expected: str,
) -> None:
    monkeypatch.setattr(LeaseFolder, "_prepare", lambda folder: None)
    monkeypatch.delenv("AUTOCL_LEASE_DIR", raising=False)
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    assert LeaseFolder().path == Path(expected)
