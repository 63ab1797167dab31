"""`python -m autocl_sweeper.script` as typed: strangers' scripts swept, in real processes."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.bench import REPOSITORY, alive, wait_until
from support.scripted import OURS, STRANGER, Scripted

EXAMPLE = REPOSITORY / "examples/strangers_script"
Benches = Callable[..., Scripted]


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Benches]:
    """Makes sweeps of the stranger's script with other keys of `script`; they end with the test."""
    made: list[Scripted] = []

    def make(config: dict[str, Any] = STRANGER, **keys: Any) -> Scripted:
        own = copy.deepcopy(config)
        own["script"].update(keys)
        made.append(Scripted(tmp_path / f"bench-{len(made)}", own))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


# -- whole sweeps -----------------------------------------------------------------------------------


def test_a_chain_of_two_tasks_is_arithmetic_and_survives_kill_9(scripted: Benches) -> None:
    bench = scripted(
        numbers={
            "loss": {"regex": r"loss=(\S+)"},
            "last": {"file": "checkpoint/w.json", "key": "w"},
        },
        env={"EXTRA": "rate {rate}"},
    )
    command = (*OURS, "task=a,b", "params.rate=0.25,0.5", "hydra.launcher.cpu_slots=2",
               "params.words='it\\'s $HOME; a b'")  # fmt: skip
    process = bench.start(*command)
    wait_until(lambda: process.poll() or len(bench.finished()) >= 3, "three trials are over")
    bench.kill(process)
    wait_until(bench.nothing_is_left, "jobs ended with their controller")
    done = set(bench.finished())
    before = len(bench.events("start"))
    bench.run(*command)
    assert not {event["trial"] for event in bench.events("start")[before:]} & done
    # On a from 0 to 1: w = rate. On b from there to -1.
    found = {number: event for number, event in bench.finished().items() if not event["reason"]}
    rates = {e["trial"]: e["params"]["params.rate"] for e in bench.events("start")}
    parents = {e["trial"]: e["parent"] for e in bench.events("start")}
    assert len(found) == 2 + 4
    for number, event in found.items():
        parent = parents[number]
        w = rates[number]
        if parent is not None:
            w = rates[parent] + rates[number] * (-1 - rates[parent])
        target = 1 if parent is None else -1
        assert event["score"] == pytest.approx(1 - (w - target) ** 2)
        assert event["numbers"] == pytest.approx(
            {"score": event["score"], "loss": (w - target) ** 2, "last": w}
        )
    results = bench.results()
    assert [one["params"] for one in results["chain"]] == [
        {"params.rate": 0.25},  # nearest to -1 on the way back
        {"params.rate": 0.5},
    ]
    started = bench.ledger("start")
    assert {one["argv"][-1] for one in started if "--resume" not in one["argv"]} == {
        "it's $HOME; a b"
    }, "never through a shell"
    assert {one["extra"] for one in started} == {"rate 0.25", "rate 0.5"}
    assert bench.nothing_is_left()


@pytest.mark.slow
def test_the_strangers_script_is_swept_killed_continued_and_equals_runs_by_hand(
    tmp_path: Path,
) -> None:
    config = yaml.safe_load((EXAMPLE / "conf/digits.yaml").read_text())
    config["script"]["cwd"] = str(EXAMPLE)
    bench = Scripted(tmp_path / "bench", config)
    try:
        command = (*OURS, "task=0-4,5-9", "params.lr=0.003,0.1", "hydra.launcher.cpu_slots=2")  # fmt: skip
        process = bench.start(*command)
        wait_until(lambda: process.poll() or len(bench.finished()) >= 2, "two trials are over")
        bench.kill(process)
        wait_until(bench.nothing_is_left, "jobs ended with their controller")
        done = set(bench.finished())
        before = len(bench.events("start"))
        bench.run(*command)
        assert not {event["trial"] for event in bench.events("start")[before:]} & done
        chain = bench.results()["chain"]
        resumed: list[str] = []
        for place, entry in enumerate(chain):
            out = tmp_path / f"by-hand-{place}"
            seen = ["0-4", "5-9"][: place + 1]
            options = [f"--digits={seen[-1]}", f"--lr={entry['params']['params.lr']!r}"]
            subprocess.run(
                [sys.executable, "train.py", *options, f"--out={out}", "--test-digits", *seen, *resumed],
                cwd=EXAMPLE, check=True, stdout=subprocess.DEVNULL, timeout=300,
            )  # fmt: skip
            told = json.loads((out / "metrics.json").read_text())
            assert bench.finished()[entry["trial"]]["eval"] == told["test_accuracy"]
            assert bench.finished()[entry["trial"]]["numbers"]["weight_norm"] == told["weight_norm"]
            resumed = [f"--resume={out / 'model.npz'}"]
        assert entry["score"] == pytest.approx(sum(told["test_accuracy"].values()) / 2)
        scores = [e["score"] for e in bench.finished().values() if e["state"] == "COMPLETE"]
        assert len(scores) == 2 + 4
    finally:
        bench.close()


