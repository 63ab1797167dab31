"""What the controller spends per trial, from asking the strategy to the line in the journal.

    python benchmarks/launchers/scale.py                 10,000 no-op jobs in real processes
    python benchmarks/launchers/scale.py --inline        no processes: strategy, journal, results
    python benchmarks/launchers/scale.py --prune asha    jobs in virtual time that report nine times

CPU time of the controller process alone (`time.process_time`: jobs are other processes), so a busy
machine changes it little. The first and the last thousand trials are compared: neither the cost of
a trial nor the memory beyond what is kept of each trial may grow. Wall time is for orientation.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path

from autocl_sweeper.device.leases import LeaseFolder
from autocl_sweeper.device.pool import Pool
from autocl_sweeper.device.probe import CpuProbe
from autocl_sweeper.display.progress import LogProgress
from autocl_sweeper.executor.local import LocalExecutor
from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.journal import outcome_to_json
from autocl_sweeper.order import work_of
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.plan import Plan, Settings
from autocl_sweeper.plan.pruning import pruning_of
from autocl_sweeper.protocols import Executor
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.strategy.sequential import SequentialTopK
from autocl_sweeper.sweep.loop import Sweep
from autocl_sweeper.types import Job, Outcome, State, Trial
from hydra_plugins.hydra_autocl_sweeper._schema import AutoCLSweeperConf

DEFAULTS = asdict(AutoCLSweeperConf(handover={}))
SETTINGS = Settings(**{field.name: DEFAULTS[field.name] for field in fields(Settings)})


class Shell:
    """A job that costs next to nothing: the shell writes the outcome and ends."""

    def __init__(self, files: JobFiles) -> None:
        self._files = files

    def command(self) -> list[str]:
        return ["/bin/sh", "-c", 'eval "$(cat /proc/self/fd/$0)"']

    def order(self, job: Job, returns: bool) -> bytes:
        text = json.dumps(outcome_to_json(noop(job)))
        return f"echo '{text}' > '{self._files.outcome(job.number)}'".encode()


class Stopwatch(LogProgress):
    def __init__(self) -> None:
        self.ends: list[float] = []  # CPU seconds of this process
        self.memory_kib: list[int] = []

    def finished(self, trial: Trial) -> None:
        super().finished(trial)
        self.ends.append(time.process_time())
        self.memory_kib.append(resident_kib())


def resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


def noop(job: Job) -> Outcome:
    score = (job.number * 37 % 101) / 101
    return Outcome(State.COMPLETE, numbers={"score": score}, returned="float", seconds=9.5)


def curve(job: Job) -> list[tuple[float, int, float]]:
    """A report a second, with the score of the job: the rungs are at 1 and 3 of 9 steps."""
    return [(float(step), step, noop(job).numbers["score"]) for step in range(1, 10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trials", type=int, nargs="?", default=10000)
    parser.add_argument("--inline", action="store_true", help="jobs are simulated")
    parser.add_argument("--prune", choices=("asha", "median"), help="early stopping; no processes")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--order", choices=("longest", "submitted"), default="longest")
    options = parser.parse_args()
    # One parent in the first stage, two in the others.
    each = options.trials // (2 * options.stages - 1)
    stages = [
        Stage(
            number,
            f"task{number}",
            ListedSearch([{"lr": i / each, "epochs": 1 + i % 7} for i in range(each)]),
        )
        for number in range(1, options.stages + 1)
    ]
    tasks = {stage.task: stage.task for stage in stages}
    work = work_of({"order": options.order})
    stopping = pruning_of(options.prune, 2, True)
    strategy = SequentialTopK(stages, TopK(2), True, work)
    plan = Plan(SETTINGS, strategy, tasks, {"task": None}, True, {}, {}, stopping)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "sweep"
        files = JobFiles.of(folder)
        leases = LeaseFolder(Path(scratch) / "leases")
        pool = Pool(CpuProbe(2, {}), leases)
        executor: Executor = LocalExecutor(Shell(files), files, pool)
        if options.inline or stopping:
            executor = SimulatedExecutor(2, noop, curve=curve if stopping else lambda job: ())
        watch = Stopwatch()
        wall = time.monotonic()
        start = time.process_time()
        history = Sweep(folder, plan, executor, files, watch).run()
        wall = time.monotonic() - wall
        executor.close()
        size = (folder / "journal.jsonl").stat().st_size
    part = min(1000, len(watch.ends) // 4)
    first = (watch.ends[part] - watch.ends[0]) / part
    last = (watch.ends[-1] - watch.ends[-1 - part]) / part
    mean = (watch.ends[-1] - start) / len(history)
    grown = [watch.memory_kib[part] - watch.memory_kib[0],
             watch.memory_kib[-1] - watch.memory_kib[-1 - part]]  # fmt: skip
    kind = "simulated" if options.inline or stopping else "processes"
    versions = ", ".join(f"{name} {version(name)}" for name in ("hydra-core", "omegaconf"))
    print(f"Python {sys.version.split()[0]}, {versions}, {os.cpu_count()} cores")
    print(
        f"{len(history)} trials in {options.stages} stages, jobs are {kind}, {options.order} first"
        + (f", prune={options.prune}" if stopping else "")
    )
    print(f"controller CPU per trial: mean {1e3 * mean:.2f} ms")
    print(f"  first {part}: {1e3 * first:.2f} ms, last {part}: {1e3 * last:.2f} ms", end=", ")
    print(f"ratio last / first {last / first:.2f}")
    print(f"controller memory: {watch.memory_kib[0] / 1024:.1f} MiB at the first end,", end=" ")
    print(f"{watch.memory_kib[-1] / 1024:.1f} at the last;", end=" ")
    print(
        f"per trial {grown[0] / part:.2f} KiB in the first {part}, {grown[1] / part:.2f} in the last"
    )
    print(f"wall {wall:.1f} s, journal {size / len(history):.0f} bytes per trial")


if __name__ == "__main__":
    main()
