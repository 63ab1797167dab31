"""What launchers cost a job that imports torch, transformers and peft and does nothing.

    pip install -c constraints.txt -e '.[train,bench]'
    python benchmarks/launchers/overhead.py              about four minutes on two idle cores
    python benchmarks/launchers/overhead.py --rounds 1 --jobs 10 --only ours joblib

One run holds all launchers, in turns, so that a busy machine slows all of them: only ratios mean
anything. First single jobs: from submit to ready in user code, to the end of the job, and the memory
that no other process shares then. After that many jobs through each launcher, two at a time, from
command to prompt. Launchers that take seconds per job run fewer of them (`run`), which are scaled by a
straight line through two counts. What is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from imports import MODULES, job

HERE = Path(__file__).resolve().parent
SLOTS = 2
POLL_S = 5.0  # AutoCL's loop
PRELOAD = f"hydra.launcher.preload=[{','.join(MODULES)}]"
PACKAGES = ("hydra-core", *MODULES, "joblib", "hydra-joblib-launcher", "submitit",
            "hydra-submitit-launcher", "ray")  # fmt: skip

job.__module__ = "__main__"  # pickled by value: workers need not find this folder

OneJob = Callable[[], float]
"""Runs one job to its end, which is when the launcher says so; when it was submitted."""


# -- one job at a time --------------------------------------------------------------------------------


@contextmanager
def plain_subprocess(folder: Path) -> Iterator[OneJob]:
    argv = [sys.executable, str(HERE / "imports.py"), f"hydra.run.dir={folder}"]
    yield _timed_from(lambda: _quiet(argv))


@contextmanager
def ours(folder: Path, *overrides: str) -> Iterator[OneJob]:
    from autocl_sweeper.outcome import JobFiles
    from autocl_sweeper.types import Job, State

    launcher = hydra_launcher(folder, "gpu", "hydra.launcher.cpu_slots=1", *overrides)
    executor = launcher.executor(returns=False, files=JobFiles.of(folder))
    numbers = iter(range(1_000_000))

    def one() -> float:
        number = next(numbers)
        assert executor.free_slots()  # the slot is leased; `submit` uses it
        begin = time.monotonic()
        executor.submit(Job(number, (f"+n={number}",)))
        while not (ended := executor.wait(None)):
            pass
        assert ended[0][1].state is State.COMPLETE, ended[0][1]
        return begin

    try:
        yield one
    finally:
        executor.close()


@contextmanager
def batches(folder: Path, name: str, *overrides: str) -> Iterator[OneJob]:
    """A launcher as Hydra's sweepers call it, with a job per call."""
    launcher = hydra_launcher(folder, name, *overrides)
    numbers = iter(range(1_000_000))

    def one() -> None:
        number = next(numbers)
        assert launcher.launch([[f"+n={number}"]], number)[0].return_value == 1.0

    yield _timed_from(one)


