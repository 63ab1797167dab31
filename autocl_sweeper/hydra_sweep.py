"""What stands between Hydra's plugin classes and the core: run a sweep, or launch plain jobs."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from autocl_sweeper.errors import AutoCLError, ConfigurationError
from autocl_sweeper.executor.batches import BatchExecutor
from autocl_sweeper.executor.local import LocalExecutor
from autocl_sweeper.executor.process.forked import KeptTemplate
from autocl_sweeper.executor.ray.cluster import RayExecutor
from autocl_sweeper.executor.settings import from_settings
from autocl_sweeper.job.composition import remembering
from autocl_sweeper.job.hydra_job import Package, ReportingTask, Terminated, compose_task_config
from autocl_sweeper.order import longest_first, work_of
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.plan import Plan, Settings, make_plan
from autocl_sweeper.report.progress import watch, watch_launch
from autocl_sweeper.report.summary import print_summary
from autocl_sweeper.retries import Waiting, delay_s, may_help
from autocl_sweeper.sweep import Sweep
from autocl_sweeper.types import Cause, Executor, History, Job, Outcome, State
from autocl_sweeper.yaml.layers import below_files
from autocl_sweeper.yaml.snapshot import Snapshot, install

log = logging.getLogger(__name__)

DEFAULT_SUBDIR = "${hydra.job.num}"


def run_sweep(
    settings: Mapping[str, Any],
    arguments: Sequence[str],
    hydra_context: Any,
    config: DictConfig,
    launcher: Any,
) -> Any:
    """The whole of `AutoCLSweeper.sweep`.

    Returns the best chain as in optimization_results.yaml's `chain`; without a sequence, Hydra's
    JobReturns in batches, as its basic sweeper does.
    """
    # All that composes from here on, jobs included, reads the files as they are now.
    with _errors_for_hydra(), signals_stop_it(), install(Snapshot(_folders(config))) as snapshot:
        return _run_sweep(settings, arguments, hydra_context, config, launcher, snapshot)


def _run_sweep(
    raw: Mapping[str, Any],
    arguments: Sequence[str],
    hydra_context: Any,
    config: DictConfig,
    launcher: Any,
    snapshot: Snapshot,
) -> Any:
    settings = Settings(**{key: _plain(value) for key, value in raw.items()})

    composing = replace(hydra_context, config_loader=remembering(hydra_context.config_loader))

    def compose(overrides: Sequence[str], meant_for: str) -> Mapping[str, Any]:
        return compose_task_config(composing, config, overrides, meant_for)

    subdir = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(subdir, dict)
    plan = make_plan(
        settings,
        arguments,
        compose,
        hydra_context.config_loader,
        knows_folders=subdir["subdir"] == DEFAULT_SUBDIR,
    )
    folder = Path(str(config.hydra.sweep.dir)).absolute()
    snapshot.complete(folder)
    name, groups = config.hydra.job.config_name or "", config.hydra.runtime.choices
    for sentence in below_files(name, arguments, groups, snapshot.text):
        log.warning(sentence)
    files = JobFiles.of(folder)
    streams = hasattr(launcher, "executor")
    if streams and launcher.settings["retries"]:
        raise ConfigurationError(
            f"hydra.launcher.retries={launcher.settings['retries']}, but this sweeper decides itself"
            " what runs again.\n  The launcher's retries are for other sweepers. Set"
            f" hydra.sweeper.retries={launcher.settings['retries']}\n  (and"
            " hydra.sweeper.retry_delay_s) instead. No job was started."
        )
    strategy = replace(
        plan.strategy,
        # A batch cannot be ended before its time, and its last job is what the stage waits for.
        pipeline=settings.pipeline and streams,
        work=work_of(launcher.settings if streams else {}, plan.configs),
    )
    plan = replace(plan, strategy=strategy)
    executor: Executor
    if streams:
        executor = launcher.executor(returns=not plan.ranked, files=files)
    else:
        executor = BatchExecutor(launcher, files, _batch_size(plan, launcher))
    try:
        progress = watch(executor)
        sweep = Sweep(folder, plan, executor, files, progress, snapshot)
        learn_from(sweep.history, executor)
        if not (folder / "multirun.yaml").exists():
            OmegaConf.save(config, folder / "multirun.yaml")
        try:
            history = sweep.run()
        except BaseException:
            log.info("The sweep stopped. To continue it: hydra.sweep.dir='%s'", folder)
            raise
    finally:
        executor.close()
    if not plan.ranked:
        return _batches(sweep.outcomes, settings)
    from rich.console import Console

    print_summary(plan, history, folder, Console())
    return sweep.best_chain()


def learn_from(history: History, executor: Executor) -> None:
    """A sweep that is continued knows what its jobs need, on this machine or on a cluster's."""
    if isinstance(executor, LocalExecutor | RayExecutor):
        for trial in history:
            if trial.outcome is not None:
                executor.learn(trial.stage, trial.outcome)


