"""How a job's processes start: in this one, or through `torch.distributed.run` where several train.

This process composes once, writes the resolved configuration into the run folder and hands that
file to the workers (`train.worker`); what the first of them returns, or how one of them failed,
comes back through files beside it. Nothing here imports torch before the settings are known good.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from train.config.sections import at_least
from train.config.typed import SettingsError, build, option

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
VISIBLE = "CUDA_VISIBLE_DEVICES"
LEASED = "AUTOCL_DEVICES"  # set by the launcher: the devices this job may use, with commas
LEASED_THREADS = "AUTOCL_THREADS"  # likewise: the OMP_NUM_THREADS it chose for the whole job
THREADS = "OMP_NUM_THREADS"
PR_SET_PDEATHSIG = 1


class WorkerFailed(RuntimeError):
    """A worker process of this job failed; the message is the worker's own."""


@dataclass(frozen=True)
class EnvSettings:
    """Machines, processes and devices of one job."""

    runner: str = option("local", "how processes start; only 'local' is there")
    nnodes: int = option(1, "machines", **at_least(1))
    nproc_per_node: int = option(1, "processes per machine, one per device", **at_least(1))
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


def read_env(cfg: DictConfig) -> EnvSettings:
    """The section `env` of a composed config. Raises SettingsError."""
    try:
        values = OmegaConf.to_container(cfg.get("env") or OmegaConf.create(), resolve=True)
    except OmegaConfBaseException as error:
        raise SettingsError(f"env: {error}") from error
    return build(EnvSettings, cast("dict[str, Any]", values), "env")


def check_env(values: Mapping[str, Any], launcher: Any) -> None:
    """The section `env` of a job that has not begun. Raises SettingsError.

    launcher: the settings of what will start the job; None: this process trains.
    """
    env = build(EnvSettings, values, "env")
    leased = None if launcher is None else OmegaConf.select(launcher, "devices_per_job")
    if leased is not None:
        check_lease(env, leased, f"{leased} to each job")
    elif launcher is None or str(launcher.get("_target_")).endswith(".BasicLauncher"):
        check_devices(env, os.environ, count_gpus)


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
    leased = _entries(environ.get(LEASED))
    if leased is not None:
        _check_mig(wanted, leased)
        check_lease(env, len(leased), f"{len(leased)} ({','.join(leased)}) to this job")
        if wanted < len(leased) and not leased[0].startswith("cpu-"):  # slots may mean threads
            log.warning(
                "env.nproc_per_node=%d leaves %d of the %d leased devices idle: "
                "set env.nproc_per_node=%d or hydra.launcher.devices_per_job=%d",
                *(wanted, len(leased) - wanted, len(leased), len(leased), wanted),
            )
        return
    visible = environ.get(VISIBLE) if env.visible is None else env.visible
    listed = _entries(visible)
    if wanted == 1 or listed == [] or (listed and listed[0] in ("-1", "NoDevFiles")):
        return
    if listed is None:
        count = gpus()
        named = f"CUDA shows {count} GPUs here"
        if not count:  # a machine without GPUs: as many processes as one likes
            return
    else:
        _check_mig(wanted, listed)
        count = len(listed)
        key = VISIBLE if env.visible is None else "env.cuda_visible_devices"
        named = f"{key}={visible} has {count}"
    if wanted > count:
        raise SettingsError(
            f"env.nproc_per_node={wanted}, but {named}: every process needs a GPU of its own. "
            'Take fewer processes, or hide the GPUs with env.cuda_visible_devices=""'
        )


def _check_mig(wanted: int, ids: list[str]) -> None:
    parts = [one for one in ids if one.startswith("MIG-")]
    if wanted > 1 and parts:
        raise SettingsError(
            f"env.nproc_per_node={wanted} on {','.join(parts)}: CUDA shows a process only one MIG "
            "device, and nccl joins none. Take whole GPUs, or one process per job"
        )


def _entries(listed: str | None) -> list[str] | None:
    """What a list with commas names; None when there is none."""
    return None if listed is None else [e.strip() for e in listed.split(",") if e.strip()]


