"""Scalars of a search for TensorBoard, by round: the best so far, and every particle."""

from __future__ import annotations

import json
import logging
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from autocl_sweeper.distributions import is_number
from autocl_sweeper.job.package import command
from autocl_sweeper.rounds.table import Rounds, best_of
from autocl_sweeper.space import bare
from autocl_sweeper.types import Trial

WRITER = "autocl_sweeper.rounds.events"

log = logging.getLogger(__name__)


def scalars_of(rounds: Rounds) -> dict[str, list[tuple[str, int, float]]]:
    """Run -> (tag, step, value) of the rounds that are over; step r is the r-th round, from 1.

    `hyperparameter_tuning/` is the best so far, in a population the best of the round; the run
    `pop_<i>` has particle i of every round.
    """
    found: dict[str, list[tuple[str, int, float]]] = {"": []}
    so_far: list[Trial] = []
    for one in rounds.all():
        if not one.over:
            continue
        step = one.number + 1
        so_far = [*([] if rounds.is_population else so_far), *one.trials.values()]
        if (best := best_of(rounds.plan, so_far)) is not None:
            told = {**_numbers(best), "best_eval_value": best.score or 0.0}
            found[""] += [(f"hyperparameter_tuning/{name}", step, n) for name, n in told.items()]
        for place, trial in one.trials.items():
            told = _numbers(trial)
            if trial.score is not None:
                told["eval_value"] = trial.score
            found.setdefault(f"pop_{place}", []).extend(
                (f"population_transformation/{name}", step, n) for name, n in told.items()
            )
    return found


def _numbers(trial: Trial) -> dict[str, float]:
    return {
        bare(key): float(value)
        for key, value in trial.suggestion.params.items()
        if is_number(value)
    }


class EventFiles:
    """Event files below a folder, kept up to date beside the control loop.

    Without the package tensorboardX nothing is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._there = find_spec("tensorboardX") is not None
        self._running: subprocess.Popen[bytes] | None = None
        self._begun = b""  # what was written last, or is being written

    def write(self, rounds: Rounds) -> None:
        """Begin to write all scalars, unless the last ones are being written still."""
        if not self._there or (self._running is not None and self._running.poll() is None):
            return
        self.finish()
        data = json.dumps(scalars_of(rounds)).encode()
        if data == self._begun:
            return
        self._begun = data
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            self._running = subprocess.Popen(
                command(WRITER, str(self._folder)),
                stdin=file,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )

    def finish(self) -> None:
        """Wait until what `write` began is on disk."""
        if self._running is None:
            return
        running, self._running = self._running, None
        _, error = running.communicate()
        if running.returncode:
            last = error.decode("utf-8", "replace").strip().rpartition("\n")[2]
            log.warning(f"the event files in {self._folder} could not be written: {last}")
