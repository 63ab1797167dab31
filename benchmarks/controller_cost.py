"""What the controller spends per trial, from asking the strategy to the line in the journal.

    python benchmarks/controller_cost.py            1,000 trials, no-op jobs in real processes
    python benchmarks/controller_cost.py 10000 --inline   no processes: strategy, journal, results

CPU time of the controller process alone (`time.process_time`: jobs are other processes), so a busy
machine changes it little. The first and the last tenth of the trials are compared: the cost must
not grow with the number of trials. Wall time is printed for orientation only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from autocl_sweeper.devices import CpuProbe
from autocl_sweeper.executor.local import LocalExecutor
from autocl_sweeper.executor.pool import Pool
from autocl_sweeper.journal import outcome_to_json
from autocl_sweeper.leases import LeaseFolder
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.plan import Plan, Settings
from autocl_sweeper.report.progress import LogProgress
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy import SequentialTopK, Stage
from autocl_sweeper.sweep import Sweep
from autocl_sweeper.types import Job, Outcome, State

SETTINGS = Settings(
    sequence="task", top_k=2, metric=None, direction="maximize", params={}, task_params={},
    rounds=1, popsize=None, handover={}, max_failures=None, retries=0, retry_delay_s=0.0,
    max_batch_size=None, keep_checkpoints="beam", seed=0, pipeline=True, search={},
)  # fmt: skip


class Shell:
    """A job that costs next to nothing: the shell writes the outcome and ends."""

    def __init__(self, files: JobFiles) -> None:
        self._files = files

    def argv(self, job: Job, returns: bool) -> list[str]:
        text = json.dumps(outcome_to_json(noop(job)))
        return ["/bin/sh", "-c", f"echo '{text}' > '{self._files.outcome(job.number)}'"]


class Inline:
    """No process at all: a submitted job has ended."""

    def __init__(self) -> None:
        self._ended: list[tuple[Job, Outcome]] = []

    def free_slots(self) -> int:
        return 2 - len(self._ended)

    def submit(self, job: Job) -> None:
        self._ended.append((job, noop(job)))

    def wait(self, timeout_s: float | None) -> list[tuple[Job, Outcome]]:
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, job: Job) -> None: ...

    def close(self) -> None: ...


class Stopwatch(LogProgress):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def finished(self, trial: object) -> None:
        super().finished(trial)
        self.ends.append(time.process_time())


def noop(job: Job) -> Outcome:
    score = (job.number * 37 % 101) / 101
    return Outcome(State.COMPLETE, numbers={"score": score}, returned="float")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trials", type=int, nargs="?", default=1000)
    parser.add_argument("--inline", action="store_true", help="jobs are calls, not processes")
    parser.add_argument("--stages", type=int, default=2)
    options = parser.parse_args()
    # One parent in the first stage, two in the others.
    each = options.trials // (2 * options.stages - 1)
    stages = [
        Stage(number, f"task{number}", ListedSearch([{"lr": i / each} for i in range(each)]))
        for number in range(1, options.stages + 1)
    ]
    tasks = {stage.task: stage.task for stage in stages}
    plan = Plan(SETTINGS, SequentialTopK(stages, TopK(2)), tasks, {"task": None}, True, {}, {})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "sweep"
        files = JobFiles.of(folder)
        leases = LeaseFolder(Path(scratch) / "leases")
        pool = Pool(CpuProbe(2, {}), leases)
        executor = Inline() if options.inline else LocalExecutor(Shell(files), files, pool)
        watch = Stopwatch()
        wall = time.monotonic()
        start = time.process_time()
        history = Sweep(folder, plan, executor, files, watch).run()
        wall = time.monotonic() - wall
        executor.close()
        size = (folder / "journal.jsonl").stat().st_size
    tenth = len(watch.ends) // 10
    first = (watch.ends[tenth] - start) / tenth
    last = (watch.ends[-1] - watch.ends[-1 - tenth]) / tenth
    mean = (watch.ends[-1] - start) / len(history)
    kind = "calls" if options.inline else "processes"
    print(f"python {sys.version.split()[0]}, {len(history)} trials, jobs are {kind}")
    print(f"controller CPU per trial: mean {1e3 * mean:.2f} ms")
    print(f"  first tenth {1e3 * first:.2f} ms, last tenth {1e3 * last:.2f} ms", end=", ")
    print(f"ratio last / first {last / first:.2f}")
    print(f"wall {wall:.1f} s, journal {size / len(history):.0f} bytes per trial")


if __name__ == "__main__":
    main()
