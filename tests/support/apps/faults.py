"""A job can end in many ways; this one ends as `fault` says."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig

THE_LOCK = threading.Lock()  # cannot be pickled, and the task function below uses it


class TwoArgumentsError(Exception):
    """Pickles, and cannot be unpickled: its __init__ is called with one argument."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} in {where}")


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Homebound:
    """Can be unpickled in the process that made it, and nowhere else."""

    def __reduce__(self) -> Any:
        return come_home, (os.getpid(),)


def come_home(pid: int) -> Homebound:
    if os.getpid() != pid:
        raise RuntimeError("not my process")
    return Homebound()


def fine() -> float:
    return 1.0


def exception() -> None:
    raise ValueError("no such luck")


def two_arguments() -> None:
    raise TwoArgumentsError("a mistake", "the loader")


def speechless() -> None:
    raise SpeechlessError


def exit_3() -> None:
    print("leaving with 3", file=sys.stderr)
    sys.exit(3)


def exit_words() -> None:
    sys.exit("no data set")


def exit_0() -> None:
    sys.exit(0)


def os_exit() -> None:
    os._exit(7)


def os_exit_0() -> None:
    os._exit(0)


def no_memory() -> None:
    raise MemoryError


class OutOfMemoryError(RuntimeError):
    """As torch's."""


def no_device_memory() -> None:
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")


def no_device_memory_at_first() -> float:
    """Notes in the file ATTEMPTS how often it was tried."""
    attempts = Path(os.environ["ATTEMPTS"])
    first = not attempts.exists()
    with open(attempts, "a") as file:
        print(os.environ["CUDA_VISIBLE_DEVICES"], file=file)
    if first:
        no_device_memory()
    return 1.0


def no_memory_behind() -> None:
    """While it tidies up, the job stumbles over what it could not make."""
    batch: dict[str, int] = {}
    try:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")
    finally:
        del batch["batch"]


def child_without_memory() -> None:
    """As launchers of training scripts do, this one hands on the exit status of its child."""
    told = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB."
    sys.exit(subprocess.run(["sh", "-c", f"echo '{told}' >&2; exit 1"], check=False).returncode)


def sigkill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    ctypes.string_at(0)


def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def huge() -> int:
    return 10**400


def grandchildren() -> float:
    """Leaves two processes behind, one of which does not listen to SIGTERM."""
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    for first in ("", deaf):
        subprocess.Popen([sys.executable, "-c", f"{first}import time; time.sleep(1000)"])
    return 1.0


def escaped() -> float:
    """Leaves what left its session: a program as daemons do, and a fork of itself."""
    code = "import os, time; os.fork(); os.setpgid(0, 0); time.sleep(1000)"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setpgid(0, 0)
        time.sleep(1000)
        os._exit(0)
    return 1.0


def square(n: int) -> int:
    return n * n


def workers() -> float:
    """As a DataLoader does: worker processes, which daemonic processes may not have."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=lambda: queue.put(square(3)), daemon=True)
    process.start()
    process.join()
    return float(queue.get())


FAULTS: dict[str, Callable[[], Any]] = {
    function.__name__: function
    for function in (
        fine, exception, two_arguments, speechless, exit_3, exit_words, exit_0, os_exit, os_exit_0,
        no_memory, no_device_memory, no_device_memory_at_first, no_memory_behind, child_without_memory,
        sigkill, segfault, stubborn, huge, grandchildren, escaped, workers,
    )
}  # fmt: skip
VALUES: dict[str, Any] = {
    "returns_nan": float("nan"),
    "nothing": None,
    "text": "0.9",
    "bool": True,
    "lock": threading.Lock(),
    "homebound": Homebound(),
    "no_score": {"loss": 0.25},
    "nan_score": {"score": float("nan")},
    "metrics": {"score": 0.5, "loss": 0.25, "note": "a text is left out"},
    "score_and_lock": {"score": 1.0, "model": threading.Lock()},
}


def wait_for_the_first() -> None:
    """Until trial 0 is in the journal: before, a job without a score stops the sweep."""
    journal = Path(os.environ["JOURNAL"])
    while not any('"finish", "trial": 0,' in line for line in journal.read_text().splitlines()):
        time.sleep(0.02)


@hydra.main(version_base=None, config_path="conf", config_name="faults")
def main(cfg: Any) -> Any:
    print(f"about to: {cfg.fault}", flush=True)
    folder = Path(HydraConfig.get().runtime.output_dir, "checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(cfg.fault))
    with THE_LOCK:
        if cfg.fault in FAULTS:
            return FAULTS[cfg.fault]()
    if "JOURNAL" in os.environ:
        wait_for_the_first()
    return VALUES[cfg.fault]


if __name__ == "__main__":
    main()
