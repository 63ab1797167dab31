"""`autocl devices` in processes of its own, with a fake NVIDIA library."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support.bench import autocl
from support.fake_nvml import build as fake

from autocl_sweeper.device.leases import LeaseFolder
from autocl_sweeper.device.packing import Claim

BUSY, FOREIGN, LOST, IDLE = fake.gpus(4)


devices = partial(autocl, "devices", COLUMNS="250")


@pytest.fixture
def machine(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """One GPU with two jobs of a sweep, one with a stranger, one lost and one idle."""
    leases = LeaseFolder(tmp_path / "leases")
    claim = Claim(os.getpid(), "/data/sweep", 1e9, os.getpid(), 2, 20_000)
    held = [leases.take(BUSY.uuid, claim), leases.take(BUSY.uuid, claim)]
    figures = [
        fake.Gpu(BUSY.uuid, free_mib=41_000, pids={os.getpid(): 9000}, utilisation=93,
                 temperature_c=67),
        fake.Gpu(FOREIGN.uuid, free_mib=80_000, pids=[1]),
        fake.Gpu(LOST.uuid, error=fake.GPU_IS_LOST),
        IDLE,
    ]  # fmt: skip
    environment = fake.environment(library, fake.write_figures(tmp_path / "figures", figures))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield environment
    for lease in held:
        assert not isinstance(lease, str)
        lease.close()


def test_devices_as_json_tell_figures_leases_and_refusals(
    machine: dict[str, str], tmp_path: Path
) -> None:
    done = devices("--json", **machine)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["lease_folder"] == str(tmp_path / "leases")
    busy, foreign, lost, idle = told["devices"]
    assert (busy["id"], busy["total_mib"], busy["free_mib"]) == (BUSY.uuid, 81559, 41_000)
    assert (busy["utilisation"], busy["temperature_c"]) == (93, 67)
    assert busy["processes"] == {str(os.getpid()): 9000}
    assert [one["holder"] for one in busy["leases"]] == ["/data/sweep"] * 2
    assert busy["leases"][0]["reserved_mib"] == 20_000
    assert busy["refused"].startswith(f"is leased by pid {os.getpid()}: /data/sweep")
    assert foreign["refused"] == "is in use: 1 foreign process(es), see nvidia-smi"
    assert lost["refused"] == "NVML: GPU is lost"
    assert (idle["refused"], idle["leases"]) == ("", [])


def test_devices_are_a_table_for_people(machine: dict[str, str], tmp_path: Path) -> None:
    done = devices("--free-memory", "0.999", **machine)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (row,) = [line for line in lines if "41000 of 81559" in line]
    for part in ("GPU-00000000", "93 %", "67 °C", f"{os.getpid()}: 9000 MiB", "is leased by"):
        assert part in row
    assert len([line for line in lines if "20000 MiB" in line and "up to 2 jobs" in line]) == 2
    (idle,) = [line for line in lines if "GPU-00000003" in line]
    assert "has only 99 %" in idle


def test_without_a_gpu_the_slots_are_shown(tmp_path: Path) -> None:
    done = devices("--json", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    names = [device["id"] for device in json.loads(done.stdout)["devices"]]
    assert names == [f"cpu-{number}" for number in range(len(os.sched_getaffinity(0)))]


def test_a_driver_that_cannot_be_asked_is_an_error_with_a_way_out(
    library: Path, tmp_path: Path
) -> None:
    figures = fake.write_figures(tmp_path / "figures", [IDLE], fake.VERSION_MISMATCH)
    environment = fake.environment(library, figures)
    done = devices(**environment)
    assert done.returncode == 1
    assert done.stderr.startswith("DeviceError: the NVIDIA driver is installed but does not answer")
    assert "Traceback" not in done.stderr
