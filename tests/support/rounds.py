"""Sweeps in rounds without processes: what their jobs get, save and score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from autocl_sweeper.display.progress import LogProgress
from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.plan import Plan
from autocl_sweeper.sweep.loop import Sweep
from autocl_sweeper.sweep.progress import Progress
from autocl_sweeper.types import Cause, History, Job, Outcome, State

PSHE2 = {"factory": "autocl_sweeper.search.pshe2.pshe2_search", "popsize": 4}
SETTINGS = {
    "sequence": None,
    "params": {"x": "interval(0,1)", "n": "int(interval(1,9))"},
    "popsize": 4,
    "rounds": 3,
    "search": PSHE2,
}
POPULATION = {**SETTINGS, "parents": "population"}
FULLTRAIL = {**SETTINGS, "parents": "init"}


def option(job: Job, key: str) -> str | None:
    found = [text.partition("=")[2] for text in job.overrides if text.startswith(f"{key}=")]
    return found[0].strip("'").replace("\\'", "") if found else None


class Jobs:
    """Jobs that last `seconds` by number (else 1), fail as listed, and score by their x and parent."""

    def __init__(
        self, folder: Path, devices: int = 2, fails: Sequence[int] = (), **seconds: float
    ) -> None:
        self.folder = folder
        self.given: list[Job] = []
        self.fails = fails
        self.seconds = {int(number[1:]): one for number, one in seconds.items()}
        self.executor = SimulatedExecutor(devices, self.run)

    def run(self, job: Job) -> Outcome:
        self.given.append(job)
        lasts = self.seconds.get(job.number, 1.0)
        if job.number in self.fails:
            return Outcome(State.FAIL, "it broke", seconds=lasts, cause=Cause.EXCEPTION)
        parent = option(job, "init_from")
        before = 0.0 if parent is None else json.loads(Path(parent, "score.json").read_text())
        score = before + float(option(job, "x") or 0)
        subdir = option(job, "hydra.sweep.subdir")
        assert subdir is not None
        saved = self.folder / subdir / "checkpoint"
        saved.mkdir(parents=True)
        (saved / "score.json").write_text(json.dumps(score))
        return Outcome(
            State.COMPLETE,
            numbers={"score": score},
            returned="float",
            checkpoint=str(saved),
            seconds=lasts,
        )


def swept(plan: Plan, jobs: Jobs, progress: Progress | None = None) -> History:
    folder = jobs.folder
    return Sweep(folder, plan, jobs.executor, JobFiles.of(folder), progress or LogProgress()).run()
