"""Trials as MLflow runs: one run for the sweep, and a nested run for each trial."""

from __future__ import annotations

import json
import logging
import math
import os
import posixpath
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from autocl_sweeper.export.rows import Beams, Described, Row, about, numbers_of, text_of
from autocl_sweeper.space import bare
from autocl_sweeper.types import State, Value

EXPERIMENT = "autocl"
SWEEP = "sweep_id"  # the tag by which a sweep finds its run again
PARENT = "mlflow.parentRunId"  # the tag by which MLflow nests runs
NAME = "mlflow.runName"
BEST = "best_value"  # of a stage, by its number
REPORT = "report"
LONGEST = 5000  # characters of a parameter or tag; servers before MLflow 3 take no more of a tag
BATCH = 100  # parameters, tags or metrics that MLflow takes in one call
SAME_S = 10.0  # a trial exported live starts a moment later there than in the journal

STATUS = {
    State.RUNNING: "RUNNING",
    State.COMPLETE: "FINISHED",
    State.PRUNED: "KILLED",
    State.FAIL: "FAILED",
}


@dataclass
class _Run:
    """A run as MLflow has it."""

    id: str
    started_s: float
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = -1  # of the last report

    def holds(self, row: Row, params: Mapping[str, str]) -> bool:
        """Whether it is of this attempt of this trial."""
        same = all(self.tags.get(key) == _text(value) for key, value in about(row.trial).items())
        near = row.started is None or abs(row.started - self.started_s) < SAME_S
        return same and near and self.params.items() <= params.items()


