"""Registers the keys of hydra/sweeper=autocl and hydra/launcher=gpu, whenever Hydra reads this file."""

from functools import partial
from importlib.util import find_spec
from inspect import signature
from typing import Any

from hydra.core.config_store import ConfigStore

from . import _schema as keys

# Samplers that a file for hydra-optuna-sweeper may choose; what becomes of them: plan/migration.py.
SAMPLERS = {
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "cmaes": "CmaEsSampler",
    "qmc": "QMCSampler",
    "random": "RandomSampler",
    "grid": "GridSampler",
    "nsgaii": "NSGAIISampler",
    "nsgaiii": "NSGAIIISampler",
    "motpe": "MOTPESampler",
}


def _register() -> None:
    # Hydra 1.4 wants to know what a second registration means; 1.3 executes this file again and
    # again and has no such question.
    store: Any = ConfigStore.instance().store
    if "replace" in signature(store).parameters:
        store = partial(store, replace=True)
    store = partial(store, provider="autocl-sweeper")
    store(group="hydra/sweeper", name="autocl", node=keys.AutoCLSweeperConf)
    store(group="hydra/launcher", name="gpu", node=keys.GPULauncherConf)
    store(group="hydra/launcher", name="ray", node=keys.RayLauncherConf)
    for name, search in (
        ("auto", keys.SearchConf("auto")),
        ("grid", keys.SearchConf("autocl_sweeper.search.grid.GridSearch")),
        ("random", keys.SearchConf("autocl_sweeper.search.random.RandomSearch")),
        ("relay", keys.RelayConf()),
        ("qmc", keys.QMCConf()),
        ("tpe", keys.TPEConf()),
        ("gp", keys.GPConf()),
        ("cmaes", keys.CMAESConf()),
        ("hazero", keys.HAZeroConf()),
        ("pshe2", keys.PSHE2Conf()),
    ):
        store(group="hydra/sweeper/search", name=name, node=search)
    store(group="hydra/sweeper/prune", name="asha", node=keys.AshaConf)
    store(group="hydra/sweeper/prune", name="median", node=keys.MedianConf)
    if find_spec("hydra_plugins.hydra_optuna_sweeper") is None:  # which registers its own
        for name, target in SAMPLERS.items():
            node = {"_target_": f"optuna.samplers.{target}", "seed": None}
            store(group="hydra/sweeper/sampler", name=name, node=node)


_register()
