"""Jobs that tell what a process forked from another could do wrong. Each notes it in LEDGER."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig


def note(**fields: Any) -> None:
    """One write to a file opened for appending: lines of several processes do not mix."""
    record = {"event": "job", "pid": os.getpid(), "parent": os.getppid(), **fields}
    file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (json.dumps(record) + "\n").encode())
    os.close(file)


def look() -> None:
    """What the job found; then it spoils what it can, for whoever comes next."""
    numpy = sys.modules.get("numpy")
    folder = Path("/proc/self/fd")
    fds = {int(p.name): os.readlink(p) for p in folder.iterdir() if os.path.lexists(p)}
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    note(
        job=HydraConfig.get().job.num,
        session=os.getsid(0),
        environment=dict(os.environ),
        mask=(getenv(b"CUDA_VISIBLE_DEVICES") or b"").decode(),
        fds=fds,
        cwd=os.getcwd(),
        path=list(sys.path),
        argv=sys.argv,
        modules=[name for name in ("numpy", "torch", "helper") if name in sys.modules],
        random=[random.random(), float(numpy.random.rand()) if numpy else None],
        daemon=multiprocessing.current_process().daemon,
        status=Path("/proc/self/status").read_text(),
        input=sys.stdin.read(),
    )
    os.environ["SPOILED"] = "yes"
    os.environ.pop("HOME", None)
    os.chdir("/")
    sys.path.insert(0, "/spoiled")
    random.seed(0)


def hold() -> None:
    """With a child process, and some that left its session, while the file HOLD exists."""
    child = os.fork()
    if child == 0:
        time.sleep(1000)
    if os.fork() == 0:
        os.setsid()
        os.fork()
        time.sleep(1000)
    subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True
    )
    note(job=HydraConfig.get().job.num, child=child)
    while Path(os.environ["HOLD"]).exists():
        time.sleep(0.02)


def workers() -> None:
    """As data loaders do: daemonic processes, forked and spawned, with a queue."""
    import helper

    answers = []
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.SimpleQueue()
        process = context.Process(target=helper.answer, args=(queue,), daemon=True)
        process.start()
        answers.append(queue.get())
        process.join()
    note(answers=answers)


def bad_fork() -> None:
    """Fails as torch does where CUDA was initialised before the fork."""
    forked = (
        Path(f"/proc/{os.getppid()}/cmdline").read_bytes().count(b"executor.process.forkserver")
    )
    note(forked=forked)
    if forked:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA with ...")


def native_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def matmul() -> None:
    import numpy
    import torch

    at_first = native_threads()
    product = numpy.ones((400, 400)) @ numpy.ones((400, 400))
    blas = native_threads()
    weight = torch.randn(400, 400, requires_grad=True)
    loss = ((weight @ torch.randn(400, 400)) ** 2).sum()
    loss.backward()
    finite = bool(loss.isfinite()) and (product == 400).all().item()
    threads, seed = torch.get_num_threads(), torch.initial_seed()
    note(threads=threads, native=[at_first, blas], finite=finite, seed=seed)


def loader() -> None:
    import torch

    rows = torch.utils.data.TensorDataset(torch.arange(8.0))
    how = os.environ.get("WORKERS")
    batches = torch.utils.data.DataLoader(
        rows, batch_size=2, num_workers=2, multiprocessing_context=how
    )
    note(total=sum(float(part.sum()) for (part,) in batches))


DOES: dict[str, Callable[[], None]] = {
    function.__name__: function for function in (look, hold, workers, bad_fork, matmul, loader)
}


@hydra.main(version_base=None, config_path="conf", config_name="warm")
def main(cfg: Any) -> float:
    DOES[cfg.do]()
    return 1.0


if __name__ == "__main__":
    main()
