"""The section `env`: machines, processes and devices of one job, and whether there are enough of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from train.config.typed import SettingsError, build, option

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
LEASED = "AUTOCL_DEVICES"  # set by the launcher: the devices this job may use, with commas


@dataclass(frozen=True)
class EnvSettings:
    """Machines, processes and devices of one job."""

    runner: str = option("local", "how processes start; only 'local' is there")
    nnodes: int = option(1, "machines", least=1)
    nproc_per_node: int = option(1, "processes per machine, one per device", least=1)
    cuda_visible_devices: str | list[str] | None = option(
        None,
        "'0,1' or [0,1]: these GPUs; '': none, train on the CPU; null: as the environment has it",
    )
    rank: int = option(0, "of this machine, from 0")
    master_addr: str = option("localhost", "address of the machine with rank 0")
    port: int | None = option(None, "of master_addr; null: on one machine a free one per job")
    master_port: int | None = option(None, "another name of port")
    cli: str = option("train.py", "accepted for OFASys's files: the program, which is train.py")

    def __post_init__(self) -> None:
        if self.runner != "local":
            raise SettingsError(
                f"env.runner={self.runner}: only 'local' is there, processes on this machine. "
                "On a cluster let its own scheduler start `python train.py` on every machine"
            )
        if isinstance(self.cuda_visible_devices, list):
            object.__setattr__(self, "cuda_visible_devices", ",".join(self.cuda_visible_devices))
        if not 0 <= self.rank < self.nnodes:
            raise SettingsError(
                f"env.rank={self.rank} with env.nnodes={self.nnodes}: the rank is the number of "
                f"this machine and goes from 0 to nnodes - 1 = {self.nnodes - 1}. Give every machine one "
                "of these, or set env.nnodes to the number of machines"
            )
        if None not in (self.port, self.master_port) and self.port != self.master_port:
            raise SettingsError(
                f"env.port={self.port} and env.master_port={self.master_port}: two names of one "
                "setting with two values; give one of them"
            )
        if self.chosen_port is not None and not 1 <= self.chosen_port <= 65535:
            raise SettingsError(f"env.port={self.chosen_port}: must be from 1 to 65535")
        if self.nnodes > 1 and self.chosen_port is None:
            raise SettingsError(
                f"env.nnodes={self.nnodes} without env.port: several machines meet at "
                "env.master_addr:env.port of the machine with rank 0; give all of them the same, "
                "for instance env.master_addr=10.0.0.1 env.port=29500"
            )
        if self.nnodes > 1 and not self.master_addr:
            raise SettingsError(
                f"env.nnodes={self.nnodes} without env.master_addr: give the address of the "
                "machine with rank 0"
            )
        if Path(self.cli).name != "train.py":
            raise SettingsError(
                f"env.cli={self.cli}: this app has one program, train.py; remove the key"
            )

    @property
    def visible(self) -> str | None:
        """CUDA_VISIBLE_DEVICES as asked for; null: leave it alone."""
        assert not isinstance(self.cuda_visible_devices, list)
        return self.cuda_visible_devices

    @property
    def chosen_port(self) -> int | None:
        return self.port if self.port is not None else self.master_port

    @property
    def processes(self) -> int:
        """Of all machines together."""
        return self.nnodes * self.nproc_per_node


def read_env(values: Mapping[str, Any], launcher: Any = None) -> EnvSettings:
    """The section `env` of a job that can be started. Raises SettingsError.

    launcher: the settings of what will start the job; None: this process trains.
    """
    env = build(EnvSettings, values, "env")
    leased = None if launcher is None else OmegaConf.select(launcher, "devices_per_job")
    if leased is not None:
        check_lease(env, leased, f"{leased} to each job")
    elif launcher is None or str(launcher.get("_target_")).endswith(".BasicLauncher"):
        check_devices(env, os.environ, count_gpus)
    return env


def check_lease(env: EnvSettings, leased: int, said: str) -> None:
    """A launcher leases devices of its own machine, one for every process. Raises SettingsError."""
    wanted = env.nproc_per_node
    if env.nnodes > 1:
        raise SettingsError(
            f"env.nnodes={env.nnodes} in a job of a launcher that leases devices of its own "
            "machine: start `python train.py` without -m once on every machine"
        )
    if wanted > leased:
        raise SettingsError(
            f"env.nproc_per_node={wanted}, but the launcher leases {said}, and every process needs a "
            f"device of its own (hydra.launcher.devices_per_job={leased}). "
            f"Set hydra.launcher.devices_per_job={wanted}, or fewer processes"
        )


def check_devices(env: EnvSettings, environ: Mapping[str, str], gpus: Callable[[], int]) -> None:
    """Every process needs a device of its own, except on the CPU. Raises SettingsError.

    `gpus` counts those that CUDA shows here; it is asked only where no variable tells.
    """
    wanted = env.nproc_per_node
    leased = _entries(wanted, environ.get(LEASED))
    if leased is not None:
        check_lease(env, len(leased), f"{len(leased)} ({','.join(leased)}) to this job")
        if wanted < len(leased) and not leased[0].startswith("cpu-"):  # slots may mean threads
            log.warning(
                "env.nproc_per_node=%d leaves %d of the %d leased devices idle: "
                "set env.nproc_per_node=%d or hydra.launcher.devices_per_job=%d",
                *(wanted, len(leased) - wanted, len(leased), len(leased), wanted),
            )
        return
    visible = environ.get(VISIBLE) if env.visible is None else env.visible
    listed = _entries(wanted, visible)
    if wanted == 1 or listed == [] or (listed and listed[0] in ("-1", "NoDevFiles")):
        return
    if listed is None:
        count = gpus()
        named = f"CUDA shows {count} GPUs here"
        if not count:  # a machine without GPUs: as many processes as one likes
            return
    else:
        count = len(listed)
        key = VISIBLE if env.visible is None else "env.cuda_visible_devices"
        named = f"{key}={visible} has {count}"
    if wanted > count:
        raise SettingsError(
            f"env.nproc_per_node={wanted}, but {named}: every process needs a GPU of its own. "
            'Take fewer processes, or hide the GPUs with env.cuda_visible_devices=""'
        )


def _entries(wanted: int, listed: str | None) -> list[str] | None:
    """Devices of a list with commas, for as many processes; None when there is no list."""
    if listed is None:
        return None
    ids = [e.strip() for e in listed.split(",") if e.strip()]
    parts = [one for one in ids if one.startswith("MIG-")]
    if wanted > 1 and parts:
        raise SettingsError(
            f"env.nproc_per_node={wanted} on {','.join(parts)}: CUDA shows a process only one MIG "
            "device, and nccl joins none. Take whole GPUs, or one process per job"
        )
    return ids


def count_gpus() -> int:
    import torch  # takes seconds, and is needed only where no variable lists the GPUs

    return torch.cuda.device_count()
