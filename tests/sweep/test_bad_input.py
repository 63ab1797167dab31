"""Mistakes are told before a job starts: key, value, rule and remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.bench import APPS, Bench

OURS = ("hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2")
WARM = (*OURS, "hydra.launcher.warm=true")
ONE_BY_ONE = (*WARM, "hydra.launcher.cpu_slots=1")
S = "hydra.sweeper"

# what -> arguments, what the message must say: key, value, rule, remedy. Without an app:
# test_plan.py, test_spaces.py, test_protocols.py.
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "an unknown searched key": (
        ["task=a", "learning_rate=1,2"],
        ["cannot be composed", "learning_rate=1", "prefix a new one with '+'"],
    ),
    "a choice that is no config": (
        ["task=a", "optimizer=adam,sgdd"],
        ["cannot be composed", "optimizer/sgdd", "must name a file of its group"],
    ),
    "a task without a config": (
        ["task=a,b,d"],
        ["ConfigurationError: Task 'd' cannot be composed", "task/d", "task=d",
         "must name a file of its group"],
    ),
    "an unknown key in the settings of a task": (
        ["task=a,b", f"+{S}.task_params.b=[{{lr:1}},{{lrr:1}}]"],
        ["Task 'b' cannot be composed", "lrr=1"],
    ),
    "a value in a file": (
        ["task=a", "+wrong=top_k"],
        [f"{S}.top_k=0, but it must be at least 1", f"{S}.top_k stands in ", "wrong/top_k.yaml:4."],
    ),
    "a sequence in a file that is not given": (
        ["+wrong=sequence"],
        [f"{S}.sequence=task, but task is not given", f"{S}.sequence=null", "wrong/sequence.yaml:4."],
    ),
    "a search that is null": ([f"{S}.search=null"], [f"{S}.search=None", "hydra/sweeper/search=grid"]),
    "a misspelt setting": (["task=a", f"{S}.topk=3"], ["topk"]),
    "a handover to a key the app does not have": (
        ["task=a,b", f"+{S}.handover.start_from=checkpoint"],
        ["Task 'b' cannot be composed", "no key 'start_from'", "Add `start_from: null`",
         f"{S}.handover.start_from=null"],
    ),
    "a value Hydra cannot read": (
        ["task=a", f"+{S}.params.lr='choice(1'"],
        [f"{S}.params", "'lr'", "choice(1"],
    ),
    "more devices than there are": (
        ["task=a", "hydra.launcher.devices_per_job=3"],
        ["DeviceError", "wants 3 devices, and 2 can serve it"],
    ),
    "jobs on a cluster that outlive their sweep": (
        ["task=a", "hydra/launcher=ray", "hydra.launcher.on_controller_death=finish"],
        ["on_controller_death=finish is not possible on a Ray cluster", "Leave it at 'kill'"],
    ),
    "the launcher's retries under our sweeper": (
        ["task=a", "hydra.launcher.retries=2"],
        ["hydra.launcher.retries=2", "hydra.sweeper.retries=2", "No job was started"],
    ),
    "a sequence that is not given": (
        [f"{S}.sequence=tsk", "task=a,b", "lr=1,2"],
        [f"{S}.sequence=tsk, but tsk is not given", f"Did you mean {S}.sequence=task?"],
    ),
    "repeats whose seed goes to a key the app does not have": (
        ["task=a", "lr=1,2", f"{S}.seeds=3", f"+{S}.handover.trainer.seed=seed"],
        ["Task 'a' cannot be composed", "Add `seed: null` to it below `trainer`"],
    ),
}  # fmt: skip


# Runs an app with several lists of arguments, each in a fork of a process that has imported it all.
FORKS = """
import json, os, runpy, sys
import autocl_sweeper.hydra_sweep
from hydra.core.plugins import Plugins
Plugins.instance()
for place, arguments in enumerate(json.loads(sys.argv[2])):
    if os.fork() == 0:
        output = os.open(f"output-{place}", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.argv = [sys.argv[1], "-m", f"hydra.sweep.dir=sweep-{place}", *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bench, dict[str, int]]]:
    """Every mistake was made in a sweep of its own; and with what status it ended."""
    bench = Bench(tmp_path_factory.mktemp("mistakes"), APPS / "chain.py")
    tried = json.dumps([[*OURS, *arguments] for arguments, _ in MISTAKES.values()])
    command = [sys.executable, "-c", FORKS, str(bench.app), tried]
    done = subprocess.run(
        command, cwd=bench.folder, env=bench.environment, text=True, stdout=subprocess.PIPE, check=True
    )  # fmt: skip
    yield bench, dict(zip(MISTAKES, map(int, done.stdout.split()), strict=True))
    bench.close()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_remedy_before_any_job(
    made: tuple[Bench, dict[str, int]], mistake: str
) -> None:
    bench, statuses = made
    place = list(MISTAKES).index(mistake)
    output = (bench.folder / f"output-{place}").read_text()
    missing = [word for word in MISTAKES[mistake][1] if word not in output]
    assert not missing, f"the message lacks {missing}:\n{output}"
    assert statuses[mistake] == 1 and "Traceback" not in output
    assert bench.ledger() == []
    folders = {path.name for path in (bench.folder / f"sweep-{place}").glob("*") if path.is_dir()}
    assert folders <= {"configuration"}, "a job folder was made"


