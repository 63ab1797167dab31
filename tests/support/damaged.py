"""Sweep folders that were left by a kill and then damaged, and the sweep that was not.

A sweep of two tasks runs in virtual time, and its jobs leave real files: folders, logs, checkpoints,
outcomes on their way to the journal. All it comes to follows from the lineages of its trials.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.plans import plan_of

from autocl_sweeper.display.progress import LogProgress
from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.sweep.loop import Sweep
from autocl_sweeper.types import Job, Outcome, State, Trial


class Killed(BaseException):
    """The controller is gone: nothing catches this."""


class Mortal(LogProgress):
    """Ends the controller after so many starts and ends of trials; None: never."""

    def __init__(self, steps: int | None) -> None:
        self.left = steps

    def _step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed

    def started(self, trial: Trial) -> None:
        self._step()

    def finished(self, trial: Trial) -> None:
        self._step()


def run(folder: Path, steps: int | None = None) -> dict[str, Any]:
    """What the sweep in this folder comes to, by lineage. Raises Killed, and what a sweep raises."""
    plan = plan_of("task=a,b", "x=1,2,3", handover={"init_from": "checkpoint", "parent": "parent"})
    files = JobFiles.of(folder)
    lineages: dict[int, tuple[int, ...]] = {}

    def job_ends(job: Job) -> Outcome:
        given = dict(text.partition("=")[::2] for text in job.overrides)
        above = lineages[int(given["parent"])] if "parent" in given else ()
        lineages[job.number] = (*above, int(given["x"]))
        home = folder / given["hydra.sweep.subdir"].strip("'")
        checkpoint = home / "checkpoint"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "model").write_text(str(lineages[job.number]))
        (home / "job.log").write_text("busy\n")
        score = round(sum(x * (-0.6) ** n for n, x in enumerate(lineages[job.number])), 6)
        outcome = Outcome(
            State.COMPLETE, numbers={"score": score}, returned="float",
            checkpoint=str(checkpoint), seconds=1.0 + job.number % 3,
        )  # fmt: skip
        files.reserve(job.number)
        files.write_outcome(job.number, outcome)
        files.reports(job.number).write_text('{"score": 0.5, "step": 1}\n')
        return outcome

    executor = SimulatedExecutor(2, job_ends)
    sweep = Sweep(folder, plan, executor, files, Mortal(steps))
    for trial in sweep.history:
        chain = sweep.history.lineage(trial)
        lineages[trial.number] = tuple(one.suggestion.params["x"] for one in chain)
    history = sweep.run()
    found = {
        lineages[trial.number]: (trial.state.value, trial.score)
        for trial in history
        if trial.state is not State.PRUNED
    }
    beams = [[lineages[number] for number in beam] for beam in history.beams.values()]
    return {"trials": found, "beams": beams}


def _flip(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def _rubbish(path: Path, dice: random.Random) -> None:
    path.write_bytes(dice.randbytes(dice.randrange(400)))


def _truncate(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: -dice.randint(1, 200)])


def _lose_a_line(path: Path, dice: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    if lines:
        del lines[dice.randrange(len(lines))]
    path.write_bytes(b"".join(lines))


def _append(path: Path, dice: random.Random) -> None:
    with open(path, "ab") as file:
        file.write(dice.choice([b"\0" * 50, b"\n", b'{"event": "end"}\n', b"{}\n", b"\xff\n"]))


def _remove(path: Path, dice: random.Random) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _other_kind(path: Path, dice: random.Random) -> None:
    """A folder in place of a file, or a file in place of a folder."""
    was_folder = path.is_dir()
    _remove(path, dice)
    if was_folder:
        path.write_text("not a folder")
    else:
        (path / "inner").mkdir(parents=True)


def _stray(path: Path, dice: random.Random) -> None:
    """What others leave beside it."""
    name = dice.choice([f".{path.name}.tmp", f"{path.name}.attempt1", f".nfs{dice.random()}"])
    stray = path.with_name(name)
    if not stray.exists():
        (stray / "inner").mkdir(parents=True)


OF_FILES: list[Callable[[Path, random.Random], None]] = [
    _flip, _flip, _rubbish, _truncate, _lose_a_line, _append,
]  # fmt: skip
OF_ALL: list[Callable[[Path, random.Random], None]] = [_remove, _other_kind, _stray]


def damage(folder: Path, dice: random.Random) -> str:
    """Damage one thing in a sweep folder; what was done, in words. Models are the app's own."""
    things = [path for path in sorted(folder.rglob("*")) if path.name != "model"]
    path = dice.choice(things)
    how = dice.choice(OF_ALL + (OF_FILES * 2 if path.is_file() else []))
    how(path, dice)
    return f"{how.__name__.strip('_')} {path.relative_to(folder)}"
