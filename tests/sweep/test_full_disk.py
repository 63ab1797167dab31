"""A full or broken disk costs time: the sweep stops with a sentence, and a rerun loses nothing."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.bench import Bench, wait_until
from support.broken_disk.breaking import Breaking

OURS = ("hydra/sweeper=autocl", "task=a")
LAUNCHER = ("hydra/launcher=gpu", "hydra.launcher.cpu_slots=1")
WARM = ("hydra.launcher.warm=true",)


def slow(*case: object) -> object:
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def bench(benches: Callable[..., Bench], disk: Path) -> Bench:
    """Its sweep folder alone lies on the small disk."""
    made = benches("full")
    made.sweep = disk / "sweep"
    made.environment |= {"ONCE": str(made.folder / "once"), "FILLER": str(disk / "filler")}
    return made


def told_of(disk: Path, output: str) -> None:
    assert "DiskError: " in output
    assert re.search(rf"the file system '{disk}', which has 0\.. of 3\.0 MiB", output), output
    assert "Free some space there, then rerun the same command: what finished is kept" in output
    assert "Traceback (most recent call last)" not in output.partition("DiskError: ")[2]


@pytest.mark.parametrize("fill", ["outcome", slow("checkpoint"), slow("child"), slow("unhandled")])
def test_a_job_that_fills_the_disk_is_not_failed_and_wins_after_a_rerun(
    bench: Bench, disk: Path, fill: str
) -> None:
    command = (*OURS, *LAUNCHER, *WARM, "x=0,1,-1,-2")
    told_of(disk, bench.run(*command, status=1, FILL=fill))
    wait_until(bench.nothing_is_left, "nothing is left")
    told_of(disk, bench.run(*command, status=1, FILL=fill))  # still full
    (disk / "filler").unlink()
    bench.run(*command, FILL=fill)
    found = {n: (event["state"], event["score"]) for n, event in bench.finished().items()}
    assert found == {n: ("COMPLETE", score) for n, score in enumerate([0.0, 1.0, -1.0, -2.0])}
    assert [step["params"] for step in bench.results()["chain"]] == [{"x": 1}]
    runs = [event["x"] for event in bench.ledger("start")]
    # What had returned keeps its outcome in the room that was reserved for it.
    kept = fill in ("outcome", "unhandled")
    assert runs.count(1) == (1 if kept else 2)


def test_under_other_launchers_a_full_disk_is_no_failure_of_a_trial(
    bench: Bench, disk: Path
) -> None:
    command = (*OURS, "hydra/launcher=basic", "x=0,1")
    told_of(disk, bench.run(*command, status=1, FILL="checkpoint"))
    (disk / "filler").unlink()
    bench.run(*command)
    assert [event["score"] for _, event in sorted(bench.finished().items())] == [0.0, 1.0]


def test_hydras_basic_sweeper_on_our_launcher_stops_with_the_sentence(
    bench: Bench, disk: Path
) -> None:
    output = bench.run(*LAUNCHER, *WARM, "x=0,1,2", status=1, FILL="checkpoint")
    assert "DiskError: Job 1 could not write" in output and str(disk) in output
    assert [event["x"] for event in bench.ledger("start")] == [0, 1]
    wait_until(bench.nothing_is_left, "nothing is left")


@pytest.mark.parametrize("room", [0, slow(1), slow(4096), 20_000, slow(100_000)])
def test_a_sweep_begun_on_a_disk_with_too_little_room_goes_on_when_there_is_more(
    bench: Bench, disk: Path, room: int
) -> None:
    """Whatever it is that does not fit: the journal, the copy of the configuration, a package, a log."""
    command = (*OURS, *LAUNCHER, *WARM, "x=0,2")
    found = os.statvfs(disk)
    (disk / "filler").write_bytes(b"f" * (found.f_bavail * found.f_frsize - room))
    output = bench.run(*command, status=1)
    assert "DiskError: " in output and str(disk) in output
    assert "Traceback" not in output
    (disk / "filler").unlink()
    bench.run(*command)
    assert [event["score"] for _, event in sorted(bench.finished().items())] == [0.0, 2.0]


def test_a_read_only_disk_is_named(bench: Bench, disk: Path) -> None:
    command = (*OURS, *LAUNCHER, *WARM, "x=0,2")
    bench.run(*command)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    output = bench.run(*command, status=1)
    assert "Read-only file system" in output and "Mount it writable again" in output
    assert "Traceback" not in output
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    bench.run(*command)
    assert [event["score"] for _, event in sorted(bench.finished().items())] == [0.0, 2.0]
    assert len(bench.ledger("start")) == 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        slow(40, errno.ENOSPC),
        slow(60, errno.EDQUOT),
        slow(90, errno.EIO),
        (110, errno.EIO),
        slow(130, errno.EROFS),
        slow(150, errno.EIO),
    ],
)
def test_a_disk_that_breaks_in_the_middle_fails_no_trial(
    chain: Bench, tmp_path: Path, changes: int, error: int
) -> None:
    """Of the changes that this sweep makes below its folder, nearly 200, all fail from one on."""
    command = (*OURS, *LAUNCHER, *WARM, "lr=1,2", "hydra.sweeper.handover={}")
    disk = Breaking(tmp_path, chain.sweep)
    disk.after(changes, error)
    output = chain.run(*command, status=1, **disk.environment)
    assert "DiskError: " in output and os.strerror(error) in output and str(chain.sweep) in output
    assert "Traceback" not in output and disk.left() <= 0
    wait_until(chain.nothing_is_left, "nothing is left")
    chain.run(*command)
    assert [event["score"] for _, event in sorted(chain.finished().items())] == [1.0, 2.0]
    assert {event["state"] for event in chain.finished().values()} == {"COMPLETE"}