def test_a_second_sweep_in_a_folder_is_refused_and_the_first_one_not_disturbed(
    chain: Bench,
) -> None:
    first = chain.start_held(2, *OURS, "task=a", "lr=1,2,3")
    before = files_of(chain.sweep)
    output = chain.run(*OURS, "task=b", "lr=4,5", "momentum=0.1", status=1)
    assert f"SweepLockedError: Another sweep is running in '{chain.sweep}'" in output
    assert f"(pid {first.pid} on " in output
    assert "One folder holds one sweep at a time" in output
    assert "set another hydra.sweep.dir" in output
    assert files_of(chain.sweep) == before
    assert "complete" in chain.release(first)
    assert {event["params"]["lr"] for event in chain.events("start")} == {1, 2, 3}


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_cannot_be_written_is_an_error_not_a_trace(chain: Bench) -> None:
    """A regular file on the way: not even root can write below it."""
    (chain.folder / "file").touch()
    chain.sweep = chain.folder / "file" / "sweep"
    output = chain.run(*OURS, "task=a", status=1)
    assert f"SweepFolderError: Cannot write the sweep folder '{chain.sweep}'" in output
    assert "Not a directory" in output
    assert "Set hydra.sweep.dir to a folder you may write" in output
    assert "Traceback" not in output
    assert chain.ledger() == []


def test_a_folder_of_leases_that_others_may_write_is_refused(chain: Bench) -> None:
    chain.leases.mkdir(mode=0o700)
    chain.leases.chmod(0o777)
    output = chain.run(*OURS, "task=a", status=1)
    assert "DeviceError: the folder of device leases" in output
    assert "chmod 700 fixes that" in output
    assert not chain.sweep.exists()


# -- what shows only when jobs run ------------------------------------------------------------------


def test_a_missing_checkpoint_is_told_after_the_first_trial(chain: Bench) -> None:
    output = chain.run(*WARM, "task=a,b", "lr=1,2,3,4,5,6", "saves=false", status=1)
    assert "saved no checkpoint, but the next stage starts from it (init_from=<checkpoint>)" in (
        output
    )
    assert "saves its model in 'checkpoint/'" in output
    assert f"set {S}.handover.init_from=null" in output
    assert "job.log" in output
    assert len(chain.ledger("start")) <= 4  # both slots, and perhaps again in the same moment
    assert chain.nothing_is_left()


def test_tasks_that_do_not_build_on_each_other_need_no_checkpoint(chain: Bench) -> None:
    chain.run(*WARM, "task=a,b", "lr=1,2", "saves=false", f"{S}.handover.init_from=null")
    assert len(chain.finished()) == 6


def test_the_last_task_needs_no_checkpoint(chain: Bench) -> None:
    chain.run(*WARM, "task=a", "lr=1,2", "saves=false")
    assert [step["checkpoint"] for step in chain.results()["chain"]] == [None]


@pytest.mark.parametrize(
    "launcher, fault, reason",
    [
        ("gpu", "no_score", "what it returned has no number 'score' (it has: loss)"),
        ("basic", "nothing", "it returned nothing"),
    ],
)
def test_a_first_job_that_cannot_be_ranked_stops_the_sweep_and_says_what_to_return(
    benches: Callable[..., Bench], launcher: str, fault: str, reason: str
) -> None:
    bench = benches("faults")
    chosen = {"gpu": ONE_BY_ONE, "basic": ("hydra/sweeper=autocl", "hydra/launcher=basic")}
    output = bench.run(*chosen[launcher], "task=a", f"fault={fault},fine", status=1)
    assert f"JobContractError: Trial 0 (task 'a') cannot be ranked: {reason}." in output
    assert "a job returns a number, or a\n  mapping with 'score'" in output
    where = {"gpu": "full log: {}/1_a/0/job.log", "basic": "its folder: {}/1_a/0"}[launcher]
    assert where.format(bench.sweep) in output
    assert bench.nothing_is_left()


