"""The section `env`: its rules, and jobs that train in several processes."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from train.env import EnvSettings, check_devices, command, threads
from train.settings import SettingsError

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.hidden_size=16",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=16",
    "model.patch_size=4",
    "trainer.num_train_epochs=1",
    "trainer.logging_steps=1",
]
MACHINES: dict[str, Any] = {"nnodes": 2, "master_addr": "10.0.0.1", "port": 29500}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runner": "dlc"}, ["env.runner=dlc", "'local'"]),
        ({"nnodes": 0}, ["env.nnodes=0", "at least 1"]),
        ({"nproc_per_node": 0}, ["env.nproc_per_node=0", "at least 1"]),
        ({"rank": 1}, ["env.rank=1", "env.nnodes=1", "nnodes - 1 = 0"]),
        ({**MACHINES, "rank": 2}, ["env.rank=2", "env.nnodes=2", "nnodes - 1 = 1"]),
        ({"rank": -1}, ["env.rank=-1"]),
        ({"nnodes": 2}, ["env.nnodes=2 without env.port", "env.port=29500"]),
        ({"nnodes": 2, "port": 1, "master_addr": ""}, ["without env.master_addr"]),
        ({"port": 70000}, ["env.port=70000", "65535"]),
        ({"port": 1, "master_port": 2}, ["env.port=1", "env.master_port=2", "one of them"]),
        ({"cli": "launch.py"}, ["env.cli=launch.py", "train.py"]),
    ],
)
def test_a_setting_that_cannot_work_names_its_key_and_the_rule(
    settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        EnvSettings(**settings)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("processes", "visible", "environ", "gpus", "words"),
    [
        # (processes, env.cuda_visible_devices, environment, GPUs of the machine, error)
        (2, None, {}, 0, None),  # no GPU: the CPU carries as many as one likes
        (2, None, {}, 2, None),
        (3, None, {}, 2, ["env.nproc_per_node=3", "2 GPUs"]),
        (2, "", {}, 1, None),  # hidden
        (2, None, {"CUDA_VISIBLE_DEVICES": ""}, 1, None),
        (2, None, {"CUDA_VISIBLE_DEVICES": "-1"}, 1, None),
        (2, "0,1", {}, 2, None),
        (2, "0", {}, 2, ["env.nproc_per_node=2", "env.cuda_visible_devices=0 has 1"]),
        (2, None, {"CUDA_VISIBLE_DEVICES": "3"}, 8, ["CUDA_VISIBLE_DEVICES=3 has 1"]),
        (2, "0,1", {"CUDA_VISIBLE_DEVICES": "3"}, 8, None),  # the setting wins
        (2, None, {"AUTOCL_DEVICES": "GPU-1,GPU-2"}, 8, None),
        (1, None, {"AUTOCL_DEVICES": "GPU-1,GPU-2"}, 8, None),
        (
            2,
            "0,1",  # but not over a lease
            {"AUTOCL_DEVICES": "GPU-1"},
            8,
            ["env.nproc_per_node=2", "GPU-1", "hydra.launcher.devices_per_job=2"],
        ),
        (2, None, {"AUTOCL_DEVICES": "cpu-0"}, 0, ["hydra.launcher.devices_per_job=2"]),
    ],
)
def test_every_process_has_a_device_or_the_error_names_what_to_change(
    processes: int,
    visible: str | None,
    environ: dict[str, str],
    gpus: int,
    words: list[str] | None,
) -> None:
    env = EnvSettings(nproc_per_node=processes, cuda_visible_devices=visible)
    if words is None:
        check_devices(env, environ, lambda: gpus)
        return
    with pytest.raises(SettingsError) as caught:
        check_devices(env, environ, lambda: gpus)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_job_of_several_machines_is_refused_under_a_lease() -> None:
    with pytest.raises(SettingsError, match="once on every machine"):
        check_devices(EnvSettings(**MACHINES), {"AUTOCL_DEVICES": "GPU-1"}, lambda: 1)


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"nproc_per_node": 2}, ["--standalone", "--nproc-per-node=2"]),
        (
            {"nproc_per_node": 2, "port": 4000},
            ["--master-addr=127.0.0.1", "--master-port=4000", "--nproc-per-node=2"],
        ),
        (
            {"nproc_per_node": 2, "master_port": 4000},
            ["--master-addr=127.0.0.1", "--master-port=4000", "--nproc-per-node=2"],
        ),
        (
            {**MACHINES, "rank": 1},
            [
                "--nnodes=2",
                "--node-rank=1",
                "--master-addr=10.0.0.1",
                "--master-port=29500",
                "--nproc-per-node=1",
            ],
        ),
    ],
)
def test_the_command_is_that_of_torch_distributed_run(
    settings: dict[str, Any], flags: list[str]
) -> None:
    argv = command(EnvSettings(**settings), Path("/run/it's here/order.yaml"))
    assert argv == [
        *(sys.executable, "-m", "torch.distributed.run"),
        *flags,
        *("-m", "train.worker", "/run/it's here/order.yaml"),
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
    ("rows", "size", "shares"),
    [
        (4, 2, [[0, 1], [2, 3]]),
        (5, 2, [[0, 1, 2], [3, 4]]),
        (8, 3, [[0, 1, 2], [3, 4, 5], [6, 7]]),
        (2, 2, [[0], [1]]),
        (1, 2, [[0], [0]]),  # everybody's: the mean stays that of the row
        (2, 3, [[0, 1], [0, 1], [0, 1]]),
    ],
)
def test_a_batch_is_shared_without_gap_or_overlap(
    rows: int, size: int, shares: list[list[int]]
) -> None:
    from train.ranks import share

    assert [share(list(range(rows)), rank, size) for rank in range(size)] == shares


# -- real processes ---------------------------------------------------------------------------------

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LINE = re.compile(r"step \d+: (\{.*\})")


def app(cwd: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / "train.py"), *SMALL, *overrides]
    return subprocess.run(
        argv, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def curve(text: str) -> list[dict[str, float]]:
    """Trainer's log entries of the steps, in order."""
    entries = [ast.literal_eval(found) for found in LINE.findall(text)]
    return [entry for entry in entries if "loss" in entry]


