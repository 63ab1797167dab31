"""Callbacks of the Trainer: log lines, validation and saving at ends of epochs, early ends."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from train.loop import ranks

log = logging.getLogger(__name__)


class LogLines(TrainerCallback):
    """Trainer's log entries as log lines, so that they stand in the job's log."""

    def __init__(self, log_format: str | None = None) -> None:
        self.log_format = log_format

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.log_format == "json":
            log.info("%s", json.dumps({"step": state.global_step, **(logs or {})}))
        elif self.log_format != "none":
            log.info("step %d: %s", state.global_step, logs)


class Patience(EarlyStoppingCallback):
    """Transformers', without its warning that the best weights were lost: they come back.

    improves: whether a validation counts as better, by its metric.
    """

    def __init__(self, patience: int, improves: Callable[[float], bool]) -> None:
        super().__init__(patience)
        self.improves = improves

    def check_metric_value(self, args: Any, state: Any, control: Any, metric_value: float) -> None:
        worse = 0 if self.improves(metric_value) else self.early_stopping_patience_counter + 1
        self.early_stopping_patience_counter = worse

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        return None


class Intervals(TrainerCallback):
    """Validates and saves at the ends of epochs, which Trainer cannot see, and stops in time."""

    def __init__(self, ends: Callable[[], dict[int, int]], hours: float) -> None:
        self.ends = ends
        self.end_s = time.monotonic() + hours * 3600 if hours > 0 else math.inf

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.ends():
            control.should_evaluate |= args.eval_strategy == "epoch"
            control.should_save |= args.save_strategy == "epoch"
            control.should_log |= args.logging_strategy == "epoch"
        if math.isfinite(self.end_s) and ranks.any_of(time.monotonic() > self.end_s):
            log.warning("trainer.stop_time_hours is over: training ends at %d", state.global_step)
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Trainer's one epoch is the whole training, whose last update was an end of its own.
        control.should_evaluate = control.should_save = False