def count_gpus() -> int:
    import torch  # takes seconds, and is needed only where no variable lists the GPUs

    return torch.cuda.device_count()


def command(env: EnvSettings, order: Path) -> list[str]:
    """What starts the workers of this machine, each of which reads the file `order`."""
    argv = [sys.executable, "-m", "torch.distributed.run"]
    if env.nnodes > 1:
        argv += [f"--nnodes={env.nnodes}", f"--node-rank={env.rank}"]
    address = env.master_addr if env.nnodes > 1 else "127.0.0.1"
    if env.chosen_port is None:
        argv.append("--standalone")  # its store finds a free port itself, so no two jobs collide
    else:
        argv += [f"--master-addr={address}", f"--master-port={env.chosen_port}"]
    return [*argv, f"--nproc-per-node={env.nproc_per_node}", "-m", "train.worker", str(order)]


def threads(env: EnvSettings, environ: Mapping[str, str], cores: int) -> str | None:
    """OMP_NUM_THREADS of a worker; None: leave it. torch.distributed.run would set 1."""
    given = environ.get(THREADS)
    if env.nproc_per_node > 1 and given is not None and given == environ.get(LEASED_THREADS):
        return str(max(1, int(given) // env.nproc_per_node))  # the launcher's, for the whole job
    if given is None and env.processes > 1:
        return str(max(1, cores // env.nproc_per_node))
    return None


def worker_environment(env: EnvSettings, environ: Mapping[str, str], cores: int) -> dict[str, str]:
    """The environment of torch.distributed.run, and so of the workers."""
    path = os.pathsep.join(filter(None, [str(ROOT), environ.get("PYTHONPATH")]))
    changed = {"PYTHONPATH": path}  # the app lies beside its train.py and is not installed
    number = threads(env, environ, cores)
    return {**environ, **changed, **({THREADS: number} if number else {})}


# -- starting ---------------------------------------------------------------------------------------


def start(cfg: DictConfig, env: EnvSettings, folder: Path, here: Callable[[], Any]) -> Any:
    """Run the job of `cfg` as `env` says and give what it returns; `here` runs it in this process.

    Raises SettingsError, what `here` raises, or WorkerFailed; a worker's `sys.exit(3)` is ours.
    """
    check_devices(env, os.environ, count_gpus)
    with _devices(env):
        if env.processes == 1:
            return here()
        if env.chosen_port is not None and env.rank == 0:
            _check_port(env)
        return _run_workers(cfg, env, folder)


@contextmanager
def _devices(env: EnvSettings) -> Iterator[None]:
    """CUDA_VISIBLE_DEVICES while the job runs: a multirun may have several jobs in one process."""
    before, wanted = os.environ.get(VISIBLE), env.visible
    if wanted is None or wanted == before:
        yield
        return
    if LEASED in os.environ:
        log.info(
            "env.cuda_visible_devices=%r is not exported: the launcher leased %s to this job",
            wanted,
            os.environ[LEASED],
        )
        yield
        return
    torch = sys.modules.get("torch")
    if env.processes == 1 and torch is not None and torch.cuda.is_initialized():
        raise SettingsError(
            f"env.cuda_visible_devices={wanted!r}: CUDA already runs in this process with "
            f"{VISIBLE}={before}. Set it for the whole command, or use hydra/launcher=gpu"
        )
    os.environ[VISIBLE] = wanted
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before


def _check_port(env: EnvSettings) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", env.chosen_port))
        except OSError as error:
            rest = "" if env.nnodes > 1 else ", or leave it null for a free one"
            raise SettingsError(
                f"env.port={env.chosen_port}: {error.strerror} on this machine. "
                f"Give another one{rest}"
            ) from error


def _run_workers(cfg: DictConfig, env: EnvSettings, folder: Path) -> Any:
    exchange = folder / f".node{env.rank}"
    exchange.mkdir(parents=True, exist_ok=True)
    for old in (*exchange.glob("rank*"), exchange / "result.json"):  # of an earlier run here
        old.unlink(missing_ok=True)
    order = exchange / "order.yaml"
    _write_order(cfg, folder, order)
    argv = command(env, order)
    log.info("%d x %d processes: %s", env.nnodes, env.nproc_per_node, shlex.join(argv))
    kills = _oom_kills()
    status = _run(argv, worker_environment(env, os.environ, len(os.sched_getaffinity(0))))
    result = exchange / "result.json"
    if status == 0 and result.exists():
        returned = json.loads(result.read_text())
        for path in (result, *exchange.glob("rank*")):
            path.unlink()
        return returned
    raise _failure(exchange, status, env, _oom_kills() - kills)


def _oom_kills() -> int:
    """How many processes of this machine the kernel has killed for want of memory."""
    with open("/proc/vmstat") as file:
        counts = (line.split() for line in file)
        return next((int(count) for name, count in counts if name == "oom_kill"), 0)


def _write_order(cfg: DictConfig, folder: Path, order: Path) -> None:
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    content = {
        "config": _escaped(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)),
        "folder": str(folder),
        "logging": _escaped(OmegaConf.to_container(hydra.job_logging, resolve=True)),
        "verbose": hydra.verbose,
        "parent": os.getpid(),
    }
    OmegaConf.save(OmegaConf.create(content), order)


def _escaped(node: Any) -> Any:
    """All is resolved: what still looks like an interpolation is text and has to stay so."""
    if isinstance(node, dict):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escaped(value) for value in node]
    return node.replace("${", "\\${") if isinstance(node, str) else node


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when `parent` dies, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _run(argv: list[str], environment: Mapping[str, str]) -> int:
    """Run to its end; a SIGTERM or Ctrl-C for us ends the workers first, and then us."""
    libc, ours = ctypes.CDLL(None), os.getpid()

    def follow() -> None:  # between fork and exec: nothing that imports
        os.setpgid(0, 0)  # a group of its own, so that it is told to end once: by us
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != ours:
            os._exit(1)

    caught: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def end(number: int, frame: Any) -> None:
        caught.append(number)
        if process is not None:
            process.terminate()

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if main else ()
    # What is ignored, as under nohup, stays so.
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heard}
    try:
        process = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            preexec_fn=follow,
            close_fds=False,  # what is inheritable is the device lease: held until the last ends
        )
        if caught:
            process.terminate()
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:  # as if it had come just now
        signal.raise_signal(caught[0])
        raise SystemExit(128 + caught[0])  # who ignores the signal still has no result
    return status