def test_two_processes_train_as_one_does_at_the_same_global_batch(
    make_job: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The third task of a chain: adapters, both penalties, accumulation, a last batch cut short."""
    from train.job import run

    parent = run(make_job(), tmp_path / "1")["checkpoint"]
    parent = run(make_job("task=digits_23", f"init_from={parent}"), tmp_path / "2")["checkpoint"]
    third = [
        "task=digits_45",
        f"init_from={parent}",
        "trainer.gradient_accumulation_steps=2",
        "delta.lamda_2=0.01",
        "trainer.logging_steps=1",
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, "train.trainer"):
        alone = run(make_job(*third, "trainer.per_device_train_batch_size=16"), tmp_path / "3")
    done = app(
        tmp_path,
        *third,
        "trainer.per_device_train_batch_size=8",
        "env.nproc_per_node=2",
        "hydra.run.dir=both",
    )
    assert done.returncode == 0, done.stdout + done.stderr

    expected, seen = curve(caplog.text), curve((tmp_path / "both/train.log").read_text())
    assert len(expected) == len(seen) == alone["steps"]
    for one, two in zip(expected, seen, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    results = json.loads((tmp_path / "both/all_results.json").read_text())
    assert results["orthogonal_loss"] > 0
    for key in ("train_loss", "orthogonal_loss_first", "orthogonal_loss", "l2_loss", "a_norm"):
        assert results[key] == pytest.approx(alone[key], rel=1e-5)
    assert results["eval"] == alone["eval"] and results["test"] == alone["test"]

    left = {p.relative_to(tmp_path / "both").as_posix() for p in (tmp_path / "both").rglob("*")}
    assert {name for name in left if name.startswith(".node")} == {".node0", ".node0/order.yaml"}
    assert "checkpoint/task3/adapter_model.safetensors" in left
