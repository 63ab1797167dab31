"""What is done about the end of a job: memory, limits, a device that others share."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.bench import Bench, wait_until
from support.fake_nvml import build as fake
from support.scripts import PYTHON, SHELL

from autocl_sweeper.device.leases import LeaseFolder
from autocl_sweeper.device.pool import Pool
from autocl_sweeper.device.probe import CpuProbe
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.executor.local import LocalExecutor
from autocl_sweeper.executor.process import deadlines as timing
from autocl_sweeper.executor.process import last_write as writing
from autocl_sweeper.executor.process.deadlines import Deadlines
from autocl_sweeper.executor.process.groups import OomKills, exit_reason
from autocl_sweeper.executor.process.last_write import LastWrite
from autocl_sweeper.executor.running import Limits
from autocl_sweeper.executor.settings import check
from autocl_sweeper.executor.waiting import Waiting
from autocl_sweeper.journal import outcome_from_json, outcome_to_json
from autocl_sweeper.outcome import JobFiles, cause_in_log, cause_of, failure
from autocl_sweeper.types import Cause, DeviceUse, Job, Need, Outcome, State

OURS = ("hydra/sweeper=autocl", "task=a")

# -- out of memory, or something else ---------------------------------------------------------------

TorchOutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {"__module__": "torch"})


class AllocatorError(TorchOutOfMemoryError):  # type: ignore[misc, valid-type]
    """A library's own, derived from torch's."""


MESSAGES = [
    (TorchOutOfMemoryError("anything"), Cause.DEVICE_MEMORY),
    (AllocatorError("anything"), Cause.DEVICE_MEMORY),
    (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), Cause.DEVICE_MEMORY),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"), Cause.DEVICE_MEMORY),
    (RuntimeError("HIP out of memory. Tried to allocate"), Cause.DEVICE_MEMORY),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), Cause.DEVICE_MEMORY),
    (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        Cause.DEVICE_MEMORY,
    ),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), Cause.DEVICE_MEMORY),
    (RuntimeError("Cuda failure 2 'out of memory'"), Cause.DEVICE_MEMORY),
    (MemoryError(), Cause.HOST_MEMORY),
    (OSError(12, "Cannot allocate memory"), Cause.HOST_MEMORY),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate"
                     " memory: you tried to allocate 4000 bytes"),
        Cause.HOST_MEMORY,
    ),
    (RuntimeError("CUDA error: device-side assert triggered"), Cause.EXCEPTION),
    (RuntimeError("CUDNN_STATUS_EXECUTION_FAILED"), Cause.EXCEPTION),
    (OSError(28, "No space left on device"), Cause.DISK),
    (OSError(122, "Disk quota exceeded"), Cause.DISK),
    (OSError(5, "Input/output error"), Cause.EXCEPTION),
    (
        RuntimeError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message:'
                     ' "No space left on device" })'),
        Cause.DISK,
    ),
    (
        RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed"
                     " writing file data/0: file write failed"),
        Cause.DISK,
    ),
    (ValueError("the sentence is out of memory of the tokenizer"), Cause.EXCEPTION),
]  # fmt: skip


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_a_broken_disk_is_to_blame_in_the_jobs_own_folder_only(tmp_path: Path, number: int) -> None:
    inside = OSError(number, "broken", str(tmp_path / "checkpoint/model"))
    outside = OSError(number, "broken", "/usr/model")
    assert failure(inside, 1.0, folder=tmp_path).cause is Cause.DISK
    assert failure(outside, 1.0, folder=tmp_path).cause is Cause.EXCEPTION


@pytest.mark.parametrize("error, cause", MESSAGES, ids=lambda value: str(value)[:40])
def test_running_out_of_memory_or_disk_is_known_by_what_libraries_raise(
    error: Exception, cause: Cause
) -> None:
    assert cause_of(error) is cause
    assert failure(error, 1.0).cause is cause


def raised(how: str) -> BaseException:
    memory = TorchOutOfMemoryError("CUDA out of memory")
    try:
        try:
            raise memory
        except RuntimeError as caught:
            if how == "from":
                raise ValueError("the batch cannot be made") from caught
            if how == "while handling":
                raise ValueError("the batch cannot be made")  # noqa: B904
            if how == "from None":
                raise ValueError("the settings are wrong") from None
            error = ValueError("a loop")
            error.__cause__, memory.__cause__ = memory, error
            raise error  # noqa: B904
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    "how, cause",
    [
        ("from", Cause.DEVICE_MEMORY),
        ("while handling", Cause.DEVICE_MEMORY),
        ("in a loop", Cause.DEVICE_MEMORY),
        ("from None", Cause.EXCEPTION),
    ],
)
def test_an_error_is_what_led_to_it_unless_its_author_says_otherwise(
    how: str, cause: Cause
) -> None:
    assert cause_of(raised(how)) is cause


@pytest.mark.parametrize(
    "lines, cause",
    [
        (["Traceback", "torch.OutOfMemoryError: CUDA out of memory.", "[W] exit"], "device_memory"),
        (["RuntimeError: CUDA error: out of memory"], "device_memory"),
        (["MemoryError"], "host_memory"),
        (["numpy._core._exceptions.MemoryError: Unable to allocate"], "host_memory"),
        (["step 3: no CUDA out of memory so far", "ValueError: x"], "exit"),
        ([], "exit"),
    ],
)
def test_a_job_that_only_exited_is_told_by_the_last_traceback_in_its_log(
    lines: list[str], cause: str
) -> None:
    assert cause_in_log(lines).value == cause


@pytest.mark.parametrize(
    "before, after, words, cause",
    [
        ((3, 7), (4, 8), "for this control group rose", Cause.HOST_MEMORY),
        ((3, 7), (3, 8), "most likely", Cause.HOST_MEMORY),
        ((3, 7), (3, 7), "not the kernel's", Cause.SIGNAL),
        ((None, 7), (None, 7), "not the kernel's", Cause.SIGNAL),
        ((None, None), (None, None), "likely the kernel's", Cause.SIGNAL),
        ((3, None), (3, None), "likely the kernel's", Cause.SIGNAL),
    ],
)
def test_a_sigkill_is_blamed_on_the_kernel_as_far_as_its_counts_go(
    before: tuple[int | None, int | None],
    after: tuple[int | None, int | None],
    words: str,
    cause: Cause,
) -> None:
    blame, found = OomKills(*before).blame(OomKills(*after))
    assert words in blame and "out-of-memory" in blame
    assert found is cause


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    unnamed = signal.SIGRTMIN + 3
    assert exit_reason(-unnamed) == f"killed by signal {int(unnamed)}"


def test_outcomes_survive_the_journal_and_old_journals_tell_less() -> None:
    use = DeviceUse(("GPU-a", "GPU-b"), 1234, 56.5, None)
    outcome = Outcome(State.FAIL, "exit status 3", cause=Cause.EXIT, device=use)
    record = json.loads(json.dumps(outcome_to_json(outcome)))
    assert outcome_from_json(record) == outcome
    del record["cause"], record["device"]
    record["configuration_error"] = False
    assert outcome_from_json(record) == replace(outcome, cause=Cause.NONE, device=None)


# -- a device that others share ---------------------------------------------------------------------


class Tells:
    """Job 1 is out of memory; job 0 is so too unless it is alone, and job 2 waits for a file."""

    def __init__(self, files: JobFiles, hold: Path) -> None:
        self.files = files
        self.hold = hold

    def command(self) -> list[str]:
        return PYTHON

    def order(self, job: Job, returns: bool) -> bytes:
        lines = "import sys, time, pathlib\n"
        if job.number == 2:
            lines += f"while pathlib.Path({str(self.hold)!r}).exists(): time.sleep(0.02)\n"
        if job.number == 1 or (job.number == 0 and not job.alone):
            lines += "sys.exit('RuntimeError: CUDA out of memory. Tried to allocate 2 GiB')\n"
        return lines.encode()


def ends(executor: LocalExecutor, count: int) -> dict[int, Outcome]:
    found: dict[int, Outcome] = {}

    def enough() -> bool:
        found.update({job.number: outcome for job, outcome in executor.wait(0.1)})
        return len(found) >= count

    wait_until(enough, f"{count} jobs end")
    return found


def test_out_of_memory_beside_others_means_once_more_alone_and_no_third_time(
    tmp_path: Path,
) -> None:
    hold, files = tmp_path / "hold", JobFiles.of(tmp_path)
    pool = Pool(CpuProbe(1, {}), LeaseFolder(), jobs_per_device=2)
    hold.touch()
    executor = LocalExecutor(Tells(files, hold), files, pool)
    try:
        executor.submit(Job(2, ()))
        executor.submit(Job(0, ()))
        outcome = ends(executor, 1)[0]
        assert (outcome.cause, outcome.lost) == (Cause.DEVICE_MEMORY, True)
        assert outcome.reason.endswith("[shared cpu-0]")
        executor.submit(Job(0, (), alone=True))
        assert set(executor.devices()) == {2}, "it started beside another"
        assert executor.free_slots() == 0, "the place it waits for would go to another"
        executor._waiting.append(Waiting(Job(3, (), alone=True), Need(), alone=True))
        executor.cancel(Job(3, ("known=by its number",)))
        assert ends(executor, 1)[3].cause is Cause.CANCELLED
        hold.unlink()
        assert ends(executor, 2)[0].reason.startswith("exit status 0")
        executor.submit(Job(1, (), alone=True))
        outcome = ends(executor, 1)[1]
        assert (outcome.cause, outcome.lost) == (Cause.INFEASIBLE, False)
        assert "alone on cpu-0: another attempt would end the same way" in outcome.reason
        assert executor.free_slots() == 1
    finally:
        executor.close()


@pytest.mark.parametrize(
    "ours", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["our sweeper", "Hydra's"]
)
def test_a_job_of_a_shared_gpu_that_ran_out_of_memory_runs_once_more_and_that_is_no_retry(
    benches: Callable[..., Bench], tmp_path: Path, ours: bool
) -> None:
    bench = benches("faults")
    gpus = fake.write_figures(tmp_path / "figures", fake.gpus(1))
    bench.environment |= fake.environment(fake.build(tmp_path), gpus)
    del bench.environment["CUDA_VISIBLE_DEVICES"]
    attempts = tmp_path / "attempts"
    output = bench.run(
        *(OURS if ours else ["task=a"]), "hydra/launcher=gpu", "hydra.launcher.jobs_per_device=2",
        "fault=no_device_memory_at_first,fine", ATTEMPTS=str(attempts),
    )  # fmt: skip
    assert attempts.read_text().splitlines() == [fake.gpus(1)[0].uuid] * 2
    assert "[shared GPU-" in output
    assert bench.nothing_is_left()
    if ours:
        (again,) = bench.events("attempt_failed")
        assert (again["trial"], again["cause"], again["lost"]) == (0, "device_memory", True)
        assert {event["state"] for event in bench.finished().values()} == {"COMPLETE"}


# -- settings ---------------------------------------------------------------------------------------

ENDS = {
    "timeout_s": None, "stall_s": None, "grace_s": 10.0, "retries": 0, "retry_delay_s": 5.0,
    "on_controller_death": "kill",
}  # fmt: skip


@pytest.mark.parametrize(
    "key, value, rule",
    [
        ("timeout_s", 0, "more than 0, or null"),
        ("stall_s", -1.0, "more than 0, or null"),
        ("stall_s", float("nan"), "more than 0, or null"),
        ("grace_s", -1.0, "at least 0"),
        ("grace_s", float("inf"), "at least 0"),
        ("retries", -1, "at least 0"),
        ("retry_delay_s", -0.5, "at least 0"),
        ("on_controller_death", "wait", "kill, finish"),
    ],
)
def test_a_launcher_setting_that_means_nothing_is_refused_by_name(
    key: str, value: object, rule: str
) -> None:
    check(ENDS)
    check({**ENDS, "grace_s": 0, "timeout_s": 1, "on_controller_death": "finish"})
    with pytest.raises(ConfigurationError, match=f"hydra.launcher.{key}=.*{rule}"):
        check({**ENDS, key: value})


# -- stalls and deadlines ---------------------------------------------------------------------------


def test_deadlines_come_in_order_and_cancelled_ones_never() -> None:
    deadlines, calls, last = Deadlines(), [], threading.Event()
    deadlines.after(0.4, lambda: calls.append("second"))
    deadlines.after(0.5, last.set)
    cancelled = deadlines.after(0.3, lambda: calls.append("cancelled"))
    deadlines.after(0.0, lambda: calls.append(1 / 0))  # type: ignore[arg-type]
    deadlines.after(-1.0, lambda: calls.append("first"))
    deadlines.cancel(cancelled)
    assert last.wait(300)
    assert calls == ["first", "second"]
    deadlines.close()


def test_time_in_which_the_process_stood_still_is_no_time_of_a_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine on which a batch system stops the sweep for an hour, in the middle of a wait."""
    clock = Clocks(0.0)
    monkeypatch.setattr(timing, "time", clock)
    deadlines, calls = Deadlines(), []
    begin, came = deadlines.now(), [threading.Event() for _ in range(3)]
    deadlines.after(0.0, came[0].set)
    assert came[0].wait(300)
    deadlines.after(0.5, came[1].set)
    deadlines.after(60.0, lambda: calls.append("a minute is over"))
    clock.now += 3600.0
    while not came[1].wait(0.01):
        clock.now += 0.01
    assert 0.5 <= deadlines.now() - begin < 50.0 and not calls
    clock.now += 60.0
    deadlines.after(0.0, came[2].set)
    assert came[2].wait(300) and calls == ["a minute is over"]
    deadlines.close()