def hydra_launcher(folder: Path, name: str, *overrides: str) -> Any:
    """As Hydra makes it for a multirun. Hydra is initialised."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    loader = GlobalHydra.instance().config_loader()
    texts = [f"hydra/launcher={name}", f"hydra.sweep.dir={folder}", "hydra.job.name=imports",
             "hydra/hydra_logging=none"]  # fmt: skip
    config = loader.load_configuration(None, [*texts, *overrides], RunMode.MULTIRUN)
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    return Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=job, config=config
    )


def _timed_from(run: Callable[[], object]) -> OneJob:
    def one() -> float:
        begin = time.monotonic()
        run()
        return begin

    return one


@contextmanager
def ray_tasks(folder: Path, isolated: bool) -> Iterator[OneJob]:
    import ray

    # Workers of another environment are others: else a task would find one that has imported.
    apart = {"max_calls": 1, "runtime_env": {"env_vars": {"APART": "1"}}}
    options: dict[str, Any] = apart if isolated else {}
    task = ray.remote(num_cpus=1, **options)(job)
    yield _timed_from(lambda: ray.get(task.remote(None)))


@contextmanager
def ray_cluster() -> Iterator[float]:
    """Ray with as many slots as the others have; yields the seconds its start took."""
    import ray

    begin = time.monotonic()
    ray.init(
        num_cpus=SLOTS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=80 << 20,
    )
    try:
        yield time.monotonic() - begin
    finally:
        ray.shutdown()


@dataclass
class Kind:
    """A way to run a job; `often`: jobs per round."""

    name: str
    make: Callable[[Path], Any]
    often: int = 1
    warm_up: bool = False  # its workers, or its forkserver, start before anything is measured


KINDS = (
    Kind("subprocess", plain_subprocess),
    Kind("ours, fresh", lambda folder: ours(folder, "hydra.launcher.warm=false")),
    Kind("ours, warm", lambda folder: ours(folder, PRELOAD), 5, True),
    Kind("joblib, reused worker", lambda folder: batches(
        folder, "joblib", f"hydra.launcher.n_jobs={SLOTS}"), 5, True),
    Kind("submitit local", lambda folder: batches(
        folder, "submitit_local", "hydra.launcher.timeout_min=10")),
    Kind("ray, reused worker", lambda folder: ray_tasks(folder, False), 5, True),
    Kind("ray, process per task", lambda folder: ray_tasks(folder, True)),
)  # fmt: skip
Row = tuple[float, float, float]  # s to ready, s to the end, private MiB


def single_jobs(folder: Path, kinds: list[Kind], rounds: int) -> dict[str, list[Row]]:
    from hydra import initialize
    from hydra.core.utils import setup_globals

    ready_file = folder / "ready.json"
    os.environ["READY_FILE"] = str(ready_file)
    found: dict[str, list[Row]] = {kind.name: [] for kind in kinds}
    with ExitStack() as stack:
        stack.enter_context(initialize(config_path=None, version_base=None))
        setup_globals()
        if any(kind.name.startswith("ray") for kind in kinds):
            stack.enter_context(ray_cluster())
        runs = []
        for place, kind in enumerate(kinds):
            one = stack.enter_context(kind.make(folder / f"kind-{place}"))
            if kind.warm_up:
                one()
            runs.append((kind, one))
        for _ in range(rounds):
            for kind, one in runs:
                for _ in range(kind.often):
                    begin = one()
                    end = time.monotonic()
                    ready, private_mib = json.loads(ready_file.read_text())
                    found[kind.name].append((ready - begin, end - begin, private_mib))
    del os.environ["READY_FILE"]
    return found


# -- many jobs, two at a time -------------------------------------------------------------------------


def multirun(folder: Path, count: int, *overrides: str) -> None:
    jobs = ",".join(map(str, range(count)))
    _quiet([
        sys.executable, str(HERE / "imports.py"), "-m", f"hydra.sweep.dir={folder}", f"+n={jobs}",
        *overrides,
    ])  # fmt: skip


def polled_loop(folder: Path, count: int) -> None:
    """As AutoCL scheduled: a subprocess per job, slots looked at every five seconds."""
    waiting = list(range(count))
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        running = [process for process in running if process.poll() is None]
        while waiting and len(running) < SLOTS:
            argv = [
                sys.executable,
                str(HERE / "imports.py"),
                f"hydra.run.dir={folder}/{waiting.pop()}",
            ]
            running.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL))
        if waiting or running:
            time.sleep(POLL_S)


def ray_batch(folder: Path, count: int) -> None:
    import ray

    with ray_cluster():
        task = ray.remote(num_cpus=1, max_calls=1)(job)
        ray.get([task.remote(None) for _ in range(count)])


@dataclass
class Many:
    """`counts`: what is run where `--jobs` would take too long; None: all of them."""

    name: str
    run: Callable[[Path, int], None]
    counts: tuple[int, int] | None = None


GPU = ("hydra/launcher=gpu", f"hydra.launcher.cpu_slots={SLOTS}")
MANY = (
    Many("ours, warm", lambda folder, n: multirun(folder, n, *GPU, PRELOAD)),
    Many("joblib", lambda folder, n: multirun(
        folder, n, "hydra/launcher=joblib", f"hydra.launcher.n_jobs={SLOTS}")),
    Many("ours, fresh", lambda folder, n: multirun(folder, n, *GPU), (2, 6)),
    Many("submitit local", lambda folder, n: multirun(
        folder, n, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"), (2, 6)),
    Many("polled loop", polled_loop, (2, 6)),
    Many("ray, process per task", ray_batch, (2, 6)),
)  # fmt: skip


def many_jobs(folder: Path, kinds: list[Many], rounds: int, jobs: int) -> dict[str, list[float]]:
    """kind -> seconds for all jobs; those that are scaled run once."""
    found: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for number in range(rounds):
        for place, kind in enumerate(kinds):
            if kind.counts is None or jobs <= kind.counts[1]:
                found[kind.name].append(timed(kind, folder / f"{place}-{number}", jobs))
            elif number == 0:
                few, more = (timed(kind, folder / f"{place}-{n}", n) for n in kind.counts)
                per_job = (more - few) / (kind.counts[1] - kind.counts[0])
                found[kind.name].append(more + (jobs - kind.counts[1]) * per_job)
    return found


def timed(kind: Many, folder: Path, count: int) -> float:
    begin = time.monotonic()
    kind.run(folder, count)
    return time.monotonic() - begin


def _quiet(argv: list[str]) -> None:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}\nended with {done.returncode}:\n{done.stdout.decode()}")


# -- the table ----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of single jobs (default: 3)")
    parser.add_argument("--jobs", type=int, default=50, help="of a multirun (default: 50)")
    parser.add_argument(
        "--only", nargs="*", default=[], help="beginnings of names, to leave others out"
    )
    options = parser.parse_args()
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            print(f"{package} is not installed: left out")
    wanted = tuple(options.only) or ("",)

    def chosen(name: str) -> bool:
        package = {"submitit local": "hydra-submitit-launcher", "joblib": "hydra-joblib-launcher",
                   "ray": "ray"}.get(name.partition(",")[0], "hydra-core")  # fmt: skip
        return package in installed and name.startswith(wanted)

    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["AUTOCL_LEASE_DIR"] = f"{scratch}/leases"
        kinds = [kind for kind in KINDS if chosen(kind.name) or kind.name == "subprocess"]
        print(f"{date.today()}, python {sys.version.split()[0]}, {os.cpu_count()} cores, ", end="")
        print(", ".join(f"{name} {number}" for name, number in installed.items()), flush=True)
        show_single(single_jobs(Path(scratch), kinds, options.rounds))
        chosen_many = [kind for kind in MANY if chosen(kind.name)]
        rounds = min(2, options.rounds)
        show_many(
            many_jobs(Path(scratch) / "many", chosen_many, rounds, options.jobs), options.jobs
        )


def show_single(found: dict[str, list[Row]]) -> None:
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in found.items()
    }
    baseline = medians["subprocess"]
    print(f"\n{'one job, median':24}{'ready ms':>10}{'/':>7}{'end ms':>10}{'/':>7}{'MiB':>8}{'/':>7}"
          f"{'jobs':>6}   /: a subprocess takes so many times as much")  # fmt: skip
    for name, (ready, end, mib) in medians.items():
        ratios = [b / m for b, m in zip(baseline, (ready, end, mib), strict=True)]
        print(f"{name:24}{ready * 1e3:10.1f}{ratios[0]:7.1f}{end * 1e3:10.1f}{ratios[1]:7.1f}"
              f"{mib:8.1f}{ratios[2]:7.1f}{len(found[name]):6}", flush=True)  # fmt: skip


def show_many(found: dict[str, list[float]], jobs: int) -> None:
    counts = {kind.name: kind.counts for kind in MANY}
    ours = statistics.median(found["ours, warm"]) if "ours, warm" in found else None
    print(f"\n{jobs} jobs, {SLOTS} at a time, everything included")
    print(f"{'':24}{'s':>8}{'/ ours':>8}   run")
    for name, times in found.items():
        median = statistics.median(times)
        ratio = f"{median / ours:8.1f}" if ours else f"{'':8}"
        scaled = counts[name] is not None and jobs > counts[name][1]  # type: ignore[index]
        how = "{} and {} jobs, scaled".format(*counts[name]) if scaled else f"{len(times)} times"  # type: ignore[misc]
        print(f"{name:24}{median:8.1f}{ratio}   {how}")


if __name__ == "__main__":
    main()
