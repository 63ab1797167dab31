"""Clocks that step, machines that sleep, folders that move, file servers that are late, several accounts."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from support.bench import APPS, DEADLINE_S, REPOSITORY, Bench, wait_until

from autocl_sweeper.budget import spent
from autocl_sweeper.executor.ray.agent import wait_to_see

OURS = (
    "hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2",
    "hydra.launcher.warm=true",
)  # fmt: skip
DAY_S = 86400.0
# Imported at the start of every Python: the time of day goes a day forwards and back all the time.
STEPPING = """
import itertools, time
steps, real = itertools.cycle((0, 86400, 172800, -86400)), time.time
time.time = lambda: real() + next(steps)
"""


def test_a_sweep_under_a_clock_that_steps_has_the_results_and_durations_of_another(
    chain: Bench, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(STEPPING)
    chain.environment["PYTHONPATH"] = f"{tmp_path}/site:{chain.environment['PYTHONPATH']}"
    limits = ("hydra.launcher.timeout_s=3600", "hydra.launcher.stall_s=3600")
    grid = ("hydra/sweeper/search=grid", "task=a,b", "lr=1,2")
    chain.run(*OURS, *limits, *grid, "+hydra.sweeper.budget.wall_clock=20h")
    times = [event["time"] for event in chain.events()]
    assert max(times) - min(times) > DAY_S and times != sorted(times)  # the clock did step
    ended = chain.finished().values()
    assert {event["state"] for event in ended} == {"COMPLETE"}
    scores = [1, 2, *(first - 0.6 * second for first in (1, 2) for second in (1, 2))]
    assert sorted(event["score"] for event in ended) == pytest.approx(sorted(scores))
    assert all(0 <= event["seconds"] < 3600 for event in ended)


def test_a_clock_that_was_set_back_gives_no_time_back() -> None:
    times = [("session", 1000.0), ("start", 1010.0), ("start", 400.0), ("select", 430.0)]
    times += [("session", 90.0), ("end", 95.0)]
    records = [{"event": event, "time": at} for event, at in times]
    assert spent(records).wall_clock_s == 10 + 30 + 5


def test_a_sweep_that_was_stopped_while_its_jobs_ended_goes_on(chain: Bench) -> None:
    process = chain.start_held(2, *OURS, "task=a", "lr=1,2,3")
    process.send_signal(signal.SIGSTOP)
    chain.hold.unlink()
    wait_until(lambda: len(chain.ledger("end")) == 2, "the jobs end without their controller")
    process.send_signal(signal.SIGCONT)
    output = chain.finish(process, 0)
    assert [event["state"] for event in chain.finished().values()] == ["COMPLETE"] * 3, output


@pytest.mark.slow
def test_a_sweep_that_was_suspended_with_its_jobs_for_longer_than_any_limit_goes_on(
    chain: Bench,
) -> None:
    limits = ("hydra.launcher.timeout_s=25", "hydra.launcher.stall_s=25")
    process = chain.start_held(2, *OURS, *limits, "task=a", "lr=1,2,3")
    stopped = chain.processes()
    assert len(stopped) >= 3 and process.pid in stopped
    for signal_number, pause_s in ((signal.SIGSTOP, 40), (signal.SIGCONT, 0)):
        for pid in stopped:
            os.kill(pid, signal_number)
        time.sleep(pause_s)
    time.sleep(8)  # time enough to end those whose time is over
    output = chain.release(process)
    assert [event["state"] for event in chain.finished().values()] == ["COMPLETE"] * 3, output
    assert not chain.events("attempt_failed")


def test_a_folder_that_moved_while_its_sweep_was_open_is_continued(chain: Bench) -> None:
    command = (*OURS, "task=a,b", "lr=1,2")
    process = chain.start_held(2, *command, HOLDS="[1, 2]")
    chain.kill(process)
    wait_until(chain.nothing_is_left, "nothing is left")
    chain.hold.unlink()
    process = chain.start(*command)
    wait_until(lambda: chain.events("select"), "the first stage is over")
    chain.kill(process)
    wait_until(chain.nothing_is_left, "nothing is left")
    before = {n: e for n, e in chain.finished().items()}

    moved = chain.folder / "elsewhere/moved"
    moved.parent.mkdir()
    chain.sweep.rename(moved)
    chain.sweep = moved
    chain.run(*command)
    after = chain.finished()
    assert {n: after[n] for n in before} == before
    assert len(chain.events("finish")) == len(after) and chain.events()[-1]["event"] == "end"
    begun = [
        text for e in chain.events("start")[-4:] for text in e["overrides"] if "init_from" in text
    ]
    assert begun
    best = chain.results()["chain"][-1]["checkpoint"]
    assert (moved / best).is_dir() or Path(best).is_dir()


# -- a file server that is late ---------------------------------------------------------------------


def test_what_comes_into_sight_late_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS: the name stays unknown until the folder is listed again."""
    late = tmp_path / "checkpoint"
    listed: list[str] = []

    def listing(folder: Path) -> list[str]:
        listed.append(str(folder))
        if len(listed) == 3:
            late.mkdir()
        return []

    monkeypatch.setattr(os, "listdir", listing)
    assert wait_to_see(late) and listed == [str(tmp_path)] * 3
    assert wait_to_see(late) and len(listed) == 3  # what is there costs no look
    assert not wait_to_see(tmp_path / "never", patience_s=0.0)


