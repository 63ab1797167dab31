"""A sweep that is stopped by a signal, or whose controller is killed while its jobs go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from support.bench import Bench, wait_until

OURS = ("hydra/sweeper=autocl", "task=a")
GPU = (
    "hydra/launcher=gpu", "hydra.launcher.cpu_slots=3", "hydra.launcher.grace_s=1000",
    "hydra.launcher.warm=true",
)  # fmt: skip


def test_one_signal_lets_jobs_end_and_journals_them_and_another_one_kills(chain: Bench) -> None:
    command = (*OURS, *GPU, "lr=1,2,3,4")
    answers = '{"1": "finish", "2": "ignore", "3": "raise"}'
    process = chain.start_held(3, *command, ANSWERS=answers)
    for number in range(3):  # what tells the launcher where a job may be writing
        told = (chain.sweep / f".autocl/{number}.output").read_text()
        assert told == str(chain.sweep / f"1_a/{number}")
    process.send_signal(signal.SIGINT)
    wait_until(chain.finished, "the job that came to its end is in the journal")
    assert "stopping: 3 jobs get 1000 s to save; Ctrl-C again kills them" in (
        chain.printed(process)
    )
    log = chain.sweep / "1_a/2/job.log"
    wait_until(lambda: "there is no end to this" in log.read_text(), "another raises")
    assert process.poll() is None, "it did not wait for the one that does not listen"
    process.send_signal(signal.SIGINT)
    chain.finish(process)
    assert process.returncode == 130
    assert chain.nothing_is_left()
    assert {n: event["state"] for n, event in chain.finished().items()} == {0: "COMPLETE"}
    chain.hold.unlink()
    before = len(chain.ledger("start"))
    chain.run(*command)
    assert sorted(event["trial"] for event in chain.ledger("start")[before:]) == [1, 2, 3]
    assert {event["state"] for event in chain.finished().values()} == {"COMPLETE"}
    assert {event["lost"] for event in chain.events("attempt_failed")} == {True}


def test_alone_the_launcher_ends_at_one_signal_and_kills_at_another(chain: Bench) -> None:
    process = chain.start_held(2, *GPU, "lr=1,2", ANSWERS='{"1": "ignore"}')
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: len(chain.leased()) == 1, "the job that does not answer is over")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    chain.finish(process)
    assert process.returncode == 143
    assert chain.nothing_is_left()


FINISH = "hydra.launcher.on_controller_death=finish"


@pytest.mark.parametrize(
    "warm, killed_again",
    [("true", True), pytest.param("false", False, marks=pytest.mark.slow)],
    ids=["warm", "fresh"],
)
def test_jobs_that_outlive_their_controller_are_waited_for_and_adopted(
    chain: Bench, warm: str, killed_again: bool
) -> None:
    command = (
        *OURS, "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2", f"hydra.launcher.warm={warm}",
        FINISH, "lr=1,2,3",
    )  # fmt: skip
    chain.kill(chain.start_held(2, *command, REPORTS="2"))
    process = chain.start_held(2, *command, REPORTS="2")
    for number in (0, 1):
        line = f"the job of trial {number} outlived its controller and goes on"
        wait_until(lambda text=line: text in chain.printed(process), "it is waited for")
    assert len(chain.leased()) == 2
    if killed_again:
        chain.kill(process)
        chain.hold.unlink()
        wait_until(chain.nothing_is_left, "jobs, fork servers and guardians end by themselves")
        assert len(chain.ledger("end")) == 2
        process = chain.start_held(2, *command, REPORTS="2")
    chain.release(process)
    assert sorted(event["trial"] for event in chain.ledger("start")) == [0, 1, 2]
    assert {event["state"] for event in chain.finished().values()} == {"COMPLETE"}
    assert chain.events("attempt_failed") == []
    reports = [(event["trial"], event["step"]) for event in chain.events("report")]
    assert sorted(reports) == [(number, step) for number in range(3) for step in range(4)]
    wait_until(chain.nothing_is_left, "the helpers of the killed controllers end too")


@pytest.mark.parametrize(
    "warm", ["true", pytest.param("false", marks=pytest.mark.slow)], ids=["warm", "fresh"]
)
def test_alone_the_launchers_jobs_outlive_it_too_and_leave_nothing(
    benches: Callable[..., Bench], warm: str
) -> None:
    bench = benches("warm")
    # A module that is left out of the preload, for which the fork server begins again.
    (bench.folder / "leaves.py").write_text("import socket\nPAIR = socket.socketpair()\n")
    bench.environment["PYTHONPATH"] += os.pathsep + str(bench.folder)
    preload = ["hydra.launcher.preload=[json,leaves]"] if warm == "true" else []
    launched = (*GPU, f"hydra.launcher.warm={warm}", *preload, FINISH, "do=hold", "again=1,2")
    sweep = bench.start_held(2, *launched)
    assert "in fresh interpreters" not in bench.printed(sweep)
    bench.kill(sweep)
    bench.hold.unlink()
    wait_until(bench.nothing_is_left, "the jobs, and the children they leave, are gone")
    for number in (0, 1):
        told = next(bench.sweep.glob(f".autocl/launch-*/{number}.json")).read_text()
        assert '"COMPLETE"' in told
