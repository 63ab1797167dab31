"""A callback of Hydra's that raises whenever it is called."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback


class Clumsy(Callback):
    def on_multirun_start(self, config: Any, **_: Any) -> None:
        raise RuntimeError("stumbled over the multirun")

    def on_job_start(self, config: Any, **_: Any) -> None:
        raise RuntimeError("stumbled over the start")

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        raise RuntimeError("stumbled over the end")


class Returns(Callback):
    """Prints what Hydra's basic sweeper got from its launcher."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        sweep = BasicSweeper.sweep

        def told(self: Any, arguments: list[str]) -> Any:
            (batch,) = returned = sweep(self, arguments)
            print("returned", [(list(job.overrides), job.return_value) for job in batch])
            return returned

        BasicSweeper.sweep = told
