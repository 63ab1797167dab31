"""Jobs that train in several processes: how these start, train and end."""

from __future__ import annotations

import ast
import json
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.bench import wait_until
from support.runs import finish, of
from support.train_app import ENV, ROOT, SMALL, train

from autocl_sweeper.outcome import cause_of
from autocl_sweeper.types import Cause
from train import processes
from train.config.env import EnvSettings
from train.config.typed import SettingsError
from train.processes import command, start, threads

NO_RUN: Any = None  # nothing is trained
DIGITS = ("task=digits_01", *SMALL, "trainer.logging_steps=1")
HERE = "--master-addr=127.0.0.1 --master-port=4000"
MACHINES: dict[str, Any] = {"nnodes": 2, "master_addr": "10.0.0.1", "port": 29500}


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"nproc_per_node": 2}, "--standalone --nproc-per-node=2"),
        ({"nproc_per_node": 2, "port": 4000}, f"{HERE} --nproc-per-node=2"),
        ({"nproc_per_node": 2, "master_port": 4000}, f"{HERE} --nproc-per-node=2"),
        ({**MACHINES, "rank": 1},
         "--nnodes=2 --node-rank=1 --master-addr=10.0.0.1 --master-port=29500 --nproc-per-node=1"),
    ],
)  # fmt: skip
def test_the_command_is_that_of_torch_distributed_run(settings: dict[str, Any], flags: str) -> None:
    argv = command(EnvSettings(**settings), Path("/run/it's here/order.pickle"))
    assert argv == [
        *(sys.executable, "-m", "torch.distributed.run"),
        *flags.split(),
        *("-m", "train.worker", "/run/it's here/order.pickle"),
    ]


@pytest.mark.parametrize(
    ("processes", "environ", "cores", "expected"),
    [
        (1, {}, 8, None),
        (2, {}, 8, "4"),
        (3, {}, 8, "2"),
        (4, {}, 2, "1"),
        (2, {"OMP_NUM_THREADS": "5"}, 8, None),
        (2, {"OMP_NUM_THREADS": "6", "AUTOCL_THREADS": "6"}, 8, "3"),  # the launcher's, per job
        (1, {"OMP_NUM_THREADS": "6", "AUTOCL_THREADS": "6"}, 8, None),
    ],
)
def test_processes_divide_the_cores(
    processes: int, environ: dict[str, str], cores: int, expected: str | None
) -> None:
    assert threads(EnvSettings(nproc_per_node=processes), environ, cores) == expected


@pytest.mark.parametrize(
    ("leased", "wanted", "seen"),
    [(None, None, "7"), (None, "2", "2"), (None, "", ""), ("GPU-1", "2", "7"), ("GPU-1", "", "7")],
)
def test_the_gpus_asked_for_are_those_of_the_job_alone_and_a_lease_wins(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    leased: str | None,
    wanted: str | None,
    seen: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.delenv("AUTOCL_DEVICES", raising=False)
    if leased is not None:
        monkeypatch.setenv("AUTOCL_DEVICES", leased)
    env = EnvSettings(cuda_visible_devices=wanted)
    with caplog.at_level(logging.INFO, "train.processes"):
        job = start(NO_RUN, env, Path(), lambda: os.environ["CUDA_VISIBLE_DEVICES"])
    assert job == seen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    refused = "is not exported: the launcher leased GPU-1 to this job" in caplog.text
    assert refused is (leased is not None)


def test_mixed_precision_goes_off_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    from train.loop.ranks import arguments

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fitting = arguments({"fp16": True, "bf16": False, "learning_rate": 0.5})
    assert fitting["learning_rate"] == 0.5 and fitting["use_cpu"]
    assert not {"fp16", "bf16"} & fitting.keys()
    assert "trainer.fp16=true has no effect on the CPU" in caplog.text
    assert "bf16" not in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert arguments({"fp16": True})["fp16"] and "use_cpu" not in arguments({})


def test_a_port_that_is_taken_is_refused_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        env = EnvSettings(nproc_per_node=2, port=port)
        with pytest.raises(SettingsError, match=rf"env\.port={port}: Address already in use"):
            start(NO_RUN, env, Path(), lambda: None)


def test_workers_read_the_run_as_it_was(make_job: Any, tmp_path: Path) -> None:
    run = make_job("trainer.lr_scheduler_kwargs={x: '\\${y} é'}")
    order = processes.Order(run, tmp_path, {}, 1)
    assert pickle.loads(pickle.dumps(order)) == order
    assert run.trainer["lr_scheduler_kwargs"] == {"x": "${y} é"}


# -- real processes ---------------------------------------------------------------------------------

LINE = re.compile(r"step \d+: (\{.*\})")


def started(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """`python train.py` in the background; what it prints goes to the file `output`."""
    with open(folder / "output", "wb") as output:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *DIGITS, *overrides],
            cwd=folder,
            env=ENV | {"MARK": str(folder)},
            stdout=output,
            stderr=output,
        )