def _failure(exchange: Path, status: int, env: EnvSettings, oom_kills: int) -> BaseException:
    """What went wrong first: later failures are mostly of workers that lost their partner.

    `oom_kills`: processes that the kernel killed for want of memory meanwhile.
    """
    told = sorted(
        (json.loads(path.read_text()) for path in exchange.glob("rank*.json")),
        key=lambda end: end["time"],
    )
    begun = {int(path.stem.removeprefix("rank")) for path in exchange.glob("rank*.begun")}
    silent = sorted(begun - {end["rank"] for end in told})
    if told and not (told[0]["lost_partner"] and silent):
        first = told[0]
        if first["status"] is not None:
            return SystemExit(first["status"])
        failed = WorkerFailed(f"rank {first['rank']} of {env.processes}: {first['error']}")
        if first["error"].startswith("MemoryError"):  # told by its kind alone
            failed.__cause__ = MemoryError()
        return failed
    who = f"rank {', '.join(map(str, silent))}" if silent else "torch.distributed.run"
    failed = WorkerFailed(
        f"{who} of {env.processes} processes ended without a word (torch.distributed.run: exit "
        f"status {status}): killed by a signal, as the kernel does when memory runs out, or a "
        "crash in C code. The lines above tell the exit codes"
    )
    if oom_kills > 0:
        failed.__cause__ = MemoryError(
            "the kernel's out-of-memory killer ended a process meanwhile"
        )
    return failed
