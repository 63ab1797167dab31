"""Reports of a Hugging Face Trainer: `Trainer(..., callbacks=[ReportCallback("eval_accuracy")])`."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback

from autocl_sweeper.reporter import report

log = logging.getLogger(__name__)


class ReportCallback(TrainerCallback):
    """Reports one metric of every evaluation, with the optimiser steps done so far.

    `metric` is a name in the Trainer's metrics, with or without their prefix `eval_`. Give the one
    that the job returns as its score. Of several processes the first one reports.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric if metric.startswith("eval_") else f"eval_{metric}"
        self._known: set[str] = set()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        found = metrics or {}
        self._known.update(found)
        # Of several evaluation sets each has its own metrics, and a call of its own.
        if self.metric in found and state.is_world_process_zero:
            report(float(found[self.metric]), state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._known and self.metric not in self._known:
            known = ", ".join(sorted(self._known))
            log.warning(
                "nothing was reported: no evaluation had %r (it had: %s)", self.metric, known
            )
