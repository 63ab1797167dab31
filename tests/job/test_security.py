"""Nobody gets in: what jobs import and unpickle, and who may write it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bench import Bench

from autocl_sweeper.errors import SweepFolderError
from autocl_sweeper.job.package import command
from autocl_sweeper.private import private_folder, read_private

HOSTILE = ("json", "os", "pickle", "logging", "yaml", "hydra", "omegaconf", "cloudpickle", "typing")
TRAP = "import sys; open({mark!r}, 'a').write(__name__ + ' ' + ' '.join(sys.orig_argv) + chr(10))\n"
OTHER = 65534  # an account that is not ours


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder in which somebody left modules; importing one of them leaves a mark."""
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(TRAP.format(mark=str(tmp_path / "mark")))
    return folder


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
def test_a_sweep_started_in_a_shared_folder_imports_nothing_from_it(
    benches: Callable[..., Bench], shared: Path, warm: bool
) -> None:
    bench = benches("chain")
    preload = ["hydra.launcher.preload=[json]"] if warm else []
    arguments = ["-m", "hydra/sweeper=autocl", "hydra/launcher=gpu", "task=a,b", "lr=1", *preload]
    done = subprocess.run(
        [sys.executable, str(bench.app), *arguments, f"hydra.sweep.dir={bench.sweep}"],
        cwd=shared,
        env=bench.environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    mark = shared.parent / "mark"
    assert done.returncode == 0, done.stderr
    assert not mark.exists(), mark.read_text()


@pytest.mark.parametrize(
    "module", ["executor.process.forkserver", "job.process", "executor.ray.agent"]
)
def test_no_process_of_ours_imports_from_its_working_directory(shared: Path, module: str) -> None:
    """Each ends at once, for want of arguments, behind all its imports."""
    argv = command(f"autocl_sweeper.{module}")
    done = subprocess.run(argv, cwd=shared, capture_output=True, text=True, timeout=300)
    mark = shared.parent / "mark"
    assert "missing" in done.stderr and "main()" in done.stderr, done.stderr
    assert not mark.exists(), mark.read_text()


# -- what is unpickled ------------------------------------------------------------------------------


def test_the_folder_between_sweep_and_jobs_is_closed_to_others(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        private_folder(tmp_path / "a/.autocl")
        (tmp_path / "b").mkdir(mode=0o777)  # as an older version left it
        private_folder(tmp_path / "b")
    finally:
        os.umask(umask)
    assert (tmp_path / "a/.autocl").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o700
    file = tmp_path / "b/1.pkl"
    file.write_bytes(b"x")
    assert read_private(file) == b"x"


def test_what_others_could_have_written_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    private_folder(folder)
    file = folder / "1.pkl"
    file.write_bytes(b"x")
    for path, mode in ((folder, 0o777), (folder, 0o770), (file, 0o602)):
        before = path.stat().st_mode & 0o777
        path.chmod(mode)
        with pytest.raises(
            SweepFolderError, match=rf"'{path}' may be written by .*\(mode {mode:04o}\)"
        ):
            read_private(file)
        path.chmod(before)
    (folder / "link.pkl").symlink_to(file)
    with pytest.raises(OSError, match="symbolic link"):
        read_private(folder / "link.pkl")
    assert read_private(file) == b"x"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_another_account_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    private_folder(folder)
    file = folder / "1.pkl"
    file.write_bytes(b"x")
    os.chown(file, OTHER, OTHER)
    with pytest.raises(
        SweepFolderError, match=f"'{file}' belongs to uid {OTHER}, and this process"
    ):
        read_private(file)
    os.chown(folder, OTHER, OTHER)
    with pytest.raises(SweepFolderError, match=f"'{folder}' belongs to uid {OTHER}"):
        private_folder(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_sweep_with_a_folder_of_another_account_is_refused_before_a_job_starts(
    benches: Callable[..., Bench],
) -> None:
    bench = benches("chain")
    (bench.sweep / ".autocl").mkdir(parents=True)
    os.chown(bench.sweep / ".autocl", OTHER, OTHER)
    arguments = ("hydra/sweeper=autocl", "hydra/launcher=gpu", "task=a", "lr=1")
    output = bench.run(*arguments, status=1)
    assert f"SweepFolderError: '{bench.sweep}/.autocl' belongs to uid {OTHER}" in output
    assert "Traceback" not in output and bench.ledger("start") == []
