"""Registers the keys of hydra/sweeper=autocl and hydra/launcher=gpu, whenever Hydra reads this file."""

from functools import partial
from inspect import signature
from typing import Any

from hydra.core.config_store import ConfigStore

from ._schema import (
    AutoCLSweeperConf,
    CMAESConf,
    GPConf,
    GPULauncherConf,
    HAZeroConf,
    PSHE2Conf,
    QMCConf,
    RayLauncherConf,
    SearchConf,
    TPEConf,
)


def _register() -> None:
    # Hydra 1.4 wants to know what a second registration means; 1.3 executes this file again and
    # again and has no such question.
    store: Any = ConfigStore.instance().store
    if "replace" in signature(store).parameters:
        store = partial(store, replace=True)
    store = partial(store, provider="autocl-sweeper")
    store(group="hydra/sweeper", name="autocl", node=AutoCLSweeperConf)
    store(group="hydra/launcher", name="gpu", node=GPULauncherConf)
    store(group="hydra/launcher", name="ray", node=RayLauncherConf)
    for name, search in (
        ("auto", SearchConf("auto")),
        ("grid", SearchConf("autocl_sweeper.search.grid.GridSearch")),
        ("random", SearchConf("autocl_sweeper.search.random.RandomSearch")),
        ("qmc", QMCConf()),
        ("tpe", TPEConf()),
        ("gp", GPConf()),
        ("cmaes", CMAESConf()),
        ("hazero", HAZeroConf()),
        ("pshe2", PSHE2Conf()),
    ):
        store(group="hydra/sweeper/search", name=name, node=search)


_register()