DDP = """
import argparse, json, os
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

parser = argparse.ArgumentParser()
for name in ("lr", "slope"):
    parser.add_argument(f"--{name}", type=float)
for name in ("out", "resume"):
    parser.add_argument(f"--{name}")
args = parser.parse_args()
dist.init_process_group("gloo")
rank = dist.get_rank()
model = torch.nn.Linear(1, 1, bias=False)
if args.resume:
    model.load_state_dict(torch.load(args.resume))
else:
    torch.nn.init.zeros_(model.weight)
parallel = DistributedDataParallel(model)
x = torch.tensor([[1.0 + rank]])  # each process has its own row
loss = (parallel(x) - args.slope * x).square().mean()
loss.backward()
torch.optim.SGD(parallel.parameters(), args.lr).step()
if rank == 0:
    torch.save(model.state_dict(), os.path.join(args.out, "model.pt"))
    w = model.weight.item()
    print(json.dumps({"processes": dist.get_world_size(), "w": w, "score": -abs(w - args.slope)}))
dist.destroy_process_group()
"""


@pytest.mark.slow  # torchrun and torch start for 2 + 4 jobs of 2 processes each
def test_torchrun_trains_with_two_processes_per_job(scripted: Benches, tmp_path: Path) -> None:
    (tmp_path / "ddp.py").write_text(DDP)
    bench = scripted(
        {
            "defaults": ["autocl_script", "_self_"],
            "script": {
                "command": [
                    "torchrun", "--standalone",
                    "--nproc-per-node={devices}", str(tmp_path / "ddp.py"),
                    "--lr={lr}", "--slope={slope}", "--out={checkpoint_dir}",
                    ["--resume", "{init_from}/model.pt"],
                ],
                "score": {"key": "score"},
                "numbers": {"w": {"key": "w"}, "processes": {"key": "processes"}},
            },
            "tasks": {"up": {"slope": 1.0}, "down": {"slope": -1.0}},
            "params": {"lr": 0.1},
        }
    )  # fmt: skip
    bench.environment["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    bench.run(
        *OURS, "task=up,down", "params.lr=0.05,0.1",
        "hydra.launcher.devices_per_job=2", "hydra.launcher.cpu_slots=4",
    )  # fmt: skip
    found = bench.finished()
    events = {event["trial"]: event for event in bench.events("start")}
    weights: dict[int | None, float] = {None: 0.0}
    for number in sorted(found, key=lambda n: events[n]["stage"]):
        event, slope = events[number], {"up": 1.0, "down": -1.0}[events[number]["task"]]
        w = weights[event["parent"]]
        # The mean over both processes of d/dw (w x - slope x)^2, x = 1 and 2.
        w -= event["params"]["params.lr"] * (w - slope) * (2 * 1 + 2 * 4) / 2
        weights[number] = w
        assert found[number]["numbers"] == pytest.approx(
            {"score": -abs(w - slope), "w": w, "processes": 2}, abs=1e-6
        )
    assert len([e for e in found.values() if e["state"] == "COMPLETE"]) == 2 + 4
    assert bench.nothing_is_left()


# -- ends -------------------------------------------------------------------------------------------


