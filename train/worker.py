"""One of several processes that train a job together: `python -m train.worker <file>`.

Started by torch.distributed.run; the file is what `train.processes` wrote. It composes nothing.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from autocl_sweeper.private import read_private
from train.processes import Order, die_with_parent


def main(path: Path) -> int:
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    order: Order = pickle.loads(read_private(path))
    exchange = path.parent
    _follow(order.parent)
    (exchange / f"rank{rank}.begun").touch()
    _log(rank, order)
    try:
        from train.data.task_plan import plan_run
        from train.job import train_and_evaluate

        result = train_and_evaluate(order.run, plan_run(order.run), order.folder)
        if local_rank == 0:
            _write(exchange / "result.json", result)
        _leave_group()
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        if status:
            _tell(exchange, rank, f"exit status {status}", status)
    except Exception as error:
        # In one piece: the others write to the same log.
        print(f"rank {rank}: {traceback.format_exc()}", file=sys.stderr, end="", flush=True)
        _tell(exchange, rank, f"{type(error).__name__}: {error}", None, _lost_partner(error))
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _follow(job: int) -> None:
    """Die with torch.distributed.run, which dies with the job: it starts us in a new session."""
    agent = os.getppid()
    die_with_parent(agent)
    with open(f"/proc/{agent}/stat") as file:
        parent_of_agent = int(file.read().rpartition(")")[2].split()[1])
    if parent_of_agent != job:  # the agent died before we asked, and somebody took us over
        os._exit(1)


def _log(rank: int, order: Order) -> None:
    """The first process logs as the job would alone; of the others only warnings are shown."""
    if rank == 0:
        from hydra.core.utils import configure_log

        configure_log(order.log.job_logging, order.log.verbose)
    else:
        logging.basicConfig(
            level=logging.WARNING, format=f"[rank {rank}][%(name)s][%(levelname)s] - %(message)s"
        )


def _tell(
    exchange: Path, rank: int, error: str, status: int | None, lost_partner: bool = False
) -> None:
    end = {"rank": rank, "time": time.time(), "error": error, "status": status}
    _write(exchange / f"rank{rank}.json", {**end, "lost_partner": lost_partner})


def _write(path: Path, content: Any) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(content))
    os.replace(aside, path)


def _leave_group() -> None:
    from torch.distributed import destroy_process_group, is_initialized

    if is_initialized():  # nccl warns of who does not
        destroy_process_group()


def _lost_partner(error: BaseException) -> bool:
    """Whether this is what a process raises whose partner in a collective is gone."""
    from torch.distributed import DistError

    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, DistError) or any(word in str(error) for word in words)


if __name__ == "__main__":
    status = main(Path(sys.argv[1]))
    logging.shutdown()
    # A plain exit now and then aborts in a thread of gloo's ("terminate called without an active exception"),
    # which would fail a job whose result is written.
    os._exit(status)
