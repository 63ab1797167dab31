"""`python -m train.final` in processes of its own: which device the test rows of a sweep get."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_nvml import build as fake
from support.train_app import ROOT

from autocl_sweeper.device.leases import Lease, LeaseFolder

FIRST, SECOND = fake.gpus(2)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The folder of a sweep that is over, whose last beam is empty: there is nothing to evaluate."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "trials.csv").write_text("trial,parent\n")
    best = "{name: autocl, stages: 1, stages_finished: 1, beams: {1: []}}"
    (folder / "optimization_results.yaml").write_text(best)
    (folder / "multirun.yaml").write_text("{hydra: {launcher: {max_devices: 2, free_memory: 0.5}}}")
    return folder


@pytest.fixture
def leases(tmp_path: Path) -> LeaseFolder:
    return LeaseFolder(tmp_path / "leases")


@pytest.fixture
def first(leases: LeaseFolder) -> Iterator[Lease]:
    lease = leases.try_lease(FIRST.uuid, "another sweep")
    assert lease is not None
    yield lease
    lease.close()


def final(
    sweep: Path, leases: LeaseFolder, library: Path, gpus: list[fake.Gpu]
) -> subprocess.Popen[str]:
    figures = fake.write_figures(sweep.parent / "figures", gpus)
    own = {"AUTOCL_LEASE_DIR": str(leases.path), **fake.environment(library, figures)}
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    return subprocess.Popen(
        [sys.executable, "-m", "train.final", str(sweep)],
        cwd=ROOT, env=environment | own, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_test_rows_are_evaluated_on_a_gpu_that_no_other_sweep_has(
    sweep: Path, leases: LeaseFolder, first: Lease, library: Path
) -> None:
    out, err = final(sweep, leases, library, [FIRST, SECOND]).communicate(timeout=300)
    assert f"of 0 chains on {SECOND.uuid}" in out, err


def test_the_evaluation_waits_for_the_only_gpu_and_says_who_has_it(
    sweep: Path, leases: LeaseFolder, first: Lease, library: Path
) -> None:
    waiting = final(sweep, leases, library, [FIRST])
    assert waiting.stderr is not None
    line = waiting.stderr.readline()
    assert "waiting for a device" in line and "another sweep" in line
    assert waiting.poll() is None and not (sweep / "test_results.json").exists()
    first.close()
    out, err = waiting.communicate(timeout=300)
    assert f"of 0 chains on {FIRST.uuid}" in out, err


def test_a_gpu_below_the_launchers_share_of_free_memory_is_not_taken(
    sweep: Path, leases: LeaseFolder, library: Path
) -> None:
    full = fake.Gpu(FIRST.uuid, free_mib=30_000)
    out, err = final(sweep, leases, library, [full, SECOND]).communicate(timeout=300)
    assert f"of 0 chains on {SECOND.uuid}" in out, err


def test_the_device_is_leased_while_the_rows_are_evaluated(
    sweep: Path, leases: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.final import leased_device

    monkeypatch.setenv("AUTOCL_LEASE_DIR", str(leases.path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with leased_device(sweep) as device:
        assert os.environ["AUTOCL_DEVICES"] == device
        assert leases.try_lease(device, "another sweep") is None
    later = leases.try_lease(device, "another sweep")
    assert later is not None
    later.close()
