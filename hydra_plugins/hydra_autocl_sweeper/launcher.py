"""hydra/launcher=gpu: Hydra's Launcher contract around `autocl_sweeper.executor.local`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from . import config as _config  # noqa: F401  (registers the groups, also by entry point alone)

if TYPE_CHECKING:
    from autocl_sweeper.executor.local import LocalExecutor
    from autocl_sweeper.executor.process.forked import KeptForkServer
    from autocl_sweeper.executor.ray.cluster import RayExecutor
    from autocl_sweeper.outcome import JobFiles


class GPULauncher(Launcher):
    """A fresh process per job on its own leased device. Its keys are explained in docs/launcher.md."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None
        self.config: DictConfig | None = None
        self._kept: KeptForkServer | None = None  # between the batches of `launch`

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def executor(self, returns: bool, files: JobFiles) -> LocalExecutor | RayExecutor:
        """Jobs one by one, for a sweeper that feeds devices as they free."""
        from autocl_sweeper.hydra_launch import executor_of

        assert self.config is not None
        function, kept = self.task_function, self._kept
        return executor_of(
            self.settings, self.hydra_context, function, self.config, returns, files, kept
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from weakref import finalize

        from autocl_sweeper.executor.process.forked import KeptForkServer
        from autocl_sweeper.hydra_launch import launch

        assert self.config is not None
        if self._kept is None:
            self._kept = KeptForkServer()
            finalize(self, self._kept.close)  # with the launcher, or when the process ends
        return launch(self.executor, self.config, self.settings, job_overrides, initial_job_idx)


class RayLauncher(GPULauncher):
    """The same on every node of a Ray cluster, whose `address` is one of its settings."""
