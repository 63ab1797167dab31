"""Every way a job can end is an outcome with a reason, and its siblings finish."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.bench import APPS, Bench, alive, wait_until
from support.endings import FAULTS, SCORES
from support.scripts import Command, script

from autocl_sweeper.device.leases import LeaseFolder
from autocl_sweeper.device.pool import Pool
from autocl_sweeper.device.probe import CpuProbe
from autocl_sweeper.executor import running
from autocl_sweeper.executor.local import LocalExecutor
from autocl_sweeper.executor.running import Limits
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.types import Cause, Job, Outcome, State

OURS = ("hydra/sweeper=autocl", "task=a")
GPU = ("hydra/launcher=gpu", "hydra.launcher.cpu_slots=2")
WARM = (*GPU, "hydra.launcher.warm=true")


def faults_choice(names: list[str]) -> str:
    """One sweep over all of them, between jobs that do nothing wrong."""
    return f"fault=fine,{','.join(names)},fine"


def by_fault(bench: Bench) -> dict[str, dict[str, Any]]:
    faults = {event["trial"]: event["params"]["fault"] for event in bench.events("start")}
    return {faults[trial]: event for trial, event in bench.finished().items()}


# What a job returns is judged by the same code in a fork and in a fresh interpreter.
MET = {
    "true": list(FAULTS),
    "false": ["two_arguments", "exit_3", "exit_0", "os_exit", "os_exit_0", "sigkill", "segfault",
              "grandchildren", "escaped", "workers"],
}  # fmt: skip


@pytest.fixture(scope="module", params=MET, ids=["warm", "fresh"])
def faulty(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Bench]:
    """A sweep on our launcher that met every fault, or all that end a process."""
    bench = Bench(tmp_path_factory.mktemp("faulty"), APPS / "faults.py")
    try:
        journal = str(bench.sweep / "journal.jsonl")
        warm = f"hydra.launcher.warm={request.param}"
        bench.run(*OURS, *GPU, warm, faults_choice(MET[request.param]), JOURNAL=journal)
        yield bench
    finally:
        bench.close()


def test_a_job_that_ends_badly_has_a_reason_and_the_end_of_its_log(faulty: Bench) -> None:
    events = by_fault(faulty)
    for fault in events.keys() - {"fine"}:
        event, expected = events[fault], FAULTS[fault]
        if expected is None:
            found = (event["state"], event["score"], event["cause"])
            assert found == ("COMPLETE", SCORES[fault], ""), fault
            continue
        reason, last_words, cause = expected
        assert (event["state"], event["cause"]) == ("FAIL", cause), fault
        assert re.fullmatch(reason, event["reason"])
        assert last_words in "\n".join(event["log_tail"]), fault
        assert f"about to: {fault}" in (faulty.sweep / f"1_a/{event['trial']}/job.log").read_text()


def test_siblings_of_every_fault_finish_and_the_best_of_them_wins(faulty: Bench) -> None:
    finished, faults = faulty.finished(), by_fault(faulty)
    assert (
        len(finished) == len(faults) + 1 and len(faults) > 10
    )  # "fine" was the first and the last
    assert [finished[n]["score"] for n in (0, max(finished))] == [1.0, 1.0]
    assert [step["params"] for step in faulty.results()["chain"]] == [{"fault": "workers"}]


def test_nothing_a_job_started_outlives_the_sweep(faulty: Bench) -> None:
    assert faulty.processes() == []
    assert faulty.leased() == []


def test_a_metric_ranks_by_its_name_and_direction_and_texts_are_not_kept(
    benches: Callable[..., Bench],
) -> None:
    bench = benches("faults")
    bench.run(
        *OURS, *WARM, "fault=metrics,no_score,exception",
        "hydra.sweeper.metric=loss", "hydra.sweeper.direction=minimize",
    )  # fmt: skip
    assert [e["score"] for _, e in sorted(bench.finished().items())] == [0.25, 0.25, None]
    assert bench.finished()[0]["numbers"] == {"score": 0.5, "loss": 0.25}


@pytest.mark.parametrize(
    "launcher, slow_ones",
    [("basic", []), pytest.param("joblib", ["sigkill"], marks=pytest.mark.slow)],
)
def test_other_launchers_give_the_same_reasons(
    benches: Callable[..., Bench], launcher: str, slow_ones: list[str]
) -> None:
    """Deaths of the process: basic has only the one, and joblib says the same of all."""
    bench = benches("faults")
    names = ["two_arguments", "exit_0", *slow_ones, "text", "score_and_lock"]
    bench.run(*OURS, f"hydra/launcher={launcher}", faults_choice(names))
    events = by_fault(bench)
    assert len(bench.finished()) == len(names) + 2
    assert {event["reason"] for name, event in events.items() if name in SCORES} == {""}
    for name in set(names) - set(SCORES) - set(slow_ones):
        expected = FAULTS[name]
        assert expected is not None
        assert re.fullmatch(expected[0], events[name]["reason"])
    for name in slow_ones:
        assert events[name]["reason"].startswith("TerminatedWorkerError")


def test_under_hydras_basic_sweeper_siblings_finish_and_the_first_failure_is_raised(
    benches: Callable[..., Bench],
) -> None:
    bench = benches("faults")
    names = ["exception", "two_arguments", "speechless", "exit_3", "sigkill", "lock", "homebound"]
    output = bench.run(*WARM, faults_choice(names), "task=a", status=1)
    assert "no such luck" in output
    for number, name in enumerate(["fine", *names, "fine"]):
        assert f"about to: {name}" in (bench.sweep / f"{number}" / "job.log").read_text()
    reasons = {
        "two_arguments": "FAIL in .* TwoArgumentsError: a mistake in the loader",
        "speechless": "FAIL in .* SpeechlessError",
        "exit_3": "FAIL in .* exit status 3",
        "sigkill": "FAIL in .* killed by SIGKILL",
        "homebound": "FAIL in .* RuntimeError: not my process",
        "fine": "COMPLETE",
    }
    for number, name in enumerate(["fine", *names, "fine"]):
        assert re.search(rf"#{number} {reasons.get(name, '')}", output)
    assert bench.nothing_is_left()


def test_without_a_sequence_our_sweeper_ends_as_hydras_basic_one(
    benches: Callable[..., Bench],
) -> None:
    """No score is needed; what a job raises is raised when all have run."""
    bench = benches("faults")
    output = bench.run("hydra/sweeper=autocl", *WARM, "fault=nothing,exception,text", status=1)
    assert len(bench.finished()) == 3 and "no such luck" in output


def test_a_callback_that_raises_is_a_warning(benches: Callable[..., Bench]) -> None:
    bench = benches("faults")
    clumsy = "+hydra.callbacks.clumsy._target_=callbacks.Clumsy"
    bench.run(*OURS, *WARM, clumsy, "fault=fine,metrics")
    assert [event["state"] for event in bench.finished().values()] == ["COMPLETE"] * 2
    log = (bench.sweep / "1_a/0/job.log").read_text()
    assert "stumbled over the start" in log
    assert "stumbled over the end" in log


def test_failed_trials_run_again_as_often_as_asked(benches: Callable[..., Bench]) -> None:
    bench = benches("faults")
    bench.run(
        *OURS,
        *WARM,
        "fault=fine,exit_3",
        "hydra.sweeper.retries=2",
        "hydra.sweeper.retry_delay_s=0",
    )
    again = bench.events("attempt_failed")
    assert [(e["trial"], e["attempt"], e["reason"]) for e in again] == [
        (1, 1, "exit status 3"),
        (1, 2, "exit status 3"),
    ]
    assert sorted(p.name for p in (bench.sweep / "1_a").iterdir()) == [
        "0", "1", "1.attempt1", "1.attempt2",
    ]  # fmt: skip


def test_too_many_failures_stop_the_sweep_with_their_reasons_and_end_the_rest(
    benches: Callable[..., Bench],
) -> None:
    bench = benches("faults")
    output = bench.run(
        *OURS, *WARM, "fault=fine,exception,exit_3,fine", "hydra.sweeper.max_failures=0", status=1
    )
    assert "TooManyFailuresError: 1 trials failed (hydra.sweeper.max_failures=0)." in output
    assert "trial 1: ValueError: no such luck" in output
    assert f"full log: {bench.sweep}/1_a/1/job.log" in output
    assert bench.nothing_is_left()


# -- without Hydra: what a process can do to its executor -------------------------------------------


def outcome_of(
    command: Command,
    folder: Path,
    limits: Limits | None = None,
    cancel_when: Callable[[], object] | None = None,
) -> Outcome:
    pool = Pool(CpuProbe(1, {}), LeaseFolder())
    executor = LocalExecutor(command, JobFiles.of(folder), pool, limits)
    try:
        executor.submit(Job(0, ()))
        if cancel_when is not None:
            wait_until(cancel_when, "the job has begun")
            executor.cancel(Job(0, ()))
        ((_, outcome),) = wait_until(lambda: executor.wait(0.1), "the job ends")
    finally:
        executor.close()
    return outcome


# A shell, which has begun when Python on a busy machine has not.
@pytest.mark.parametrize(
    "first_words", ["", "trap '' TERM; "], ids=["listening", "deaf to SIGTERM"]
)
def test_a_job_that_takes_too_long_is_ended_also_when_it_does_not_listen(
    tmp_path: Path, first_words: str
) -> None:
    shell = Command("/bin/sh", "-c", f"{first_words}echo busy; sleep 1000; :")
    outcome = outcome_of(shell, tmp_path, Limits(timeout_s=1.0, grace_s=0.2))
    assert (outcome.state, outcome.cause) == (State.FAIL, Cause.TIMEOUT)
    assert outcome.reason == "timed out after 1 s (hydra.launcher.timeout_s)"
    assert outcome.log_tail == ("busy",)


def test_helpers_that_do_not_listen_are_ended_with_their_job(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    shell = Command(
        "/bin/sh",
        "-c",
        f"(trap '' TERM; sh -c 'echo $PPID' > {pids}; while :; do sleep 1; done) & wait",
    )

    def begun() -> bool:
        return pids.exists() and pids.read_text() != ""

    outcome_of(shell, tmp_path, Limits(grace_s=0.2), cancel_when=begun)
    wait_until(lambda: not alive(int(pids.read_text())), "the helper is gone")


def test_what_a_job_leaves_behind_is_gone_when_its_end_is_told(tmp_path: Path) -> None:
    """Not only when the sweep is: its device goes to the next job."""
    pid = tmp_path / "pid"
    text = f"(trap '' TERM; echo $$ > {pid}; while :; do sleep 1; done) & until [ -s {pid} ]; do :; done"

    shell = Command("/bin/sh", "-c", text.replace("$$", "$(exec sh -c 'echo $PPID')"))
    pool = Pool(CpuProbe(1, {}), LeaseFolder())
    executor = LocalExecutor(shell, JobFiles.of(tmp_path), pool)
    try:
        executor.submit(Job(0, ()))
        wait_until(lambda: executor.wait(0.1), "the job ends")
        # Killed it is by now; the kernel may take a moment more.
        wait_until(lambda: not alive(int(pid.read_text())), "it is gone")
    finally:
        executor.close()
        with suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_log_of_any_bytes_has_last_lines(tmp_path: Path) -> None:
    text = r"import sys; sys.stdout.buffer.write(b'\xff\xfe' * 20000 + b'\nlast\n'); sys.exit(4)"
    outcome = outcome_of(script(text), tmp_path)
    assert (outcome.reason, outcome.log_tail[-1]) == ("exit status 4", "last")


def test_a_job_that_was_reaped_is_never_signalled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its end and the sweep's hearing of it, its number may already be a stranger's."""

    sent: list[int] = []
    monkeypatch.setattr(running, "signal_group", lambda group, number: sent.append(number))
    pool = Pool(CpuProbe(1, {}), LeaseFolder(tmp_path / "leases"))
    executor = LocalExecutor(
        Command("/bin/true"), JobFiles.of(tmp_path), pool, Limits(grace_s=0.05)
    )
    executor.submit(Job(0, ()))
    (job,) = executor._running.values()
    wait_until(lambda: not executor._ended.empty(), "the job's thread is done with it")
    executor.cancel(Job(0, ()))
    executor.close()
    assert sent == [] and job._due == []
