"""A device stays leased while its job runs, whatever the job or a cleaner of /tmp does to the locks."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.bench import alive, wait_until
from support.scripts import Command, script

from autocl_sweeper.device.choice import Refusal, lease_free
from autocl_sweeper.device.leases import LeaseFolder
from autocl_sweeper.device.packing import Claim
from autocl_sweeper.device.pool import Pool
from autocl_sweeper.device.probe import CpuProbe, FakeProbe
from autocl_sweeper.errors import DeviceError
from autocl_sweeper.executor.local import LocalExecutor
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.types import Job

# A job that closes whatever it inherited, as daemons do, and then waits for a file.
CARELESS = (
    "import os, sys, time; os.closerange(3, 256); open({began!r}, 'w').close()\n"
    "while not os.path.exists({go!r}): time.sleep(0.01)"
)


@pytest.fixture
def executor(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LocalExecutor]:
    text = CARELESS.format(began=str(tmp_path / "began"), go=str(tmp_path / "go"))
    shared = getattr(request, "param", 1)
    pool = Pool(CpuProbe(1, {}), LeaseFolder(), jobs_per_device=shared)
    made = LocalExecutor(script(text), JobFiles.of(tmp_path), pool)
    yield made
    made.close()


def begin(executor: LocalExecutor, folder: Path) -> None:
    executor.submit(Job(0, ()))
    wait_until(lambda: (folder / "began").exists(), "the job has closed its descriptors")


def ends_and_frees(executor: LocalExecutor, folder: Path) -> None:
    """Let the job end: then, and not before, another sweep gets its device."""
    assert LeaseFolder().try_lease("cpu-0", "another sweep") is None
    (folder / "go").touch()
    wait_until(lambda: executor.wait(0.1), "the job ends")
    lease = LeaseFolder().try_lease("cpu-0", "another sweep")
    assert lease is not None
    lease.close()


def test_a_job_that_closes_all_its_descriptors_keeps_its_device_until_it_is_reaped(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    begin(executor, tmp_path)
    assert executor.free_slots() == 0
    ends_and_frees(executor, tmp_path)


@pytest.mark.parametrize("executor", [1, 2], indirect=True, ids=["whole", "shared"])
@pytest.mark.parametrize("with_folder", [True, False], ids=["folder", "files"])
def test_a_device_is_announced_again_after_its_lock_files_were_deleted(
    executor: LocalExecutor, tmp_path: Path, with_folder: bool
) -> None:
    leases = LeaseFolder()
    begin(executor, tmp_path)
    if with_folder:
        shutil.rmtree(leases.path)
    else:
        for file in leases.path.iterdir():
            file.unlink()
    # Neither of its own sweep, at once, nor of another one, which asks a moment later.
    wait_until(lambda: list(leases.path.glob("*.lock")), "the lock is there again")
    there = leases.look("cpu-0")
    assert there is not None and len(there.claims) == 1
    ends_and_frees(executor, tmp_path)


def test_the_sweep_itself_starts_no_second_job_on_a_device_whose_lock_was_deleted(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    begin(executor, tmp_path)
    shutil.rmtree(LeaseFolder().path)
    assert executor.free_slots() == 0
    (tmp_path / "go").touch()


def test_a_careless_job_that_outlived_its_controller_gets_its_device_from_the_next(
    tmp_path: Path,
) -> None:
    began, go = tmp_path / "began", tmp_path / "go"
    job = script(CARELESS.format(began=str(began), go=str(go)))
    controller = os.fork()
    if not controller:  # a controller that dies without a word
        with suppress(BaseException):
            pool = Pool(CpuProbe(1, {}), LeaseFolder())
            first = LocalExecutor(job, JobFiles.of(tmp_path), pool, jobs_outlive=True)
            first.submit(Job(0, ()))
            wait_until(began.exists, "the job has closed its descriptors")
        os._exit(0)
    os.waitpid(controller, 0)
    leases = LeaseFolder()
    free = leases.try_lease("cpu-0", "for a moment")
    assert free is not None  # so careless is the job
    free.close()
    second = LocalExecutor(
        Command("/bin/false"),
        JobFiles.of(tmp_path),
        Pool(CpuProbe(1, {}), leases),
        jobs_outlive=True,
    )
    try:
        assert second.adopt(Job(0, ()))
        pid = int(JobFiles.of(tmp_path).group(0).read_text().split()[0])
        ends_and_frees(second, tmp_path)
        assert not alive(pid)
    finally:
        second.close()


@pytest.mark.parametrize("seed", range(3))
def test_lock_files_of_any_content_are_read_as_no_claim_or_a_claim(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    leases = LeaseFolder(tmp_path / "leases")
    probe = FakeProbe.gpus(1)
    (device,) = probe.devices()
    shared = Claim(os.getpid(), limit=4, reserved_mib=1000)
    words = ["null", "[]", "{}", "1e999", '"x"', "-1", "NaN", "true", "{" * 50, "[" * 100_000]
    fields = ["pid", "holder", "since", "job", "limit", "reserved_mib", "base_mib", "stage", "more"]
    for _ in range(60):
        held = leases.take(device.id, shared)
        assert not isinstance(held, str)
        claim = ", ".join(
            f"{json.dumps(name)}: {chance.choice(words[:8])}" for name in chance.sample(fields, 3)
        )
        garbage = chance.choice([f"{{{claim}}}", chance.choice(words), "\0" * 100]).encode()
        kinds = ("lock", "0.place", "wanted", "door")
        leases.file(device.id, chance.choice(kinds)).write_bytes(garbage)
        try:
            found = lease_free(probe, leases, claim=shared)
        except DeviceError as error:
            raise AssertionError(f"seed {seed}: {garbage[:80]!r}") from error
        if not isinstance(found, Refusal):
            for lease in found:
                lease.close()
        held.close()
        for file in leases.path.iterdir():
            file.unlink()