# -- several accounts -------------------------------------------------------------------------------

TWO_UIDS = """
import os, sys
from pathlib import Path
from autocl_sweeper.device.leases import LeaseFolder
from autocl_sweeper.errors import DeviceError

os.setgid(int(sys.argv[1])), os.setuid(int(sys.argv[1]))
try:
    folder = LeaseFolder()
    with_lease = folder.try_lease("cpu-0", "a sweep")
    print(folder.path, bool(with_lease))
except DeviceError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two accounts")
def test_two_accounts_of_one_machine_have_lease_folders_of_their_own_and_share_none(
    tmp_path: Path,
) -> None:
    def of(uid: int, **environment: str) -> str:
        free = {k: v for k, v in os.environ.items() if k != "AUTOCL_LEASE_DIR"}
        argv = [sys.executable, "-c", TWO_UIDS, str(uid)]
        repository = str(Path(__file__).parents[2])
        done = subprocess.run(
            argv,
            env=free | {"PYTHONPATH": repository} | environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    first, second = 54321, 54322
    try:
        assert of(first) == f"/tmp/autocl-leases-{first} True"
        assert of(second) == f"/tmp/autocl-leases-{second} True"
        assert stat.S_IMODE(os.stat(f"/tmp/autocl-leases-{first}").st_mode) == 0o700
        told = of(second, AUTOCL_LEASE_DIR=f"/tmp/autocl-leases-{first}")
        assert told.startswith("DeviceError") and f"belongs to uid {first}" in told
    finally:
        for uid in (first, second):
            subprocess.run(["rm", "-rf", f"/tmp/autocl-leases-{uid}"], check=True)


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Callable[..., tuple[str, int]]]:
    """account(uid, *words): what the app `chain` prints as this account, and its exit status."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    free = {k: v for k, v in os.environ.items() if k != "AUTOCL_LEASE_DIR"}
    packages = [path for path in sys.path if "site-packages" in path]
    free["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *packages])
    used: set[int] = set()

    def words_as(uid: int, python: str, *words: str) -> list[str]:
        return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
                "--bounding-set=-all", "--inh-caps=-all", python, *words]  # fmt: skip

    def may_run(python: str) -> bool:
        code = (
            "import hydra, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
        )
        argv = words_as(54321, python, "-c", code)
        with suppress(FileNotFoundError):
            return subprocess.run(argv, env=free, cwd="/", capture_output=True).returncode == 0
        return False

    found = [python for python in (sys.executable, f"/usr/bin/python{here}") if may_run(python)]
    if os.geteuid() != 0 or not found:
        pytest.skip("takes root, and a Python that other accounts may run")

    def run(uid: int, *words: str) -> tuple[str, int]:
        used.add(uid)
        app = str(APPS / "chain.py")
        done = subprocess.run(
            words_as(uid, found[0], app, "-m", *OURS, *words),
            env=free | {"LEDGER": os.devnull, "CUDA_VISIBLE_DEVICES": ""},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        return done.stdout + done.stderr, done.returncode

    yield run
    for uid in used:
        shutil.rmtree(f"/tmp/autocl-leases-{uid}", ignore_errors=True)


@pytest.mark.slow
def test_two_accounts_sweep_at_the_same_time_and_neither_enters_the_folder_of_the_other(
    account: Callable[..., tuple[str, int]],
) -> None:
    uids = (54321, 54322)
    with tempfile.TemporaryDirectory() as shared, ThreadPoolExecutor() as both:
        os.chmod(shared, 0o1777)
        command = ("task=a,b", "lr=1,2")
        places = {uid: f"hydra.sweep.dir={shared}/{uid}" for uid in uids}
        for output, status in both.map(lambda uid: account(uid, *command, places[uid]), uids):
            assert status == 0 and "Best chain: score" in output, output
        output, status = account(uids[1], *command, places[uids[0]])
        assert status == 1 and "Traceback" not in output
        assert f"SweepFolderError: Cannot write the sweep folder '{shared}/{uids[0]}'" in output
