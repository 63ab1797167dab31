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
