"""Plans without an app, composing faked, and sweeps of such plans without a screen."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from autocl_sweeper.display.progress import LogProgress
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.plan import Settings, make_plan
from autocl_sweeper.sweep.loop import Sweep
from hydra_plugins.hydra_autocl_sweeper._schema import AutoCLSweeperConf

GRID = {"factory": "autocl_sweeper.search.grid.GridSearch"}
RANDOM = {"factory": "autocl_sweeper.search.random.RandomSearch"}
OF_HYDRA = asdict(AutoCLSweeperConf())
SETTINGS = Settings(
    **{field.name: OF_HYDRA[field.name] for field in fields(Settings)}
    | {"direction": "maximize", "population": {}, "retry_delay_s": 0.0, "search": GRID}
)


def plan_of(*arguments, compose=lambda overrides, meant_for: {}, knows_folders=True, **settings):
    return make_plan(replace(SETTINGS, **settings), arguments, compose, None, knows_folders)


def sweep_of(folder: Path, plan: Any, executor: Any, **more: Any) -> Sweep:
    return Sweep(folder, plan, executor, JobFiles.of(folder), LogProgress(), **more)