def test_every_end_is_an_outcome_with_a_reason_and_the_last_lines(scripted: Benches) -> None:
    bench = scripted(
        exit_codes={0: "success", 4: "success", 5: "out_of_memory", 6: "infeasible"},
    )
    ends = {
        "well": ("COMPLETE", "", ""),
        "status 4": ("FAIL", "exception", "ended well (exit status 4), but"),
        "status 3": ("FAIL", "exception", "the command ended: exit status 3"),
        "status 5": ("FAIL", "device_memory", "OutOfMemoryError: the command ended: exit status 5"),
        "status 6": ("FAIL", "infeasible", "exit status 6, which script.exit_codes says is"),
        "device memory": ("FAIL", "device_memory", "the command ended: exit status 1"),
        "killed": ("FAIL", "exception", "the command ended: killed by SIGKILL"),
        "no score": (
            "FAIL",
            "exception",
            "script.score was not found: the last line of the output",
        ),
        "text": ("FAIL", "exception", "script.score is 'high', not a number"),
        "leaves one behind": ("COMPLETE", "", ""),
        "saves nothing": ("COMPLETE", "", ""),
    }
    listed = ",".join(ends)
    bench.run(*OURS, "task=a", f"params.end={listed}", "hydra.sweeper.retries=1",
              "hydra.sweeper.retry_delay_s=0.1", "hydra.launcher.cpu_slots=2")  # fmt: skip
    ended = {e["trial"]: e["params"]["params.end"] for e in bench.events("start")}
    attempts = [ended[event["trial"]] for event in bench.events("start")]
    for number, event in bench.finished().items():
        state, cause, reason = ends[ended[number]]
        assert (event["state"], event["cause"]) == (state, cause), ended[number]
        assert reason in event["reason"], ended[number]
        if state == "COMPLETE":
            assert (event["checkpoint"] is None) == (ended[number] == "saves nothing")
        again = cause == "exception"  # no time mends the others
        assert attempts.count(ended[number]) == 1 + again, ended[number]
        if ended[number].startswith("status"):
            assert "this went wrong" in event["reason"] and "this went wrong" in bench.log(number)
    assert sorted(ended.values()) == sorted(ends)
    (left,) = bench.ledger("waiting")
    assert not alive(left["helper"]) and bench.nothing_is_left()


def test_a_cancelled_script_hears_of_it_and_nothing_is_left(scripted: Benches) -> None:
    bench = scripted()
    process = bench.start(*OURS, "task=a", "params.end=waits,will not end",
                          "hydra.launcher.grace_s=1000", "hydra.launcher.cpu_slots=2")  # fmt: skip
    wait_until(lambda: process.poll() or len(bench.ledger("waiting")) == 2, "both scripts wait")
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: bench.ledger("saved"), "one script saves its state on SIGTERM")
    process.send_signal(signal.SIGTERM)  # the other one is killed
    bench.finish(process, 143)
    assert bench.nothing_is_left()


def test_a_timeout_ends_the_script_too(scripted: Benches) -> None:
    bench = scripted()
    printed = bench.run(*OURS, "task=a", "params.end=will not end", "hydra.launcher.timeout_s=4",
                        "hydra.launcher.grace_s=0.5", status=1)  # fmt: skip
    assert "timeout" in printed and bench.finished()[0]["cause"] == "timeout"
    assert bench.nothing_is_left()


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_other_launchers_leave_a_log_and_no_orphan(scripted: Benches, launcher: str) -> None:
    bench = scripted()
    ours = ("hydra/sweeper=autocl", f"hydra/launcher={launcher}", "task=a")
    bench.run(*ours, "params.end=well,status 3")
    found = bench.finished()
    assert [found[number]["state"] for number in (0, 1)] == ["COMPLETE", "FAIL"]
    assert found[0]["score"] == 1.0 and "exit status 3" in found[1]["reason"]
    assert bench.log(0).endswith("done") and "this went wrong" in bench.log(1)
    shutil.rmtree(bench.sweep)
    process = bench.start(*ours, "params.end=waits")
    wait_until(lambda: process.poll() or bench.ledger("waiting"), "the script waits")
    bench.kill(process)
    (waiting,) = bench.ledger("waiting")  # idle workers of joblib live on for a while
    for pid in (waiting["pid"], waiting["helper"]):
        wait_until(lambda pid=pid: not alive(pid), "the script ended with its controller")


def test_mistakes_are_refused_before_any_job(scripted: Benches) -> None:
    bench = scripted(score={"regex": "score"})
    printed = bench.run(*OURS, "task=a,b", "+params.momentum=0.9,0.99", status=1)
    assert "Task 'a' is refused" in printed and "No job was started." in printed
    assert "script.score.regex 'score' has no group" in printed
    assert "params.momentum is used nowhere" in printed
    assert bench.ledger() == [] and "Traceback" not in printed


def test_one_run_without_a_sweep_works_as_every_hydra_app(scripted: Benches) -> None:
    bench = scripted()
    done = subprocess.run(
        [sys.executable, "-m", "autocl_sweeper.script", "--config-dir", str(bench.folder / "conf"),
         "--config-name", "swept", "hydra.run.dir=alone", "params.rate=0.5"],
        cwd=bench.folder, env=bench.environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((bench.folder / "alone/checkpoint/w.json").read_text())["w"] == 0.5
    assert (bench.folder / "alone/job.log").read_text() in done.stdout
