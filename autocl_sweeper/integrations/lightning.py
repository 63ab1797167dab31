"""Reports of a Lightning Trainer: `Trainer(..., callbacks=[ReportCallback("val_accuracy")])`."""

from __future__ import annotations

import logging
from typing import Any

try:
    from lightning.pytorch import Callback
except ImportError:  # the same library by its other name
    from pytorch_lightning import Callback

from autocl_sweeper.reporter import report

log = logging.getLogger(__name__)


class ReportCallback(Callback):  # type: ignore[misc]  # Any without the library
    """Reports one logged metric after every validation, with the optimiser steps done so far.

    `monitor` is the name under which the module logs the score. Give the one that the job returns as its
    score. Of several processes the first one reports; the check before training is left out.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        if self.monitor in trainer.callback_metrics:
            report(float(trainer.callback_metrics[self.monitor]), trainer.global_step)
        else:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            log.warning("nothing is reported: no metric %r (logged: %s)", self.monitor, known)
