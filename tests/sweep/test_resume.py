"""kill -9 at any moment, then the same command: nothing lost, nothing repeated, nothing left."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bench import APPS, Bench, wait_until

from autocl_sweeper.errors import JournalDamagedError
from autocl_sweeper.journal import NAME, Journal

OURS = "hydra/sweeper=autocl"
# Jobs are forked where a test does not say otherwise: they start in a tenth of the time.
LAUNCHERS = {
    "gpu": (
        "hydra/launcher=gpu",
        "hydra.launcher.cpu_slots=2",
        "hydra.launcher.order=submitted",
        "hydra.launcher.warm=true",
    ),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "basic": ("hydra/launcher=basic", "hydra.sweeper.max_batch_size=3"),
}
# Trials have the numbers of the uninterrupted sweep only when durations have no say in their order;
# test_pipeline.py has those that begin early.
SEARCH = (OURS, "task=a,b", "lr=1,2,3", "hydra.sweeper.pipeline=false")
COMMAND = (*SEARCH, *LAUNCHERS["gpu"])
SMALLER = (*SEARCH[:2], "lr=1,2", "hydra.sweeper.top_k=1", *SEARCH[3:])


def table(bench: Bench) -> list[dict[str, str]]:
    """trials.csv without what another run may do differently."""
    with open(bench.sweep / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "attempt")} for row in rows]


def results(bench: Bench) -> dict[str, Any]:
    """optimization_results.yaml without the folder's own path."""
    return json.loads(json.dumps(bench.results()).replace(str(bench.sweep), "<sweep>"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("uninterrupted"), APPS / "chain.py")
    try:
        bench.run(*COMMAND)
        yield bench
    finally:
        bench.close()


def cannot_run_again(bench: Bench) -> set[int]:
    """Trials whose outcome is on disk, in the journal or beside it."""
    told = {int(path.stem) for path in (bench.sweep / ".autocl").glob("[0-9]*.json")}
    return told | set(bench.finished())


def kill_at_random(
    bench: Bench, command: tuple[str, ...], kills: int, seed: int, jobs_last_s: float
) -> None:
    """Run the command until it completes, killing it `kills` times before; check what stays."""
    chance = random.Random(seed)
    killed = 0
    done: set[int] = set()
    while True:
        starts = len(bench.ledger("start"))
        lines = len(bench.events())
        process = bench.start(*command, LASTS_S=str(jobs_last_s))
        if killed < kills:
            target = lines + chance.randint(0, 5)
            wait_until(
                lambda p=process, n=target: p.poll() is not None or len(bench.events()) > n,
                "the journal grows",
            )
            time.sleep(chance.uniform(0, 2 * jobs_last_s))
        if killed == kills or process.poll() is not None:
            output = bench.finish(process)
            assert process.returncode == 0, output
        else:
            process.kill()
            process.wait()
            killed += 1
        again = {event["trial"] for event in bench.ledger("start")[starts:]} & done
        assert not again, f"trials {again} ran again after kill {killed} (seed {seed})"
        if process.returncode == 0:
            return
        done = cannot_run_again(bench)
        if killed % 2:  # else the next one meets what the dead one left
            wait_until(bench.nothing_is_left, f"all is gone after kill {killed} (seed {seed})")


@pytest.mark.parametrize("seed", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_sweep_killed_again_and_again_ends_as_the_uninterrupted_one(
    chain: Bench, uninterrupted: Bench, seed: int
) -> None:
    kill_at_random(chain, COMMAND, kills=2 * (3 - seed), seed=seed, jobs_last_s=0.15)
    check_as_uninterrupted(chain, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("warm", ["true", "false"], ids=["warm", "fresh"])
@pytest.mark.parametrize("seed", range(10, 20))
def test_many_sweeps_killed_again_and_again(
    chain: Bench, uninterrupted: Bench, seed: int, warm: str
) -> None:
    command = (*COMMAND, f"hydra.launcher.warm={warm}")
    kill_at_random(chain, command, kills=8, seed=seed, jobs_last_s=0.1 * (seed % 4))
    check_as_uninterrupted(chain, uninterrupted)


def check_as_uninterrupted(bench: Bench, uninterrupted: Bench) -> None:
    assert table(bench) == table(uninterrupted)
    assert results(bench) == results(uninterrupted)
    starts = [event["trial"] for event in bench.events("start") if event["attempt"] == 1]
    assert starts == list(range(9))
    ends = [event["trial"] for event in bench.events("finish")]
    assert sorted(ends) == list(range(9))
    assert checkpoints(bench) == checkpoints(uninterrupted)
    assert not list(bench.sweep.glob(".*"))
    assert bench.nothing_is_left()


@pytest.mark.parametrize("launcher", [pytest.param("joblib", marks=pytest.mark.slow), "basic"])
def test_jobs_of_other_launchers_that_ended_before_the_kill_are_taken_over(
    chain: Bench, uninterrupted: Bench, launcher: str
) -> None:
    command = (*SEARCH, *LAUNCHERS[launcher])
    process = chain.start(*command, LASTS_S="0.5")
    wait_until(lambda: list((chain.sweep / ".autocl").glob("[0-9].json")), "a first outcome")
    # A worker of joblib that has not had a job yet waits for one for five minutes.
    workers = 2 if launcher == "joblib" else 1
    wait_until(lambda: len({e["pid"] for e in chain.ledger("start")}) == workers, "all have a job")
    process.kill()
    process.wait()
    wait_until(chain.nothing_is_left, "the workers are gone")
    done = cannot_run_again(chain)
    assert done and not chain.finished()
    starts = len(chain.ledger("start"))
    chain.run(*command)
    assert not done & {event["trial"] for event in chain.ledger("start")[starts:]}
    assert table(chain) == table(uninterrupted)


def test_a_plain_sweep_of_fresh_interpreters_goes_on_too_and_succeeds(chain: Bench) -> None:
    command = (OURS, *LAUNCHERS["gpu"], "hydra.launcher.warm=false", "lr=1,2,3")
    kill_at_random(chain, command, kills=1, seed=5, jobs_last_s=0.1)
    assert sorted(chain.finished()) == list(range(3))
    assert {path.name for path in chain.sweep.iterdir() if path.name.isdecimal()} == set("012")


def test_a_finished_sweep_runs_nothing_again(chain: Bench, uninterrupted: Bench) -> None:
    shutil.copytree(uninterrupted.sweep, chain.sweep)
    journal = (chain.sweep / "journal.jsonl").read_bytes()
    chain.run(*COMMAND)
    assert chain.ledger() == []
    assert (chain.sweep / "journal.jsonl").read_bytes().startswith(journal)
    assert table(chain) == table(uninterrupted)
    assert results(chain)["chain"][0]["params"] == results(uninterrupted)["chain"][0]["params"]


# -- what may change and what may not ---------------------------------------------------------------


def refused(bench: Bench, command: list[str], *changes: str) -> None:
    before = {path: path.read_bytes() for path in bench.sweep.iterdir() if path.is_file()}
    output = bench.run(*command, status=1)
    assert f"ChangedSweepError: '{bench.sweep}' holds a sweep with another configuration" in output
    for change in changes:
        assert change in output
    assert "set another hydra.sweep.dir" in output
    assert bench.ledger() == []
    assert {path: path.read_bytes() for path in bench.sweep.iterdir() if path.is_file()} == before


def test_every_change_that_would_alter_results_is_refused_by_name(
    chain: Bench, uninterrupted: Bench
) -> None:
    shutil.copytree(uninterrupted.sweep, chain.sweep)
    changed = ("task=b,a", "lr=1,2,4", "momentum=0.5", "hydra.sweeper.top_k=1")
    refused(
        chain, [OURS, *changed, *SEARCH[3:], *LAUNCHERS["gpu"]],
        "hydra.sweeper.sequence: was ['a', 'b'], is ['b', 'a']",
        "search space / a / lr: was [1, 2, 3], is [1, 2, 4]",
        "configuration / a / momentum: was 0.9, is 0.5",
        "hydra.sweeper.top_k: was 2, is 1",
    )  # fmt: skip


EDITS = (
    ("chain.yaml", "momentum: 0.9", "momentum: 0.8", "a / momentum: was 0.9, is 0.8"),
    ("task/b.yaml", "name: b", "name: bee", "b / task.name: was 'b', is 'bee'"),
    ("optimizer/sgd.yaml", "nesterov: false", "nesterov: true",
     "a with optimizer=sgd / optimizer.nesterov: was False, is True"),
)  # fmt: skip


def test_a_value_edited_in_the_apps_configuration_is_refused_by_name(
    benches: Callable[..., Bench], tmp_path: Path
) -> None:
    shutil.copytree(APPS, tmp_path / "apps")
    bench = benches(tmp_path / "apps/chain.py")
    command = [OURS, "task=a,b", "lr=1", "optimizer=adam,sgd", *LAUNCHERS["gpu"]]
    bench.run(*command)
    bench.ledger_file.unlink()
    texts = {}
    for file, before, after, _ in EDITS:
        edited = tmp_path / "apps/conf" / file
        texts[edited] = edited.read_text()
        edited.write_text(texts[edited].replace(before, after))
    refused(bench, command, *(change for *_, change in EDITS))
    for edited, text in texts.items():
        edited.write_text(text)
    bench.run(*command)
    assert bench.ledger() == []


def test_launcher_failures_and_retries_may_change(chain: Bench, uninterrupted: Bench) -> None:
    shutil.copytree(uninterrupted.sweep, chain.sweep)
    chain.run(
        *SEARCH, "hydra/launcher=basic", "hydra.sweeper.max_failures=3", "hydra.sweeper.retries=2"
    )
    assert chain.ledger() == []
    assert table(chain) == table(uninterrupted)


def test_after_no_trial_survived_more_retries_run_the_failed_ones_again(
    chain: Bench, uninterrupted: Bench
) -> None:
    fails = chain.folder / "fails"
    fails.write_text("[1, 2, 3]")
    output = chain.run(*COMMAND, FAILS=str(fails), status=1)
    assert "NoSurvivorError: No trial of task 'a' survived" in output
    assert "RuntimeError: lr=2 is not for today" in output
    assert "hydra.sweeper.retries=1 to run them again" in output
    assert "NoSurvivorError" in chain.run(*COMMAND, FAILS=str(fails), status=1)
    assert len(chain.ledger("start")) == 3
    fails.unlink()
    chain.run(*COMMAND, "hydra.sweeper.retries=1")
    assert table(chain) == table(uninterrupted)
    assert (chain.sweep / "1_a/0.attempt1/job.log").exists()


def test_a_mended_app_goes_on_after_its_jobs_were_refused(
    benches: Callable[..., Bench], tmp_path: Path
) -> None:
    """Resuming must not stumble over the outcomes that stopped the sweep."""
    shutil.copytree(APPS, tmp_path / "apps")
    app = tmp_path / "apps/chain.py"
    code = app.read_text()
    bench = benches(app)
    command = (*SMALLER, *LAUNCHERS["gpu"])
    mistakes = [("    return score", "    return None"), ("if cfg.saves:", "if not cfg.saves:")]
    for right, wrong in mistakes:
        app.write_text(code.replace(right, wrong))
        assert "JobContractError: Trial" in bench.run(*command, status=1)
    app.write_text(code)
    bench.run(*command)
    assert [event["state"] for event in bench.finished().values()] == ["COMPLETE"] * 4


# -- signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, launcher",
    [
        ("SIGTERM", "gpu"),
        pytest.param("SIGINT", "gpu", marks=pytest.mark.slow),
        pytest.param("SIGTERM", "joblib", marks=pytest.mark.slow),
        pytest.param("SIGINT", "joblib", marks=pytest.mark.slow),
        pytest.param("SIGTERM", "basic", marks=pytest.mark.slow),
        ("SIGINT", "basic"),
    ],
)
def test_a_signal_leaves_no_process_and_no_lease_and_the_sweep_goes_on_later(
    chain: Bench, launcher: str, name: str
) -> None:
    command = (OURS, "task=a", "lr=1,2", *LAUNCHERS[launcher])
    process = chain.start_held(1, *command)
    process.send_signal(signal.Signals[name])
    output = chain.finish(process)
    assert process.returncode != 0
    assert f"To continue it: hydra.sweep.dir='{chain.sweep}'" in output
    wait_until(chain.nothing_is_left, "nothing is left")
    chain.hold.unlink()
    chain.run(*command)
    assert [event["state"] for event in chain.finished().values()] == ["COMPLETE"] * 2


@pytest.mark.parametrize(
    "name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow), "SIGKILL"]
)
def test_a_signal_to_our_launcher_under_hydras_basic_sweeper_leaves_nothing(
    chain: Bench, name: str
) -> None:
    process = chain.start_held(2, *LAUNCHERS["gpu"], "hydra.launcher.warm=false", "lr=1,2")
    process.send_signal(signal.Signals[name])
    process.wait()
    wait_until(chain.nothing_is_left, "nothing is left")


# -- checkpoints ------------------------------------------------------------------------------------


def checkpoints(bench: Bench) -> set[int]:
    return {int(path.parent.name) for path in bench.sweep.glob("*/*/checkpoint")}


def test_checkpoints_of_the_beam_and_its_ancestors_stay(uninterrupted: Bench) -> None:
    parents = {event["trial"]: event["parent"] for event in uninterrupted.events("start")}
    kept = set(uninterrupted.results()["beams"][2])
    kept |= {parents[number] for number in kept}
    assert checkpoints(uninterrupted) == kept
    assert len(kept) < 9


def test_checkpoints_of_losers_go_while_their_stage_still_runs(chain: Bench) -> None:
    one_by_one = (*LAUNCHERS["gpu"], "hydra.launcher.cpu_slots=1")
    process = chain.start_held(4, OURS, "task=a", "lr=3,2,1,4", *one_by_one, HOLDS="[4]")
    wait_until(lambda: checkpoints(chain) == {0, 1}, "that of the third is gone")
    chain.release(process)
    assert checkpoints(chain) == {3, 0}


# -- the journal ------------------------------------------------------------------------------------


def journal_of_three(folder: Path) -> bytes:
    journal = Journal(folder)
    for number in range(3):
        journal.append("start", trial=number, text="Ünïcode and \r\n line ends")
    journal.close()
    return (folder / NAME).read_bytes()


def trials(folder: Path) -> list[int]:
    journal = Journal(folder)
    journal.close()
    return [record["trial"] for record in journal.records]


def test_a_record_torn_at_any_byte_is_dropped_and_the_next_append_survives(tmp_path: Path) -> None:
    data = journal_of_three(tmp_path)
    last = data[:-1].rindex(b"\n") + 1
    for length in range(last, len(data)):
        (tmp_path / NAME).write_bytes(data[:length])
        journal = Journal(tmp_path)
        assert [record["trial"] for record in journal.records] == [0, 1], length
        journal.append("start", trial=7)
        journal.close()
        assert trials(tmp_path) == [0, 1, 7], length


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 100, b"\0" * 100 + b"\n", b"\xff\n", b"[]\n", b"{}\n", b"\n", b"a\rb\r\nc", b"a\rb\n"],
)
def test_rubbish_at_the_end_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    data = journal_of_three(tmp_path)
    (tmp_path / NAME).write_bytes(data + tail)
    assert trials(tmp_path) == [0, 1, 2]
    assert (tmp_path / NAME).read_bytes() == data


def test_rubbish_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    lines = journal_of_three(tmp_path).splitlines(keepends=True)
    (tmp_path / NAME).write_bytes(b"".join([lines[0], b"rubbish\n", lines[2]]))
    with pytest.raises(JournalDamagedError, match=r"Line 2 of '.*rubbish"):
        Journal(tmp_path)


def test_a_journal_of_another_version_is_refused(chain: Bench) -> None:
    chain.sweep.mkdir()
    (chain.sweep / NAME).write_text('{"event": "sweep", "version": 0, "fingerprint": {}}\n')
    output = chain.run(*COMMAND, status=1)
    assert "SweepFolderError" in output
    assert "is a journal of version 0; this package writes version 1" in output


def test_a_configuration_with_nan_and_inf_is_the_same_when_read_again(chain: Bench) -> None:
    command = (OURS, "task=a", "momentum=nan", "+clip=inf", "lr=1,inf", *LAUNCHERS["gpu"])
    chain.run(*command)
    assert [chain.finished()[n]["state"] for n in (0, 1)] == ["COMPLETE", "FAIL"]
    chain.ledger_file.unlink()
    chain.run(*command)
    assert chain.ledger() == []