def _folders(config: DictConfig) -> list[str]:
    """The folders among the places where Hydra looks for configs."""
    sources = config.hydra.runtime.config_sources
    return [source.path for source in sources if source.schema == "file"]


def _batch_size(plan: Plan, launcher: Any) -> int | None:
    size = plan.settings.max_batch_size
    if size is None and type(launcher).__name__ == "BasicLauncher":
        return 1  # it runs jobs one after another: asked one by one, it loses none
    return size


def _batches(outcomes: Mapping[int, Outcome], settings: Settings) -> list[list[JobReturn]]:
    """JobReturns as the basic sweeper gives them, raising what the first failed job raised."""
    returned = [_job_return(Job(number, ()), outcomes[number]) for number in sorted(outcomes)]
    if settings.max_failures is None:
        for job_return in returned:
            _ = job_return.return_value
    size = settings.max_batch_size or max(len(returned), 1)
    return [returned[i : i + size] for i in range(0, len(returned), size)]


# -- the launcher -----------------------------------------------------------------------------------


def local_executor(
    settings: Mapping[str, Any],
    hydra_context: Any,
    task_function: Any,
    config: DictConfig,
    returns: bool,
    files: JobFiles,
    kept: KeptTemplate | None = None,
) -> LocalExecutor:
    """An executor of `hydra/launcher=gpu` for one sweep folder. Raises DeviceError."""
    package = _package(hydra_context, task_function, config, files)
    return from_settings(settings, package, files, str(files.folder.parent), returns, kept)


def ray_executor(
    settings: Mapping[str, Any],
    hydra_context: Any,
    task_function: Any,
    config: DictConfig,
    returns: bool,
    files: JobFiles,
) -> RayExecutor:
    """The same of `hydra/launcher=ray`. Raises ConfigurationError when Ray is not there."""
    package = _package(hydra_context, task_function, config, files)
    plain = {key: _plain(value) for key, value in settings.items()}
    # What Hydra copies for jobs elsewhere; they compose where it is not there to be copied.
    copied = {key: os.environ[key] for key in config.hydra.job.env_copy if key in os.environ}
    return RayExecutor(plain["address"], plain, package, returns, copied)


def _package(
    hydra_context: Any, task_function: Any, config: DictConfig, files: JobFiles
) -> Package:
    if isinstance(task_function, ReportingTask):
        task_function = task_function.task_function  # our job processes report by themselves
    return Package.pack(files, hydra_context, config, task_function)


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
    waiting: Waiting[Job] = Waiting()
    retried: Counter[int] = Counter()
    returned: dict[int, JobReturn] = {}
    with (
        _errors_for_hydra(),
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
                if outcome.lost:
                    progress.again(job, outcome.reason)
                    alone = job.alone or outcome.cause is Cause.DEVICE_MEMORY
                    waiting.add(replace(job, alone=alone))
                    continue
                if may_help(outcome) and retried[job.number] < settings["retries"]:
                    retried[job.number] += 1
                    pause_s = delay_s(settings["retry_delay_s"], retried[job.number])
                    progress.again(job, outcome.reason, pause_s)
                    waiting.add(job, pause_s)
                    continue
                returned[job.number] = _job_return(job, outcome)
                progress.finished(job, outcome)
                files.forget(job.number)
    files.package().unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # logs that belong to no folder stay
        files.folder.rmdir()
        files.folder.parent.rmdir()
    return [returned[job.number] for job in jobs]


class JobDiedError(RuntimeError):
    """A job process ended without an outcome."""


def _job_return(job: Job, outcome: Outcome) -> JobReturn:
    if outcome.job_return is not None:
        assert isinstance(outcome.job_return, JobReturn)
        return outcome.job_return
    if outcome.state is State.COMPLETE:  # a dead controller's job; its JobReturn died with it
        return JobReturn(
            overrides=list(filter_overrides(job.overrides)),
            status=JobStatus.COMPLETED,
            _return_value=outcome.score,
        )
    tail = "".join(f"\n  | {line}" for line in outcome.log_tail)
    return JobReturn(
        overrides=list(filter_overrides(job.overrides)),
        status=JobStatus.FAILED,
        _return_value=JobDiedError(f"job {job.number}: {outcome.reason}{tail}"),
    )


def configure_hydra_log(config: DictConfig) -> None:
    """Hydra's own logging, as launchers set it; 1.4 polices the classes it may name."""
    more = {}
    if "execution_whitelist" in inspect.signature(configure_log).parameters:
        more["execution_whitelist"] = config.hydra.get("execution_whitelist")
    configure_log(config.hydra.hydra_logging, config.hydra.verbose, **more)


# -- both -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _errors_for_hydra() -> Iterator[None]:
    """Our errors as Hydra prints its own: the message, without a traceback through Hydra."""
    try:
        yield
    except AutoCLError as error:
        raise CompactHydraException(f"{type(error).__name__}: {error}") from error
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


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