class Clocks:
    """Both clocks of a machine, and those of its file server `server_s` ahead."""

    def __init__(self, server_s: float) -> None:
        self.now = 1000.0
        self.server_s = server_s

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_600_000_000.0 + self.now

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write("x")
        stamp = self.time() + self.server_s
        for written in (path, path.parent):
            os.utime(written, (stamp, stamp))


@pytest.mark.parametrize("server_s", [0.0, -5000.0, 5000.0])
@pytest.mark.parametrize("where", ["log", "folder", "deep"])
def test_a_job_is_quiet_since_it_last_wrote_whatever_a_file_servers_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, server_s: float
) -> None:
    clocks, files = Clocks(server_s), JobFiles(tmp_path)
    monkeypatch.setattr(writing, "time", clocks)
    folder = tmp_path / "output"
    files.output(0).write_text(str(folder))
    (folder / "a/b").mkdir(parents=True)
    for path in (files.log(0), folder / "a/b/c", folder / "a/x", folder / "x"):
        clocks.write(path)
    job = LastWrite(files, 0, clocks.monotonic)
    assert job.quiet_s() == 0.0
    clocks.now += 30.0
    path = {"log": files.log(0), "folder": folder / "model", "deep": folder / "a/b/c"}[where]
    clocks.write(path)
    clocks.now += 30.0
    assert job.quiet_s() == (30.0 if server_s == 0 else 0.0)
    clocks.now += 60.0
    assert job.quiet_s() == (90.0 if server_s == 0 else 60.0)


