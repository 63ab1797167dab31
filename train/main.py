"""The command line of the training app: compose a config with Hydra, run it as one job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from train.config.compose import install

CONF = Path(__file__).resolve().parents[1] / "conf"
# Hydra 1.3 behaves like 1.1 unless told; Hydra 1.4 warns when told.
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}

install()


@hydra.main(**VERSION_BASE, config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> dict[str, Any]:
    """Train the task of `cfg` in Hydra's output folder and return its scores."""
    from hydra.core.hydra_config import HydraConfig

    from train.config.command import warn_of_a_default_task, warn_of_choices_below_files
    from train.config.env import read_env, start
    from train.config.schema import drop_unset
    from train.config.sections import read_job, write_resolved
    from train.data.task_plan import plan_run
    from train.model.family import check_model

    drop_unset(cfg)  # of a launcher that composes without `install`
    warn_of_choices_below_files(HydraConfig.get())
    job, env = read_job(cfg, CONF / "task"), read_env(cfg)
    warn_of_a_default_task(HydraConfig.get(), [task.name for task in job.tasks])
    plans = plan_run(job)  # mistakes come before anything heavy
    check_model(job, plans)
    folder = Path(HydraConfig.get().runtime.output_dir)
    write_resolved(job, env, folder / (HydraConfig.get().output_subdir or "."))

    def here() -> dict[str, Any]:
        # Takes seconds to import, so `--help` and mistakes in the config are answered before.
        from train.job import train_and_evaluate

        return train_and_evaluate(job, plans, folder)

    returned: dict[str, Any] = start(cfg, env, folder, here)
    return returned
