"""What jobs report on their way: what the journal gets of it, and which trials it stops early."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

from autocl_sweeper.notices import Notices
from autocl_sweeper.prune.watch import EarlyStopping
from autocl_sweeper.types import History, Report, State, Trial, is_stopped


class Reports:
    """`stopping` is None where no trial is ever stopped early."""

    def __init__(self, history: History, stopping: EarlyStopping | None, notices: Notices) -> None:
        self._history = history
        self._stopping = stopping
        self._notices = notices

    def note(
        self, reports: Iterable[Report], over: Collection[int]
    ) -> tuple[list[tuple[str, dict[str, Any]]], list[Trial]]:
        """Add reports to the history: the journal's events for them, and the trials they stop.

        A decision stands in the line of its report, so no kill comes between the two. Jobs that
        are `over` are not stopped any more: what they found out is worth more than what is saved.
        """
        events: list[tuple[str, dict[str, Any]]] = []
        stopped = []
        for report in reports:
            trial = self._history[report.number]
            if trial.number in self._history.ending and is_stopped(trial):
                continue  # made before the job was ended: the one before it decided
            kept = self._history.report(report)
            self._notices.of_report(trial, report, kept)
            score = report.score if math.isfinite(report.score) else None
            where = {"trial": report.number, "attempt": trial.attempt, "step": report.step}
            fields: dict[str, Any] = {**where, "score": score}
            judged = kept and trial.state is State.RUNNING and trial.number not in over
            reason = self._stopping.judge(trial) if judged and self._stopping else None
            if reason is not None:
                fields["stopped"] = reason
                stopped.append(self._history.stop(trial.number, reason))
            events.append(("report", fields))
        return events, stopped