class Script:
    def __init__(self, files: JobFiles, folder: Path) -> None:
        self.files, self.folder = files, folder

    def command(self) -> list[str]:
        return SHELL

    def order(self, job: Job, returns: bool) -> bytes:
        """Job 0 says nothing more; job 1 prints, job 2 writes into its folder, until job 0 is over."""
        folder = self.folder / str(job.number)
        folder.mkdir()
        told = f"echo -n '{folder}' > '{self.files.output(job.number)}'"
        # The shell, because Python alone may take longer to start on a busy machine.
        line = {1: "echo $n", 2: f"echo > '{folder}'/$n"}.get(job.number)
        over = self.folder / "over"
        lines = f"n=0; until [ -e '{over}' ]; do sleep 0.1; n=$((n+1)); {line}; done"
        if job.number == 0:
            lines = "echo ready; sleep 1000"
        return f"{told}; {lines}".encode()


def test_a_job_that_writes_nothing_is_ended_and_those_that_do_are_not(tmp_path: Path) -> None:
    files = JobFiles.of(tmp_path)
    pool = Pool(CpuProbe(3, {}), LeaseFolder())
    limits = Limits(stall_s=2.5, grace_s=0.2)  # others write ten times a second, or nearly
    executor = LocalExecutor(Script(files, tmp_path), files, pool, limits)
    try:
        for number in range(3):
            executor.submit(Job(number, ()))
        outcomes = ends(executor, 1)
        (tmp_path / "over").touch()
        outcomes |= ends(executor, 2)
    finally:
        executor.close()
    assert (outcomes[0].cause, outcomes[0].log_tail) == (Cause.STALL, ("ready",))
    assert outcomes[0].reason.startswith("wrote nothing for 2.5 s")
    assert "hydra.launcher.stall_s" in outcomes[0].reason
    assert {outcomes[1].cause, outcomes[2].cause} == {Cause.EXIT}
