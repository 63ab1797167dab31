"""hydra/sweeper=autocl: Hydra's Sweeper contract around `autocl_sweeper.sweep`."""

from __future__ import annotations

from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from . import config as _config  # noqa: F401  (registers the groups, also by entry point alone)


class AutoCLSweeper(Sweeper):
    """The sequential top-k sweep. Its keys are explained in docs/sweeper.md."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from hydra.core.plugins import Plugins

        from autocl_sweeper.job.task import ReportingTask

        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=ReportingTask(task_function), config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from autocl_sweeper.hydra_sweep import run_sweep

        assert self.config is not None
        return run_sweep(self.settings, arguments, self.hydra_context, self.config, self.launcher)
