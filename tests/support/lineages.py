"""Sweeps over simulated devices whose jobs turn out as their chain of parameters says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from support.journals import written_anew
from support.plans import sweep_of

from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.journal import Record, read
from autocl_sweeper.plan import Plan
from autocl_sweeper.types import History, Outcome, State, Trial

Turns = Callable[[Sequence[Trial]], Outcome]
"""Lineage of a trial -> how its job ends."""


class Simulated:
    """A sweep from the start, or what is left of one whose journal has these records."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        turns: Turns,
        devices: int = 1,
        records: Sequence[Record] = (),
    ) -> None:
        folder.mkdir(exist_ok=True)
        if records:
            written_anew(folder, records)
        self.folder, self.plan = folder, plan
        self.executor = SimulatedExecutor(
            devices, lambda job: turns(self.history.lineage(self.history[job.number]))
        )
        clock = SimpleNamespace(
            time=lambda: self.executor.clock_s, monotonic=lambda: self.executor.clock_s
        )
        self.sweep = sweep_of(folder, plan, self.executor, clock=clock)
        self.history: History = self.sweep.history
        self.sweep.run()

    def records(self) -> list[Record]:
        return read(self.folder)

    def trials(self) -> list[Any]:
        return [
            (t.task, dict(t.suggestion.params), t.parent, t.repeat, t.extra, t.state, t.score)
            for t in self.history
        ]

    def counted(self) -> list[Trial]:
        return [trial for trial in self.history if trial.state is not State.PRUNED]

    def best(self) -> list[dict[str, Any]]:
        return [entry["params"] for entry in self.sweep.best_chain()]


def landscape(lineage: Sequence[Trial]) -> float:
    """A score that every step of a chain has a part in."""
    steps = "/".join(str(sorted(trial.suggestion.params.items())) for trial in lineage)
    return Random(steps).random() + sum(_of(trial) for trial in lineage)


def _of(trial: Trial) -> float:
    return sum(v for v in trial.suggestion.params.values() if isinstance(v, (int, float)))


def completes(lineage: Sequence[Trial]) -> Outcome:
    seconds = Random(f"{lineage[-1].number}").uniform(0.5, 3)
    numbers = {"score": landscape(lineage)}
    return Outcome(State.COMPLETE, numbers=numbers, returned="float", seconds=seconds)


def completed(score: float, checkpoint: Path, seconds: float = 1.0) -> Outcome:
    numbers, saved = {"score": score}, str(checkpoint)  # any folder that is there
    return Outcome(
        State.COMPLETE, numbers=numbers, returned="float", seconds=seconds, checkpoint=saved
    )
