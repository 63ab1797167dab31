"""What a job is told of the devices it got."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocl_sweeper.device.leases import LeaseFolder
from autocl_sweeper.device.pool import Pool
from autocl_sweeper.device.probe import CpuProbe, FakeProbe, Probe

GPUS = [device.id for device in FakeProbe.gpus(4).devices()]


@pytest.mark.parametrize(
    ("probe", "ids", "threads"),
    [
        (FakeProbe.gpus(4), GPUS[:2], None),
        (CpuProbe(2, {"OMP_NUM_THREADS": "3"}), ["cpu-0", "cpu-1"], None),  # the user's: per slot
    ],
)
def test_a_job_is_told_all_its_devices(
    tmp_path: Path, probe: Probe, ids: list[str], threads: str | None
) -> None:
    grant = Pool(probe, LeaseFolder(tmp_path / "leases"), count=2).acquire()
    assert grant is not None
    assert grant.environment["AUTOCL_DEVICES"].split(",") == ids == list(grant.ids)
    assert grant.environment.get("AUTOCL_THREADS") == threads
    grant.close()


def test_threads_that_the_launcher_chose_are_known_as_such(tmp_path: Path) -> None:
    """So that a job of two processes can divide them; the user's own number is per process."""
    grant = Pool(CpuProbe(2, {}), LeaseFolder(tmp_path / "leases"), count=2).acquire()
    assert grant is not None
    assert grant.environment["AUTOCL_THREADS"] == grant.environment["OMP_NUM_THREADS"]
    grant.close()
