"""Between Hydra's launcher class and the executors: make one, or run a batch of plain jobs."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from autocl_sweeper.disk import file_system
from autocl_sweeper.display.progress import watch_launch
from autocl_sweeper.display.screen import patient_screen
from autocl_sweeper.errors import AutoCLError, ConfigurationError, DiskError
from autocl_sweeper.executor.local import LocalExecutor
from autocl_sweeper.executor.process.forked import KeptForkServer
from autocl_sweeper.executor.ray.cluster import RayExecutor
from autocl_sweeper.executor.settings import from_settings
from autocl_sweeper.folder import folder_errors
from autocl_sweeper.job.package import Package
from autocl_sweeper.job.task import ReportingTask, Terminated
from autocl_sweeper.order import longest_first, work_of
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.plain import plain as plain_text
from autocl_sweeper.retries import Retries
from autocl_sweeper.types import Cause, Job, Outcome, State
from autocl_sweeper.yaml.origins import TYPED, layers_of, origin, sets

log = logging.getLogger(__name__)

OUR_KEY = re.compile(r"hydra\.(?:sweeper|launcher)(?:\.\w+)+")


def executor_of(
    settings: Mapping[str, Any],
    hydra_context: Any,
    task_function: Any,
    config: DictConfig,
    returns: bool,
    files: JobFiles,
    kept: KeptForkServer | None,
) -> LocalExecutor | RayExecutor:
    """The executor of `hydra/launcher=gpu` for one sweep folder; with an `address`, of `ray`.

    Raises DeviceError, and ConfigurationError when Ray is not there.
    """
    if isinstance(task_function, ReportingTask):
        task_function = task_function.task_function  # our job processes report by themselves
    package = Package.pack(files, hydra_context, config, task_function)
    if "address" not in settings:
        return from_settings(settings, package, returns, kept)
    keys = {key: plain(value) for key, value in settings.items()}
    # What Hydra copies for jobs elsewhere is there from their start, as it is on this machine.
    copied = {key: os.environ[key] for key in config.hydra.job.env_copy if key in os.environ}
    return RayExecutor(keys, package, returns, copied)


def launch(
    executor: Callable[[bool, JobFiles], LocalExecutor | RayExecutor],
    config: DictConfig,
    settings: Mapping[str, Any],
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
) -> Sequence[JobReturn]:
    """The whole of `GPULauncher.launch`: every job ends in a JobReturn, in the order given.

    They start longest first, unless `order` in the launcher's `settings` says otherwise.
    """
    if not job_overrides:
        return []
    setup_globals()
    configure_hydra_log(config)
    folder = Path(str(config.hydra.sweep.dir)).absolute()
    # Other sweepers do not lock the folder, so two of them must not meet in one place.
    files = JobFiles(JobFiles.of(folder).folder / f"launch-{os.getpid()}")
    jobs = [Job(initial_job_idx + i, tuple(texts)) for i, texts in enumerate(job_overrides)]
    waiting: Retries[Job] = Retries(settings["retries"], settings["retry_delay_s"])
    returned: dict[int, JobReturn] = {}
    with (
        patient_screen(),
        errors_for_hydra(config.hydra),
        folder_errors(folder),
        signals_stop_it(),
        contextlib.closing(executor(True, files)) as running,
        contextlib.ExitStack() as stack,
    ):
        work = work_of(settings)
        for job in jobs if work is None else longest_first(jobs, work):
            waiting.add(job)
        progress = watch_launch(running, len(jobs))
        progress.begin()
        stack.callback(progress.end)
        while len(returned) < len(jobs):
            while waiting.due() and running.free_slots():
                job = waiting.pop()
                progress.started(job, " ".join(filter_overrides(job.overrides)))
                running.submit(job)
            for job, outcome in running.wait(waiting.wait_s()):
                if outcome.cause is Cause.DISK:
                    raise DiskError(
                        f"Job {job.number} could not write: {outcome.reason}.\n"
                        f"  The sweep lies on {file_system(folder)}.\n"
                        "  Free some space, then run the sweep again."
                    )
                pause_s = waiting.after(job.number, outcome)
                if pause_s is not None:
                    progress.again(job, outcome.reason, pause_s)
                    waiting.add(replace(job, alone=job.number in waiting.alone), pause_s)
                    continue
                returned[job.number] = job_return_of(job, outcome)
                progress.finished(job, outcome)
                files.forget(job.number)
    for path in (files.package(), files.flaw()):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # logs that belong to no folder stay
        files.folder.rmdir()
        files.folder.parent.rmdir()
    return [returned[job.number] for job in jobs]


class JobDiedError(RuntimeError):
    """A job process ended without an outcome."""


def job_return_of(job: Job, outcome: Outcome) -> JobReturn:
    if outcome.job_return is not None:
        assert isinstance(outcome.job_return, JobReturn)
        return outcome.job_return
    returned = JobReturn(overrides=list(filter_overrides(job.overrides)))
    if outcome.state is State.COMPLETE:  # a dead controller's job; its JobReturn died with it
        returned.status, returned.return_value = JobStatus.COMPLETED, outcome.score
    else:
        tail = "".join(f"\n  | {line}" for line in outcome.log_tail)
        died = JobDiedError(plain_text(f"job {job.number}: {outcome.reason}{tail}"))
        returned.status, returned.return_value = JobStatus.FAILED, died
    return returned


def configure_hydra_log(config: DictConfig) -> None:
    """Hydra's own logging, as launchers set it; 1.4 polices the classes it may name."""
    more = {}
    if "execution_whitelist" in inspect.signature(configure_log).parameters:
        more["execution_whitelist"] = config.hydra.get("execution_whitelist")
    configure_log(config.hydra.hydra_logging, config.hydra.verbose, **more)


@contextlib.contextmanager
def errors_for_hydra(hydra: Any) -> Iterator[None]:
    """Our errors as Hydra prints its own: the message, without a traceback through Hydra.

    hydra: the `hydra` node of the sweep's configuration. What a message says of a key of the sweeper or
    the launcher gets the file and line where the key was written.
    """
    try:
        yield
    except AutoCLError as error:
        told = f"{type(error).__name__}: {error}"
        if isinstance(error, ConfigurationError) and (key := OUR_KEY.match(str(error))):
            layers = layers_of(hydra)
            place = origin(layers, key[0]) if sets(layers, key[0]) else TYPED
            told += f"\n  {key[0]} stands in {place}." if place != TYPED else ""
        raise CompactHydraException(plain_text(told)) from error
    except KeyboardInterrupt:
        # What was going on has been told; a traceback through Hydra says nothing more.
        raise SystemExit(128 + signal.SIGINT) from None


@contextlib.contextmanager
def signals_stop_it() -> Iterator[None]:
    """SIGTERM stops the sweep as Ctrl-C does: in good order, and at once when it comes again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise Terminated(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