class Runs:
    """A sweep in one MLflow experiment. What is there of the sweep already is completed.

    Runs are named by id in every call, so MLFLOW_RUN_ID and a run that is active here change
    nothing. Raises whatever MLflow raises.
    """

    def __init__(self, uri: str, sweep: Described, experiment: str | None = None) -> None:
        # MLflow reports its use to its makers. A sweep asks no network that it was not told to ask.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        with _quiet():
            self._client: Any = MlflowClient(uri)
            name = experiment or EXPERIMENT
            found = self._client.get_experiment_by_name(name)
            there = found.experiment_id if found else self._client.create_experiment(name)
        self._experiment: str = there
        self._sweep = sweep
        self._rows: dict[int, Row] = {}
        self._beams: dict[int, Sequence[int]] = {}
        self._runs: dict[int, _Run] = {}
        folder = os.fsencode(sweep.folder)
        settings = {_name(key): _text(value) for key, value in sweep.settings.items()}
        sweep_id = blake2b(folder, digest_size=8).hexdigest()
        self._sweep_run = self._find_sweep(sweep_id, settings)
        self._scores: dict[int, float] = {}  # by stage
        if BEST in self._sweep_run.metrics:
            for one in self._client.get_metric_history(self._sweep_run.id, BEST):
                self._scores[one.step] = one.value
        for run in self._search(PARENT, self._sweep_run.id):
            if run.tags.get("trial", "").isdigit():
                self._runs[int(run.tags["trial"])] = run

    def write(self, rows: Sequence[Row], beams: Beams) -> None:
        self._rows.update((row.trial.number, row) for row in rows)
        for row in rows:
            self._write(row)
        for stage, beam in beams.items():
            known = all(number in self._rows for number in beam)
            if known and self._beams.get(stage) != beam:
                self._write_beam(stage, beam)
        over = all(stage in self._beams for stage in range(1, self._sweep.stages + 1))
        self._set_status(self._sweep_run, "FINISHED" if over else "RUNNING", time.time())

    # -- the run of the sweep --

    def _find_sweep(self, sweep_id: str, params: Mapping[str, str]) -> _Run:
        """The run of the sweep; one of another sweep that was in the same folder is left alone."""
        for run in self._search(SWEEP, sweep_id):
            if run.params == params:
                return run
        tags = {SWEEP: sweep_id, "folder": _text(str(self._sweep.folder))}
        run = self._create(self._sweep.name, time.time(), tags)
        self._add(run, params=params)
        return run

    def _write_beam(self, stage: int, beam: Sequence[int]) -> None:
        for place, number in enumerate(beam, start=1):
            self._add(self._runs[number], tags={"rank": str(place)})
        self._beams[stage] = tuple(beam)
        kept = {str(one): list(self._beams[one]) for one in sorted(self._beams)}
        self._add(self._sweep_run, tags={"beams": json.dumps(kept)})
        best = self._rows[beam[0]].score if beam else None
        if best is not None and self._scores.get(stage) != best:
            self._scores[stage] = best
            self._add(self._sweep_run, metrics=[(BEST, best, stage)])

    # -- runs of trials --

    def _write(self, row: Row) -> None:
        trial, number = row.trial, row.trial.number
        keys = {"task": trial.task, **trial.suggestion.params}
        params = {_name(bare(key)): _text(value) for key, value in keys.items()}
        run = self._runs.get(number)
        if run is not None and not run.holds(row, params):
            # MLflow changes no parameter and takes no metric back: it is a run of its own.
            self._client.delete_run(run.id)
            run = None
        if run is None:
            tags = {PARENT: self._sweep_run.id, **self._tags(row)}
            name = trial.folder or f"{trial.stage}_{trial.task}/{number}"
            run = self._runs[number] = self._create(name, row.started or time.time(), tags)
        fresh = [one for one in row.reports if one.step > run.step and math.isfinite(one.score)]
        numbers = {} if row.state is State.RUNNING else numbers_of(row)
        last = row.reports[-1].step if row.reports else 0
        self._add(
            run,
            params={key: text for key, text in params.items() if key not in run.params},
            tags={k: text for k, text in self._tags(row).items() if run.tags.get(k) != text},
            metrics=[
                *((REPORT, one.score, one.step) for one in fresh),
                *(
                    (_name(key), value, last)
                    for key, value in numbers.items()
                    if math.isfinite(value) and run.metrics.get(_name(key)) != value
                ),
            ],
        )
        run.step = max(run.step, fresh[-1].step) if fresh else run.step
        self._set_status(run, STATUS[row.state], row.ended)

    def _tags(self, row: Row) -> dict[str, str]:
        trial = row.trial
        found = {key: _text(value) for key, value in about(trial).items()}
        found |= {"state": row.state.value, "lineage": " > ".join(map(str, self._lineage(row)))}
        if trial.parent is not None and trial.parent in self._runs:
            found["parent_run"] = self._runs[trial.parent].id
        if trial.outcome is not None and trial.outcome.reason and row.state is not State.RUNNING:
            found["reason"] = _text(trial.outcome.reason)
        return found

    def _lineage(self, row: Row) -> list[int]:
        chain = [row.trial.number]
        while (parent := row.trial.parent) is not None:
            chain.append(parent)
            if parent not in self._rows:
                break
            row = self._rows[parent]
        return chain[::-1]

    # -- what MLflow is asked --

    def _search(self, tag: str, value: str) -> Iterator[_Run]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`{tag}` = '{value}'", max_results=1000, page_token=token
            )
            for one in page:
                yield self._known(one)
            token = page.token
            if not token:
                return

    def _known(self, one: Any) -> _Run:
        info, data = one.info, one.data
        metrics = dict(data.metrics)
        asked = REPORT in metrics
        curve = self._client.get_metric_history(info.run_id, REPORT) if asked else []
        step = max((one.step for one in curve), default=-1)
        params, tags = dict(data.params), dict(data.tags)
        return _Run(info.run_id, info.start_time / 1000, info.status, params, tags, metrics, step)

    def _create(self, name: str, started_s: float, tags: Mapping[str, str]) -> _Run:
        begun = int(started_s * 1000)
        made = self._client.create_run(self._experiment, begun, dict(tags), name)
        return _Run(made.info.run_id, started_s, "RUNNING", {}, dict(tags))

    def _add(
        self,
        run: _Run,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Sequence[tuple[str, float, int]] = (),
    ) -> None:
        """Log to a run, in as many calls as MLflow needs."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        every = {
            "params": [Param(*one) for one in (params or {}).items()],
            "tags": [RunTag(*one) for one in (tags or {}).items()],
            "metrics": [Metric(key, value, now, step) for key, value, step in metrics],
        }
        for kind, entities in every.items():
            for start in range(0, len(entities), BATCH):
                self._client.log_batch(run.id, **{kind: entities[start : start + BATCH]})
        run.params.update(params or {})
        run.tags.update(tags or {})
        run.metrics.update((key, value) for key, value, _ in metrics)

    def _set_status(self, run: _Run, status: str, ended_s: float | None) -> None:
        if run.status == status:
            return
        if status == "RUNNING":
            self._client.update_run(run.id, status)
        else:
            ended = None if ended_s is None else int(ended_s * 1000)
            self._client.set_terminated(run.id, status, ended)
        run.status = status


def _text(value: Value) -> str:
    return (value if isinstance(value, str) else text_of(value))[:LONGEST]


def _name(key: str) -> str:
    """A key as MLflow takes names: a path of plain characters."""
    plain = re.sub(r"[^\w./: -]", "_", key)
    odd = plain != posixpath.normpath(plain) or plain.startswith(("/", "."))
    return plain.replace("/", "_").strip(".") if odd else plain


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's lines about the tables it makes, which go to the terminal past Hydra's logging."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
