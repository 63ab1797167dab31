"""The command line of the training app: compose a config with Hydra, run it as one job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from autocl_sweeper.errors import EvaluationMemoryError, InfeasibleError
from train.config.schema import CONF, VERSION_BASE, register

register()


@hydra.main(**VERSION_BASE, config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> dict[str, Any]:
    """Train the task of `cfg` in Hydra's output folder and return its scores. Raises Refused, Ended."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from train.check import Ended, Refused

    of_hydra = HydraConfig.get()
    try:
        return _run(cfg, of_hydra)
    except Refused:
        raise
    except Exception as error:
        if of_hydra.mode == RunMode.MULTIRUN or not _says_all(error):
            raise  # a sweep looks at the kind of error
        raise Ended(str(error)) from error


def _run(cfg: DictConfig, of_hydra: Any) -> dict[str, Any]:
    from hydra.types import RunMode

    from train.check import checked, placing
    from train.config.command import warn_of_a_default_task, warn_of_choices_below_files
    from train.config.reading import write_resolved
    from train.processes import start

    warn_of_choices_below_files(of_hydra)
    found = checked(cfg, of_hydra)  # mistakes come before anything heavy
    final = found.run.evaluate_test in (True, "final")
    if final and of_hydra.mode == RunMode.MULTIRUN:  # done when the sweep is over: train.final
        found = replace(found, run=replace(found.run, evaluate_test=False))
    warn_of_a_default_task(of_hydra, [task.name for task in found.run.tasks])
    folder = Path(of_hydra.runtime.output_dir)
    write_resolved(found.run, found.env, folder / (of_hydra.output_subdir or "."))

    def here() -> dict[str, Any]:
        # Takes seconds to import, so `--help` and mistakes in the config are answered before.
        from train.job import train_and_evaluate

        with placing(of_hydra):
            return train_and_evaluate(found.run, found.plans, folder)

    returned: dict[str, Any] = start(found.run, found.env, folder, here)
    return returned


def _says_all(error: Exception) -> bool:
    """Whether the message says what to do, so that where it was raised says nothing more."""
    from train.chain import CheckpointError
    from train.config.typed import SettingsError
    from train.data.tables import DataError
    from train.loop.trainer import Diverged

    told = (SettingsError, DataError, CheckpointError, Diverged)
    return isinstance(error, (*told, InfeasibleError, EvaluationMemoryError))
