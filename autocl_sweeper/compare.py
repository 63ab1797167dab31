"""Finished sweeps side by side, from their journals alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from autocl_sweeper import metrics
from autocl_sweeper.budget import HOUR_S
from autocl_sweeper.errors import SweepFolderError
from autocl_sweeper.overview import Overview, S, look
from autocl_sweeper.types import Trial

LEVEL = 0.95


@dataclass(frozen=True)
class Figures:
    """One sweep's numbers. None: its jobs do not return what it takes."""

    folder: Path
    finished: bool
    tasks: int
    tasks_reached: int  # by the best chain
    kind: Mapping[str, Any]  # protocol, search, k, tasks, jobs per stage
    key: str  # equal for sweeps that differ in their seeds only
    dev: float | None  # average accuracy over all tasks after the last one
    test: float | None
    dev_forgetting: float | None
    test_forgetting: float | None
    jobs: int  # without those given up
    given_up: int
    device_hours: float  # of all of them


@dataclass(frozen=True)
class Mean:
    """A mean over sweeps, and half the width of its t-interval; None for one sweep."""

    mean: float
    half: float | None


@dataclass(frozen=True)
class Row:
    """Sweeps that differ in their seeds only. Means are over the finished ones."""

    sweeps: Sequence[Figures]

    @property
    def finished(self) -> Sequence[Figures]:
        return [sweep for sweep in self.sweeps if sweep.finished]

    def mean(self, name: str) -> Mean | None:
        """The mean of a number in Figures; None where a sweep lacks it, or no sweep is finished."""
        values = [getattr(sweep, name) for sweep in self.finished]
        if not values or None in values:
            return None
        if len(values) == 1:
            return Mean(values[0], None)
        t = t_quantile((1 + LEVEL) / 2, len(values) - 1)
        return Mean(fmean(values), t * stdev(values) / math.sqrt(len(values)))


def compare(folders: Sequence[Path]) -> list[Row]:
    """A row per kind of sweep, in the order of the folders. Raises SweepFolderError."""
    rows: dict[str, list[Figures]] = {}
    for folder in dict.fromkeys(folders):
        found = figures(look(folder))
        rows.setdefault(found.key, []).append(found)
    return [Row(sweeps) for sweeps in rows.values()]


def figures(sweep: Overview) -> Figures:
    """The numbers of a sweep. Raises SweepFolderError for one without a sequence."""
    tasks, chain, history = sweep.tasks, sweep.chain, sweep.history
    if not tasks:
        raise SweepFolderError(
            f"'{sweep.folder}' holds a sweep without a sequence of tasks, so it has nothing to compare"
            " by.\n  Name folders of sweeps over a sequence (hydra.sweeper.sequence)."
        )
    dev, test = (_scores(tasks, chain, split) for split in ("evaluations", "tests"))
    kind = kind_of(sweep.fingerprint, sweep.state.bounds)
    return Figures(
        folder=sweep.folder,
        finished=sweep.state.ended,
        tasks=len(tasks),
        tasks_reached=len({trial.task for trial in chain}),
        kind=kind,
        key=json.dumps([kind, _without_seeds(sweep.fingerprint)], sort_keys=True),
        dev=dev[0],
        dev_forgetting=dev[1],
        test=test[0],
        test_forgetting=test[1],
        jobs=len(history) - len(history.given_up),
        given_up=len(history.given_up),
        device_hours=sweep.spent.device_s / HOUR_S,
    )


def _scores(
    tasks: Sequence[str], chain: Sequence[Trial], split: str
) -> tuple[float | None, float | None]:
    """Average accuracy and forgetting of a chain on one split, as far as it goes."""
    last = {trial.task: trial for trial in chain}  # of a task's rounds the last one is its training
    scores = [getattr(trial.outcome, split) for trial in last.values()]
    seen = list(tasks)[: len(last)]
    if not chain or any(not set(seen[: n + 1]) <= set(row) for n, row in enumerate(scores)):
        return None, None
    matrix = metrics.accuracy_matrix(seen, scores)
    forgetting = metrics.forgetting(matrix) if len(matrix) > 1 else None
    return metrics.average_accuracy(matrix), forgetting


def kind_of(fingerprint: Mapping[str, Any], bounds: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader tells sweeps apart by."""
    search = fingerprint.get(f"{S}search") or {}
    chosen = sorted({*fingerprint.get("search by task", {}).values()} or {search.get("factory")})
    return {
        "protocol": fingerprint.get(f"{S}protocol", "beam"),
        "search": "+".join(_short(str(name)) for name in chosen),
        "top_k": fingerprint.get(f"{S}top_k"),
        "tasks": len(fingerprint[f"{S}sequence"]),
        **{name: value for name, value in bounds.items() if value is not None},
    }


def _short(factory: str) -> str:
    return factory.rpartition(".")[2].removesuffix("Search").lower() or factory


def _without_seeds(node: Any) -> Any:
    """A fingerprint without the entries whose last word is `seed`."""
    if not isinstance(node, Mapping):
        return node
    return {
        key: _without_seeds(value)
        for key, value in node.items()
        if str(key).rpartition(".")[2].rpartition("_")[2] != "seed"
    }


def t_quantile(probability: float, freedom: int) -> float:
    """Student's t quantile."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
