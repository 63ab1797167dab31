"""The life of a job process: it enters the user's program, runs its function through Hydra, and reports."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from autocl_sweeper.disk import is_disk_trouble
from autocl_sweeper.job.package import Opened, Order, enter, opened
from autocl_sweeper.job.pickles import loads
from autocl_sweeper.job.returned import failed_return, write_return
from autocl_sweeper.outcome import (
    LOG_NAME,
    UNWRITTEN,
    JobFiles,
    failure,
    link_log,
    outcome_of,
    write_whole,
)
from autocl_sweeper.private import read_private
from autocl_sweeper.types import Cause

GO = b"\n"  # what a job process reads from its stdin before it does anything
OOM_SCORE = "500"  # out of memory, the kernel takes a job before the controller or the user's shell
FOLDER, SUBFOLDER = "hydra.sweep.dir", "hydra.sweep.subdir"


def main(folder: str, order: str) -> NoReturn:
    """A fresh interpreter becomes a job: its order is in the file with descriptor `order`."""
    _wait_for_word()
    files = JobFiles(Path(folder))
    data = read_private(files.package())
    flaw = enter(data)
    if flaw:
        write_whole(files.flaw(), flaw.encode())  # the controller reports it once
    run(files, _read(int(order)), opened(data, flaw))


def forked(folder: str, order: int, package: Opened) -> NoReturn:
    """The same in a process forked from one that has entered the program already."""
    _wait_for_word()
    run(JobFiles(Path(folder)), _read(order), package)


def _wait_for_word() -> None:
    if os.read(0, len(GO)) != GO:
        raise SystemExit("the controller died before it knew this job")
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(OOM_SCORE)


def _read(order: int) -> bytes:
    with open(order, "rb") as file:
        return file.read()


def run(files: JobFiles, order: bytes, package: Opened) -> NoReturn:
    """Run the job to its end and leave its outcome, which nothing that comes later can change."""
    _run(files, loads(order), package)
    # Tearing down an interpreter that holds torch takes about a second; waiting for the user's
    # threads and exit hooks is all of it that anybody needs.
    for end in (threading._shutdown, atexit._run_exitfuncs, *_flushes()):  # type: ignore[attr-defined]
        with suppress(Exception):
            end()
    os._exit(0)


def _flushes() -> list[Any]:
    streams: list[Any] = [sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__]
    return [stream.flush for stream in streams if hasattr(stream, "flush")]


def _run(files: JobFiles, order: Order, package: Opened) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import JobStatus, run_job
    from omegaconf import OmegaConf, open_dict

    start = time.monotonic()
    job_return: Any = None
    try:
        config = order.config
        with open_dict(config):
            config.hydra.job.id = str(order.number)
            config.hydra.job.num = order.number
        # `${hydra:...}` in the folder's name means this job, not the configuration of the sweep.
        HydraConfig.instance().set_config(config)
        names = (str(OmegaConf.select(config, key)) for key in (FOLDER, SUBFOLDER))
        output_dir = Path(*names).absolute()
        _claim_folder(output_dir, files.log(order.number))
        files.output(order.number).write_text(str(output_dir), "utf-8", "surrogateescape")
    except Exception as error:
        _show(error)
        full = is_disk_trouble(error)
        cause = Cause.DISK if full else Cause.CONFIGURATION
        outcome = failure(error, time.monotonic() - start, cause)
        job_return = failed_return(order.overrides, error)
    else:
        job_return = run_job(
            hydra_context=package.context,
            task_function=package.function,
            config=config,
            job_dir_key=FOLDER,
            job_subdir_key=SUBFOLDER,
        )
        seconds = time.monotonic() - start
        value = job_return._return_value
        if job_return.status is JobStatus.COMPLETED:
            outcome = outcome_of(files.returned(order.number, value), output_dir, seconds)
        else:
            _show(value)
            outcome = failure(value, seconds, folder=output_dir)
    try:
        if order.returns:
            write_return(files.job_return(order.number), job_return)
        files.write_outcome(order.number, outcome)
    except OSError as error:
        if not is_disk_trouble(error):
            raise
        _show(error)
        os._exit(UNWRITTEN)


def _show(error: BaseException) -> None:
    """Write a traceback to the job's log, whatever the job has done to `sys.stderr`."""
    text = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace")
    with suppress(OSError):  # it closed the descriptor, or the disk is full: the outcome has it too
        os.write(2, text)


def _claim_folder(output_dir: Path, log: Path) -> None:
    """Make the job's folder and link the running log into it; an earlier log there is kept."""
    output_dir.mkdir(parents=True, exist_ok=True)
    target = output_dir / LOG_NAME
    if target.exists():
        taken = sum(1 for _ in output_dir.glob(f"{LOG_NAME}.*"))
        os.replace(target, output_dir / f"{LOG_NAME}.{taken + 1}")
    link_log(log, target)