def test_a_first_job_that_returns_nan_is_one_failure_and_the_others_go_on(
    benches: Callable[..., Bench],
) -> None:
    bench = benches("faults")
    bench.run(*ONE_BY_ONE, "task=a", "fault=returns_nan,fine")
    assert [bench.finished()[n]["reason"] for n in (0, 1)] == ["its score is nan", ""]


def test_a_stage_without_survivors_stops_the_sweep_with_the_reasons(
    benches: Callable[..., Bench],
) -> None:
    bench = benches("faults")
    output = bench.run(*WARM, "task=a,b", "fault=returns_nan,exception,exit_3,sigkill", status=1)
    assert "NoSurvivorError: No trial of task 'a' survived" in output
    assert "trial 3: killed by SIGKILL" in output
    assert "| about to: exit_3" in output
    assert f"full log: {bench.sweep}/1_a/1/job.log" in output
    assert "and 1 more, in" in output
    assert f"{S}.retries=1 to run them again" in output
    assert bench.results()["chain"] == []
    assert not (bench.sweep / "2_b").exists()


def test_failures_alike_are_printed_once_with_their_count(chain: Bench) -> None:
    fails = chain.folder / "fails"
    fails.write_text("[1, 2, 3, 4]")
    output = chain.run(*WARM, "task=a", "lr=1,2,3,4", status=1, FAILS=str(fails))
    assert "4 trials (0, 1, 2, ...): RuntimeError: lr=4 is not for today\n" in output
    assert output.count("full log:") == 1


def test_without_a_sequence_the_best_value_and_the_failures_are_printed(chain: Bench) -> None:
    fails = chain.folder / "fails"
    fails.write_text("[3, 4]")
    several = (*WARM, "lr=1,2,3,4", f"{S}.max_failures=4")
    lines = chain.run(*several, FAILS=str(fails)).splitlines()
    assert "Best of 4 trials: 2.0000, trial 1 (lr=2)" in lines
    assert "2 of 4 trials failed:" in lines
    assert "  2 trials (2, 3): RuntimeError: lr=3 is not for today" in lines
    assert f"All trials: {chain.sweep / 'trials.csv'}" in lines
    assert (chain.results()["best_value"], chain.results()["best_params"]) == (2, {"lr": 2})


NO_INIT_FROM = """
import pathlib
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg):
    print("starts from", cfg.get("init_from", cfg.start))
    pathlib.Path(HydraConfig.get().runtime.output_dir, "checkpoint").mkdir()
    return cfg.lr

main()
"""


@pytest.mark.parametrize(
    "advice",
    ["add the key", *(pytest.param(a, marks=pytest.mark.slow) for a in ("another name", "none"))],
)
def test_what_the_message_of_a_missing_init_from_advises_works(tmp_path: Path, advice: str) -> None:
    bench = Bench(tmp_path, tmp_path / "app.py")
    bench.app.write_text(NO_INIT_FROM)
    config = tmp_path / "conf" / "config.yaml"
    config.parent.mkdir()
    config.write_text("task: a\nlr: 1\nstart: null\n")
    tried = (*WARM, "task=a,b", "lr=1,2")
    output = bench.run(*tried, status=1)
    assert "no key 'init_from' (hydra.sweeper.handover.init_from=checkpoint)" in output
    added = ()
    if advice == "add the key":
        assert "Add `init_from: null` to it." in output
        config.write_text(config.read_text() + "init_from: null\n")
    elif advice == "another name":
        named = f"{S}.handover.init_from=null +{S}.handover.NAME=checkpoint"
        assert named in output
        added = tuple(named.replace("NAME", "start").split())
    else:
        assert f"If it needs none: {S}.handover.init_from=null." in output
        added = (f"{S}.handover.init_from=null",)
    bench.run(*tried, *added)
    job = bench.events("start")[-1]
    said = (bench.sweep / job["folder"] / "job.log").read_text()
    given = "None" if advice == "none" else f"{bench.sweep}/1_a/{job['parent']}/checkpoint"
    assert f"starts from {given}\n" in said
    bench.close()
