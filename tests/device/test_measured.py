"""What real jobs use of devices that a test makes up, and what is done when a device fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bench import wait_until
from support.scripts import SHELL, script

from autocl_sweeper.device import pool as pools
from autocl_sweeper.device import sampling
from autocl_sweeper.device.leases import LeaseFolder
from autocl_sweeper.device.needs import Siblings
from autocl_sweeper.device.pool import Pool
from autocl_sweeper.device.probe import FakeProbe
from autocl_sweeper.errors import DeviceError
from autocl_sweeper.executor import local, running
from autocl_sweeper.executor.local import LocalExecutor
from autocl_sweeper.executor.running import Limits
from autocl_sweeper.journal import outcome_to_json
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.types import Cause, Job, Need, Outcome, State

GIB = 1024

# -- real processes on devices made up --------------------------------------------------------------

WELL = json.dumps(outcome_to_json(Outcome(State.COMPLETE, returned="float", score=1.0)))


class Shell:
    """Jobs that end when their file `end-<number>` is there: well, unless it says how else."""

    def __init__(self, folder: Path, files: JobFiles) -> None:
        self.folder = folder
        self.files = files

    def command(self) -> list[str]:
        return SHELL

    def order(self, job: Job, returns: bool) -> bytes:
        end, result = self.folder / f"end-{job.number}", self.files.outcome(job.number)
        wait = f"while [ ! -e {end} ]; do sleep 0.01; done; [ -s {end} ] && exit 3"
        return f"{wait}; echo '{WELL}' > {result}.new; mv {result}.new {result}".encode()

    def end(self, number: int, badly: bool = False) -> None:
        aside = self.folder / "aside"
        aside.write_text("badly" if badly else "")
        aside.rename(self.folder / f"end-{number}")


class Machine:
    """An executor on fake GPUs, with a sampler that looks often."""

    def __init__(self, folder: Path, probe: FakeProbe, seen: bool = True, **keys: Any) -> None:
        files = JobFiles.of(folder)
        self.probe = probe
        self.ids = [device.id for device in probe.devices()]
        self.shell = Shell(folder, files)
        self.pool = Pool(probe, LeaseFolder(folder / "leases"), holder=str(folder), **keys)
        if seen:
            self.pool.expect(0)
        self.executor = LocalExecutor(self.shell, files, self.pool, Limits(grace_s=0.1))
        self.ended: dict[int, Outcome] = {}

    def start(self, *jobs: int) -> None:
        for number in jobs:
            self.executor.submit(Job(number, (), stage=1))

    def end_of(self, number: int) -> Outcome:
        def look() -> bool:
            self.ended |= {job.number: outcome for job, outcome in self.executor.wait(0.05)}
            return number in self.ended

        wait_until(look, f"job {number} ends")
        return self.ended[number]

    def pid(self, number: int) -> int:
        return self.executor._running[number].process.pid

    def uses(self, device: int, **figures: Any) -> None:
        """Change a device, and wait until the sampler has looked at it."""
        self.probe.change(self.ids[device], **figures)
        looks = self.looks
        wait_until(lambda: self.looks >= looks + 2, "the sampler looks")

    looks = 0


Machines = Callable[..., Machine]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    monkeypatch.setattr(sampling, "PERIOD_S", 0.02)
    monkeypatch.setattr(pools, "LOST_S", 0.05)
    made: list[Machine] = []

    def make(probe: FakeProbe, **keys: Any) -> Machine:
        found = Machine(tmp_path, probe, **keys)
        made.append(found)
        real = found.executor._sampler.sample

        def counted() -> None:
            real()
            found.looks += 1

        monkeypatch.setattr(found.executor._sampler, "sample", counted)
        return found

    yield make
    for one in made:
        one.executor.close()


def test_a_job_is_measured_beside_others_and_its_peak_sets_the_next_reservation(
    machine: Machines,
) -> None:
    here = machine(FakeProbe.gpus(1, 80 * GIB), jobs_per_device=4)
    here.start(0, 1)
    mine, other = here.pid(0), here.pid(1)
    here.uses(0, processes={mine: 9000, other: 500}, utilisation=80, temperature_c=61)
    here.uses(0, processes={mine: 4000, other: 700}, utilisation=80, temperature_c=55)
    here.shell.end(0)
    use = here.end_of(0).device
    assert use is not None
    assert (use.ids, use.peak_mib) == ((here.ids[0],), 9000)
    assert (use.mean_utilisation, use.max_temperature_c) == (80.0, 61)
    assert here.pool.reservation(Need(), 1).mib == 9900
    here.shell.end(1)
    assert (ended := here.end_of(1).device) is not None and ended.peak_mib == 700


def test_the_second_job_joins_when_the_first_has_shown_its_memory_and_not_while_it_loads(
    machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(FakeProbe.gpus(1, 80 * GIB), seen=False, jobs_per_device=4)
    here.start(0)
    mine = here.pid(0)
    here.uses(0, processes={mine: 20 * GIB})
    assert here.executor.free_slots() == 0
    monkeypatch.setattr(sampling, "LEVEL_S", 0.0)  # it has been so for long enough
    here.uses(0, processes={mine: 30 * GIB})
    wait_until(here.executor.free_slots, "it is level")
    here.executor.submit(Job(1, (), stage=1))
    assert here.pool.reservation(Need(), 1).mib == 33 * GIB
    assert here.executor.free_slots() == 0  # 66 of 79.5


@pytest.mark.parametrize("how", ["over at once", "for long"])
def test_jobs_that_use_no_memory_keep_no_other_waiting_for_long(
    machine: Machines, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(sampling, "UNSEEN_S", 0.2 if how == "for long" else 1000.0)
    here = machine(FakeProbe.gpus(1, 80 * GIB), seen=False, jobs_per_device=2)
    here.start(0)
    assert here.executor.free_slots() == 0
    if how == "over at once":
        here.shell.end(0)
        assert here.end_of(0).state is State.COMPLETE
        here.start(1)
    wait_until(here.executor.free_slots, "a second one may join")


def test_a_budget_that_no_device_has_fails_its_own_trial_before_it_starts(tmp_path: Path) -> None:
    pool = Pool(FakeProbe.gpus(1, 80 * GIB), LeaseFolder(tmp_path / "leases"), jobs_per_device=2)
    needs = Siblings(memory=lambda job: {"budget_gib": 90 if job.number == 0 else 10})
    executor = LocalExecutor(script("pass"), JobFiles.of(tmp_path), pool, needs=needs)
    try:
        executor.submit(Job(0, ()))
        assert executor.devices() == {}
        ((job, outcome),) = executor.wait(1.0)
        assert (job.number, outcome.cause, outcome.lost) == (0, Cause.INFEASIBLE_BUDGET, False)
        assert "memory budget of 92160 MiB (memory.budget_gib) is more than any" in outcome.reason
        executor.submit(Job(1, ()))
        assert executor.reserved() == {1: (11 * GIB, "budget")}
        assert wait_until(lambda: executor.wait(0.1), "it ends")[0][0].number == 1
    finally:
        executor.close()


def test_where_nvml_names_no_process_a_job_alone_has_what_came_on_top(machine: Machines) -> None:
    here = machine(FakeProbe.gpus(2, 80 * GIB), jobs_per_device=2)  # 500 MiB are in use
    here.start(0, 1, 2)
    host = {4_000_001: None, 4_000_002: None}  # pids of the host, which mean nothing here
    for number in (0, 1):
        here.uses(number, free_mib=80 * GIB - 7500, processes=host)
    for number in (0, 1, 2):
        here.shell.end(number)
    peaks = {n: use.peak_mib for n in (0, 1, 2) if (use := here.end_of(n).device)}
    assert peaks[1] == 7000  # alone on GPU 1
    assert (peaks[0], peaks[2]) == (None, None)  # together on GPU 0: nobody can tell


def test_a_job_that_hangs_in_a_lost_device_beyond_sigkill_does_not_hold_up_the_sweep(
    machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "signal_group", lambda group, number: None)
    monkeypatch.setattr(local, "UNKILLABLE_S", 0.1)
    here = machine(FakeProbe.gpus(1))
    here.start(0)
    thread = here.executor._running[0].thread
    here.probe.change(here.ids[0], problem="NVML: GPU is lost", error=15)
    outcome = here.end_of(0)
    assert (outcome.cause, outcome.lost) == (Cause.DEVICE, True)
    with pytest.raises(DeviceError, match="a job wants 1 devices, and 0 can serve it"):
        here.executor.free_slots()
    here.shell.end(0)
    thread.join()
    assert here.executor.wait(0.0) == [], "each job ends once"


def test_when_no_device_is_left_the_error_names_each_and_why_after_the_last_job(
    machine: Machines,
) -> None:
    here = machine(FakeProbe.gpus(2))
    here.start(0)
    here.probe.change(here.ids[1], problem="NVML: GPU requires restart", error=16)
    wait_until(lambda: here.ids[1] in here.pool.retired, "GPU 1 is out")
    here.pool.retired[here.ids[0]] = "NVML: Unknown Error"
    assert here.executor.free_slots() == 0, "job 0 may still end well"
    here.shell.end(0)
    assert here.end_of(0).state is State.COMPLETE
    here.probe.change(here.ids[1], problem="", error=0)  # out of service it stays
    with pytest.raises(DeviceError) as error:
        here.executor.free_slots()
    assert "GPU-fa000000 Fake GPU: out of service: NVML: Unknown Error" in str(error.value)
    assert "GPU-fa000001 Fake GPU: out of service: NVML: GPU requires restart" in str(error.value)


def test_an_error_of_nvml_that_passes_or_lasts_costs_no_healthy_job(
    machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "SICK_S", 0.2)
    here = machine(FakeProbe.gpus(2))
    here.start(0)
    here.uses(0, problem="NVML: Unknown Error", error=999)
    here.uses(0, problem="", error=0)
    assert here.pool.retired == {}
    here.probe.change(here.ids[0], problem="NVML: Unknown Error", error=999)
    wait_until(lambda: here.ids[0] in here.pool.retired, "it lasts")
    assert here.pool.lost == set()
    here.shell.end(0)
    assert here.end_of(0).state is State.COMPLETE
    here.start(1)
    assert here.executor.devices()[1] == (here.ids[1],)


def test_a_job_that_fails_while_its_device_cannot_be_asked_runs_again_elsewhere(
    machine: Machines,
) -> None:
    here = machine(FakeProbe.gpus(2))
    here.start(0, 1)
    here.shell.end(1, badly=True)
    assert (here.end_of(1).cause, here.end_of(1).lost) == (Cause.EXIT, False)
    here.probe.change(here.ids[0], problem="NVML: Unknown Error", error=999)
    here.shell.end(0, badly=True)
    outcome = here.end_of(0)
    assert (outcome.cause, outcome.lost) == (Cause.DEVICE, True)
    assert outcome.reason == "exit status 3 [GPU-fa000000: NVML: Unknown Error]"
    assert here.executor.free_slots() == 1
    assert here.ids[0] in here.pool.retired