def curve(text: str) -> list[dict[str, float]]:
    """Trainer's log entries of the steps, in order."""
    entries = [ast.literal_eval(found) for found in LINE.findall(text)]
    return [entry for entry in entries if "loss" in entry]


def both_ways(
    run: Any,
    halves: list[str],
    folder: Path,
    caplog: Any,
    numbers: list[str],
    within: float = 1e-12,
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Curve and results of a job in two processes, which are those of `run` in this one."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "train.loop"):
        alone = finish(run, folder / "alone")
    done = train(folder, *halves, "env.nproc_per_node=2", "hydra.run.dir=both")
    assert done.returncode == 0, done.stdout + done.stderr
    expected, seen = curve(caplog.text), curve((folder / "both/train.log").read_text())
    assert len(expected) == len(seen) == alone["steps"] > 1
    for one, two in zip(expected, seen, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=within)
    results = json.loads((folder / "both/all_results.json").read_text())
    for key in ("train_loss", *numbers):
        assert results[key] == pytest.approx(alone[key], rel=1e-5)
    assert results["eval"] == alone["eval"] and results["test"] == alone["test"]
    return seen, results


def test_two_processes_train_as_one_does_at_the_same_global_batch(
    make_job: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The third task of a chain: adapters, both penalties, accumulation, a last batch cut short."""
    parent, few = "null", ["evaluation.dev_share=0.4", "evaluation.test_share=0.4"]
    for task in ("digits_01", "digits_23"):
        run = make_job(f"task={task}", f"init_from={parent}", "+trainer.max_steps=2", *few)
        parent = finish(run, tmp_path / task)["checkpoint"]
    third = ["task=digits_45", *few, f"init_from={parent}", "delta.lamda_2=0.01",
             "trainer.gradient_accumulation_steps=2", "trainer.logging_steps=1"]  # fmt: skip
    run = make_job(*third, "trainer.per_device_train_batch_size=16")
    halves = [*DIGITS, *third, "trainer.per_device_train_batch_size=8"]
    numbers = ["orthogonal_loss_first", "orthogonal_loss", "l2_loss", "a_norm"]
    _, results = both_ways(run, halves, tmp_path, caplog, numbers)
    assert results["orthogonal_loss"] > 0
    left = {p.relative_to(tmp_path / "both").as_posix() for p in (tmp_path / "both").rglob("*")}
    assert {name for name in left if name.startswith(".node")} == {".node0", ".node0/order.pickle"}
    assert "checkpoint/task3/adapter_model.safetensors" in left


@pytest.mark.slow
def test_two_processes_train_several_tasks_as_one_does_at_the_same_global_batch(
    make_job: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Image and text, in unlike shares, over several epochs of the one and less than one of the other.

    The second link of a chain, so that an adapter is trained; an epoch ends with an uneven micro-batch.
    """
    shares = ["evaluation.dev_share=0.02", "evaluation.test_share=0.02"]
    # Dropout is the one thing that differs between processes, on purpose.
    both = ["model=unify_tiny", "model.num_decoder_layers=1", "trainer.logging_steps=1", *shares]
    first = [*both, "task=sentiment", "+trainer.max_steps=1"]
    parent = finish(make_job(*first), tmp_path / "1")["checkpoint"]

    def second(images: int, texts: int) -> list[str]:
        return [
            *(*both, "task=[digits_01,parity]", "+trainer.max_steps=9", f"init_from={parent}"),
            f"+task.digits_01.dataset={{micro_batch_size:{images},update_freq:6}}",
            f"+task.parity.dataset={{micro_batch_size:{texts},update_freq:2}}",
            *("+task.parity.criterion={sentence_avg:true,weight:2}", "delta.lamda_2=0.01"),
        ]

    halves, numbers = [*DIGITS, *second(4, 3)], ["l2_loss", "a_norm"]
    seen, _ = both_ways(make_job(*second(8, 6)), halves, tmp_path, caplog, numbers)
    assert len(seen) == 9
    for one in seen:
        assert {"digits_01_loss", "parity_loss", "orthogonal_loss", "l2_loss"} <= one.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method"),
    [("llama", "lora"), ("bert", "replay"), ("bert", "adapter"), ("llama", "prefix"), ("bert", "ia3")],
)  # fmt: skip
def test_two_processes_train_a_text_model_as_one_does_at_the_same_global_batch(
    make: Any, folders: Any, tmp_path: Path, caplog: Any, kind: str, method: str
) -> None:
    """The second task of a chain, with a last micro-batch that is cut short."""
    words = of(folders(kind), f"delta={method}", "evaluation.dev_share=0.4",
               "evaluation.test_share=0.4", "trainer.logging_steps=1")  # fmt: skip
    one_step = ["task=sentiment", "+trainer.max_steps=1"]
    parent = finish(make(*words, *one_step), tmp_path / "1")["checkpoint"]
    words += ["task=parity", f"init_from={parent}", "trainer.num_train_epochs=1"]
    run = make(*words, "trainer.per_device_train_batch_size=14")
    halves = [*words, "trainer.per_device_train_batch_size=7"]
    seen, _ = both_ways(run, halves, tmp_path, caplog, [], within=1e-6)
    assert ("sentiment_loss" in seen[0]) == (method == "replay")


# -- ends -------------------------------------------------------------------------------------------


def running(mark: str) -> list[int]:
    """Living processes with `mark` in their environment."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with suppress(OSError):  # it ended
                state = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[0]
                if mark.encode() in Path(entry.path, "environ").read_bytes() and state != "Z":
                    found.append(int(entry.name))
    return found


# Stands for torch.distributed.run: notes a SIGTERM, which ends it.
AGENT = """
import signal, sys, time
def end(*_):
    print("told to end", flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(600)
"""
JOB = """
import os, sys
from train.processes import _run
print("status", _run([sys.executable, "-c", sys.argv[1]], os.environ), flush=True)
"""


@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGKILL, False)],
)
def test_a_signal_for_the_job_ends_its_workers_and_then_the_job(
    tmp_path: Path, number: signal.Signals, told: bool
) -> None:
    mark = f"MARK={tmp_path}"
    with open(tmp_path / "output", "wb") as output:
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, AGENT],
            env=os.environ | {"PYTHONPATH": str(ROOT), "MARK": str(tmp_path)},
            stdout=output,
            stderr=output,
        )
    wait_until(lambda: b"ready" in (tmp_path / "output").read_bytes(), "the agent runs")
    assert len(running(mark)) == 2
    job.send_signal(number)
    assert job.wait(300) == -number
    wait_until(lambda: not running(mark), "nothing is left")
    assert (b"told to end" in (tmp_path / "output").read_bytes()) is told
    assert b"status" not in (tmp_path / "output").read_bytes()


def test_a_hangup_under_nohup_ends_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from train.processes import _run\n"
        "kill = 'import os, signal; os.kill(os.getppid(), signal.SIGHUP); raise SystemExit(5)'\n"
        "sys.exit(_run([sys.executable, '-c', kill], os.environ))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 5


def test_a_worker_whose_job_is_gone_does_nothing(tmp_path: Path) -> None:
    """It may find itself adopted before it could ask to die with its parent."""
    order = tmp_path / "order.pickle"
    # 1 is not the parent of the process that starts it here.
    order.write_bytes(pickle.dumps(processes.Order(NO_RUN, tmp_path, {}, parent=1)))
    done = subprocess.run(
        [sys.executable, "-m", "train.worker", str(order)],
        cwd=ROOT,
        env=os.environ | {"RANK": "0", "LOCAL_RANK": "0"},
    )
    assert done.returncode == 1 and not (tmp_path / "rank0.begun").exists()


def ended(folder: Path, rank: int, error: str, at: float = 1, **more: Any) -> None:
    """The file a worker leaves when it fails."""
    end = {"rank": rank, "time": at, "error": error, "status": None, "lost_partner": False, **more}
    (folder / f"rank{rank}.json").write_text(json.dumps(end))


WRONG, PEER = "ValueError: x", "RuntimeError: peer"


@pytest.mark.parametrize(
    ("ends", "begun", "reason"),
    [
        ([(1, WRONG, 2, {})], 2, f"rank 1 of 2: {WRONG}"),
        ([(0, PEER, 3, {"lost_partner": True}), (1, WRONG, 2, {})], 2, f"rank 1 of 2: {WRONG}"),
        # The one that said nothing was killed; the other only noticed.
        ([(0, PEER, 3, {"lost_partner": True})], 2, "rank 1 of 2 processes ended without"),
        ([], 2, "rank 0, 1 of 2 processes ended without"),
        ([], 0, "torch.distributed.run of 2 processes ended without"),
        ([(0, "exit status 3", 3, {"status": 3})], 2, 3),
    ],
)
def test_the_reason_is_what_went_wrong_first(
    tmp_path: Path,
    ends: list[tuple[int, str, float, dict[str, Any]]],
    begun: int,
    reason: str | int,
) -> None:
    for rank in range(begun):
        (tmp_path / f"rank{rank}.begun").touch()
    for rank, error, at, more in ends:
        ended(tmp_path, rank, error, at, **more)
    failure = processes._failure(tmp_path, 1, EnvSettings(nproc_per_node=2), oom_kills=0)
    if isinstance(failure, SystemExit):
        assert failure.code == reason
    else:
        assert str(failure).startswith(str(reason))


@pytest.mark.parametrize(
    ("error", "oom_kills", "cause"),
    [
        ("MemoryError: cannot allocate", 0, Cause.HOST_MEMORY),
        (WRONG, 1, Cause.EXCEPTION),  # somebody else's process, then
        (None, 1, Cause.HOST_MEMORY),
        (None, 0, Cause.EXCEPTION),
        ("InfeasibleError: memory.budget_gib=1: no plan fits", 0, Cause.INFEASIBLE),
        ("InfeasibleBudgetError: memory.budget_gib=1: no plan", 0, Cause.INFEASIBLE_BUDGET),
    ],
)
def test_a_job_fails_for_the_cause_its_worker_failed_for(
    tmp_path: Path, error: str | None, oom_kills: int, cause: Cause
) -> None:
    """The launcher tells it by the error that led to the failure."""
    (tmp_path / "rank1.begun").touch()
    if error is not None:
        ended(tmp_path, 1, error)
    failure = processes._failure(tmp_path, 1, EnvSettings(nproc_per_node=2), oom_kills)
    assert cause_of(failure) is cause and (error or "without a word") in str(failure)


# -- whole jobs, minutes on a busy machine ----------------------------------------------------------


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in curve((folder / "train.log").read_text())]


@pytest.mark.slow
def test_two_machines_train_as_one_process_does(tmp_path: Path) -> None:
    """Two launchers on the loopback, each started as a user does on its machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = ("env.nnodes=2", "env.master_addr=127.0.0.1", f"env.port={port}")
    folders = [tmp_path / f"node{rank}" for rank in (0, 1)]
    nodes = []
    for rank, folder in enumerate(folders):
        folder.mkdir()
        batch = "trainer.per_device_train_batch_size=8"
        run = f"hydra.run.dir={folder}"
        nodes.append(started(folder, *both, f"env.rank={rank}", batch, run))
    ends = [node.wait(300) for node in nodes]
    assert ends == [0, 0], "\n".join((folder / "output").read_text() for folder in folders)
    alone = train(
        tmp_path, *DIGITS, "hydra.run.dir=alone", "trainer.per_device_train_batch_size=16"
    )
    assert alone.returncode == 0, alone.stderr
    assert losses(tmp_path / "node0") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    # Rank 0 keeps the checkpoint; the other machine has only its log.
    assert (tmp_path / "node0/checkpoint/node.json").exists()
    assert not (tmp_path / "node1/checkpoint").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_job_that_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    endless = ("hydra.run.dir=run", "trainer.num_train_epochs=100000")
    job = started(tmp_path, "env.nproc_per_node=2", *endless)
    wait_until(lambda: b"step 3:" in (tmp_path / "output").read_bytes(), "it trains")
    mark = f"MARK={tmp_path}"
    assert len(running(mark)) == 4  # the job, torch.distributed.run, two workers
    job.send_signal(number)
    job.wait(300)
    assert job.returncode in (-number, 1)
    wait_until(lambda: not running(mark), "nothing is left")


@pytest.mark.slow
def test_a_worker_that_is_killed_is_reported_from_its_partners_complaint(tmp_path: Path) -> None:
    endless = ("hydra.run.dir=run", "trainer.num_train_epochs=100000")
    job = started(tmp_path, "env.nproc_per_node=2", *endless)
    wait_until(lambda: b"step 3:" in (tmp_path / "output").read_bytes(), "it trains")
    [second] = [pid for pid in running(f"MARK={tmp_path}") if b"\0RANK=1\0" in environ(pid)]
    os.kill(second, signal.SIGKILL)
    assert job.wait(300) == 1
    wait_until(lambda: not running(f"MARK={tmp_path}"), "nothing is left")
    said = (tmp_path / "output").read_text()
    # On a busy machine rank 0 is ended before it can complain of its partner.
    assert re.search("rank (0, )?1 of 2 processes ended without a word", said)


def environ(pid: int) -> bytes:
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.slow
def test_a_sweep_gives_such_jobs_two_devices_and_tells_why_one_failed(
    benches: Callable[..., Any],
) -> None:
    bench = benches(ROOT / "train.py")
    # Both at once: neither meets the workers of the other.
    common = [*DIGITS, "hydra/sweeper=autocl", "hydra.launcher.cpu_slots=4", "env.nproc_per_node=2"]
    printed = bench.run(
        *common,
        "task=digits_01",
        *("trainer.learning_rate=1e-3,1e30", "trainer.max_grad_norm=0"),  # the second diverges
    )
    good, bad = (bench.finished()[number] for number in (0, 1))
    assert good["state"] == "COMPLETE" and good["score"] > 0.8
    assert bad["reason"].startswith("WorkerFailed: rank ")
    assert "Diverged: the training loss is nan at step" in bad["reason"]
    log = (bench.sweep / "1_digits_01/1/job.log").read_text()
    assert "train.loop.trainer.Diverged: the training loss" in log
    assert bench.nothing_is_left(), printed


@pytest.mark.slow
def test_more_processes_than_leased_devices_is_an_error_that_names_both_keys(
    benches: Callable[..., Any],
) -> None:
    bench = benches(ROOT / "train.py")
    printed = bench.run(
        *DIGITS,
        *("hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2"),
        *("env.nproc_per_node=2", "seed=0"),
        status=1,
    )
    assert "command line: env.nproc_per_node=2, but the launcher leases 1 to each job" in printed
    assert "Set hydra.launcher.devices_per_job=2" in printed
    assert "No job was started" in printed and not bench.events("start")
