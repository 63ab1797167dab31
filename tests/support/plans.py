"""Plans without an app, composing faked, and sweeps of such plans without a screen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from autocl_sweeper.display.progress import LogProgress
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.plan import Settings, make_plan
from autocl_sweeper.sweep.loop import Sweep

GRID = {"factory": "autocl_sweeper.search.grid.GridSearch"}
RANDOM = {"factory": "autocl_sweeper.search.random.RandomSearch"}
SETTINGS = Settings(
    sequence="task",
    top_k=2,
    metric=None,
    direction="maximize",
    params={},
    task_params={},
    when={},
    zip=[],
    param_file=None,
    jobs=None,
    rounds=1,
    popsize=None,
    parents="beam",
    extra_parents=0,
    population={},
    init=True,
    transfer=True,
    carry_from=None,
    objective=None,
    selection="top_k",
    seeds=1,
    protocol="beam",
    first_k=3,
    prune=None,
    budget={},
    handover={"init_from": "checkpoint"},
    max_failures=None,
    retries=0,
    retry_delay_s=0.0,
    max_batch_size=None,
    keep_checkpoints="beam",
    check=None,
    dry_run=False,
    report=False,
    export={},
    seed=0,
    pipeline=True,
    search=GRID,
)


def plan_of(*arguments, compose=lambda overrides, meant_for: {}, knows_folders=True, **settings):
    return make_plan(replace(SETTINGS, **settings), arguments, compose, None, knows_folders)


def sweep_of(folder: Path, plan: Any, executor: Any, **more: Any) -> Sweep:
    return Sweep(folder, plan, executor, JobFiles.of(folder), LogProgress(), **more)
