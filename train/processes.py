"""How a job's processes start: in this one, or through `torch.distributed.run` where several train.

This process writes its settled run into the run folder and hands that file to the workers
(`train.worker`); what the first of them returns, or how one of them failed, comes back through files
beside it.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pickle
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
from typing import Any

from omegaconf import OmegaConf

from autocl_sweeper.errors import EvaluationMemoryError, InfeasibleBudgetError, InfeasibleError
from autocl_sweeper.private import private_folder
from train.config.env import LEASED, VISIBLE, EnvSettings
from train.config.sections import Run
from train.config.typed import SettingsError

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
LEASED_THREADS = "AUTOCL_THREADS"  # set by the launcher: OMP_NUM_THREADS for the whole job
THREADS = "OMP_NUM_THREADS"
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1
BY_NAME: Mapping[str, type[Exception]] = {
    one.__name__: one
    for one in (MemoryError, InfeasibleError, InfeasibleBudgetError, EvaluationMemoryError)
}


class WorkerFailed(RuntimeError):
    """A worker process of this job failed; the message is the worker's own."""


@dataclass(frozen=True)
class Order:
    """What a worker is asked to do. Only the job that wrote it has it read, by its own workers."""

    run: Run
    folder: Path
    log: Any  # Hydra's job_logging, resolved, and hydra.verbose
    parent: int  # pid of the job


def command(env: EnvSettings, order: Path) -> list[str]:
    """The command that starts the workers of this machine; each reads the file `order`."""
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
    # The app lies beside its train.py and is not installed; `python -m` would import from the working
    # directory before all else (Python 3.11 and later heed the switch).
    changed = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    number = threads(env, environ, cores)
    return {**environ, **changed, **({THREADS: number} if number else {})}


# -- starting ---------------------------------------------------------------------------------------


def start(run: Run, env: EnvSettings, folder: Path, here: Callable[[], Any]) -> Any:
    """Train `run` as `env` says and give what it returns; `here` runs it in this process.

    Raises SettingsError, what `here` raises, or WorkerFailed; a worker's `sys.exit(3)` is ours.
    """
    with _devices(env):
        if env.processes == 1:
            return here()
        if env.chosen_port is not None and env.rank == 0:
            _check_port(env)
        return _run_workers(run, env, folder)


@contextmanager
def _devices(env: EnvSettings) -> Iterator[None]:
    """CUDA_VISIBLE_DEVICES while the job runs: a multirun may have several jobs in one process."""
    before, wanted = os.environ.get(VISIBLE), env.visible
    if wanted is None or wanted == before:
        yield
        return
    if LEASED in os.environ:
        text = "env.cuda_visible_devices=%r is not exported: the launcher leased %s to this job"
        log.info(text, wanted, os.environ[LEASED])
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


def _run_workers(run: Run, env: EnvSettings, folder: Path) -> Any:
    from hydra.core.hydra_config import HydraConfig

    exchange = folder / f".node{env.rank}"
    private_folder(exchange)
    for old in (*exchange.glob("rank*"), exchange / "result.json"):  # of an earlier run here
        old.unlink(missing_ok=True)
    hydra, order = HydraConfig.get(), exchange / "order.pickle"
    handlers = OmegaConf.to_container(hydra.job_logging, resolve=True)
    logging_of = OmegaConf.create({"job_logging": handlers, "verbose": hydra.verbose})
    order.write_bytes(pickle.dumps(Order(run, folder, logging_of, os.getpid())))
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


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when `parent` dies, however that happens."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _run(argv: list[str], environment: Mapping[str, str]) -> int:
    """Run to its end; a SIGTERM or Ctrl-C for us ends the workers first, and then us."""
    ours = os.getpid()

    def follow() -> None:  # between fork and exec: nothing that imports
        os.setpgid(0, 0)  # a group of its own, so that it is told to end once: by us
        die_with_parent(ours)

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
    """The first failure: later ones are mostly of workers that lost their partner.

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
        kind = first["error"].partition(":")[0]
        if kind in BY_NAME:  # known by its class alone
            failed.__cause__ = BY_NAME[kind](first["error"])
        return failed
    who = f"rank {', '.join(map(str, silent))}" if silent else "torch.distributed.run"
    failed = WorkerFailed(
        f"{who} of {env.processes} processes ended without a word (torch.distributed.run: exit "
        f"status {status}): killed by a signal, as the kernel does when memory runs out, or a "
        "crash in C code. The lines above tell the exit codes"
    )
    if oom_kills > 0:
        text = "the kernel's out-of-memory killer ended a process meanwhile"
        failed.__cause__ = MemoryError(text)
    return failed
