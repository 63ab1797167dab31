"""What a sweep says of reports and of early stopping: each thing once."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from autocl_sweeper.errors import JobContractError
from autocl_sweeper.prune.watch import EarlyStopping
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.types import History, Report, Trial
from autocl_sweeper.verdict import Verdict

log = logging.getLogger(__name__)


class Notices:
    """`stopping` is None where no trial is ever stopped: then only reports are complained of."""

    def __init__(
        self,
        stopping: EarlyStopping | None,
        stages: Sequence[Stage],
        history: History,
        verdict: Verdict,
    ) -> None:
        self._stopping = stopping
        self._stages = stages
        self._history = history
        self._verdict = verdict
        self._distrust: dict[int, str | None] = {}  # stage -> why its reports decide nothing
        self._beyond: set[int] = set()  # stages with a rung that no report reaches
        self._warned: set[tuple[int, bool]] = set()  # trial, and whether its report was kept

    def of_report(self, trial: Trial, report: Report, kept: bool) -> None:
        """Say once for a trial that a score was not finite, and once that a step was not larger."""
        if (trial.number, kept) in self._warned or (kept and math.isfinite(report.score)):
            return
        self._warned.add((trial.number, kept))
        if kept:
            what = f"a score that is not finite at step {report.step}: it ranks last there"
        else:
            last = self._history.reports(trial.number)[-1].step
            what = f"step {report.step} after step {last}: a report whose step is not larger is dropped"
        log.warning("trial %d (task '%s') reported %s", trial.number, trial.task, what)

    def refuse_rungs_beyond(self, stage: int) -> None:
        """Stop where a completed trial shows that no report will ever reach a rung.

        In a later stage a warning says so: its trials may be shorter, and they are still compared.
        Raises JobContractError.
        """
        found = self._stopping.beyond(stage) if self._stopping else None
        if found is None or stage in self._beyond:
            return
        self._beyond.add(stage)
        text = self._verdict.rung_beyond(self._stages[stage - 1].task, *found)
        if stage > 1:
            log.warning(text)
        else:
            raise JobContractError(text)

    def whether_reports_decide(self, stage: int) -> None:
        """Say it when early stopping goes off for a stage, and when it is on again."""
        why = self._stopping.distrust(stage) if self._stopping else None
        was = self._distrust.get(stage)
        self._distrust[stage] = why
        task = self._stages[stage - 1].task
        if why is not None and was is None:
            log.warning("early stopping is off for task '%s': %s", task, why)
        elif why is None and was is not None:
            log.info("early stopping is on again for task '%s'", task)
