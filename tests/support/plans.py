"""Plans without an app: settings and arguments, composing faked."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

from autocl_sweeper.plan import Settings, make_plan
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
