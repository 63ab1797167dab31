"""The section `env`: its rules, and whether there are devices for all processes."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose
from omegaconf import OmegaConf

from train.config.env import EnvSettings, check_devices, read_env
from train.config.typed import SettingsError, build

MACHINES: dict[str, Any] = {"nnodes": 2, "master_addr": "10.0.0.1", "port": 29500}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runner": "dlc"}, ["env.runner=dlc", "'local'"]),
        ({"nnodes": 0}, ["env.nnodes=0", "1 or more"]),
        ({"nproc_per_node": 0}, ["env.nproc_per_node=0", "1 or more"]),
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
        read_env(settings)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("written", "meant"),
    [("0,1", "0,1"), ([0, 1], "0,1"), (0, "0"), ("", ""), ([], ""), (None, None)],
)
def test_gpus_are_listed_as_text_or_as_a_list(written: Any, meant: str | None) -> None:
    env = read_env({"cuda_visible_devices": written})
    assert env.visible == meant


def test_without_the_section_a_job_is_one_process_in_the_environment_as_it_is() -> None:
    assert read_env({}) == EnvSettings()


@pytest.mark.usefixtures("app_conf")
@pytest.mark.parametrize(
    ("file", "processes", "visible"),
    [
        ("default", 1, None),
        ("cpu", 1, ""),
        ("one_gpu", 1, "0"),
        ("gpus", 8, "0,1,2,3,4,5,6,7"),
        ("nodes", 16, "0,1,2,3,4,5,6,7"),
    ],
)
def test_every_file_of_the_group_is_an_environment(
    file: str, processes: int, visible: str | None
) -> None:
    values = OmegaConf.to_container(compose("config", [f"env={file}"]).env)
    env = build(EnvSettings, values, "env")
    assert (env.processes, env.visible) == (processes, visible)


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
        (2, None, {"AUTOCL_DEVICES": "MIG-1,MIG-2"}, 8, ["env.nproc_per_node=2", "one MIG device"]),
        (2, "MIG-1,MIG-2", {}, 8, ["env.nproc_per_node=2", "one MIG device"]),
        (1, None, {"AUTOCL_DEVICES": "MIG-1"}, 8, None),
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


@pytest.mark.parametrize(
    ("processes", "leased", "warned"),
    [(1, "GPU-1,GPU-2", True), (2, "GPU-1,GPU-2", False), (1, "cpu-0,cpu-1", False)],
)
def test_leased_gpus_that_no_process_uses_are_reported(
    caplog: pytest.LogCaptureFixture, processes: int, leased: str, warned: bool
) -> None:
    check_devices(EnvSettings(nproc_per_node=processes), {"AUTOCL_DEVICES": leased}, lambda: 8)
    assert ("leaves 1 of the 2 leased devices idle" in caplog.text) is warned


def test_a_job_of_several_machines_is_refused_under_a_lease() -> None:
    with pytest.raises(SettingsError, match="once on every machine"):
        check_devices(EnvSettings(**MACHINES), {"AUTOCL_DEVICES": "GPU-1"}, lambda: 1)
