"""Where a sweep writes what happens: the journal first, then its result files and its exports."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autocl_sweeper.export.exporter import Exporter
from autocl_sweeper.journal import Fold, Journal
from autocl_sweeper.plan import Plan
from autocl_sweeper.results.best import best_chain, write_best
from autocl_sweeper.results.result_file import ResultFile
from autocl_sweeper.results.table import write_table
from autocl_sweeper.sweep.opening import opened
from autocl_sweeper.yaml.snapshot import Snapshot, copy_of

log = logging.getLogger(__name__)


class Books:
    """The journal of one sweep folder, open until `close`, and the files that follow it."""

    def __init__(self, folder: Path, plan: Plan, snapshot: Snapshot, exporter: Exporter) -> None:
        self._folder = folder
        self._plan = plan
        self._snapshot = snapshot
        self._exporter = exporter
        self._journal = Journal(folder)

    def open(self) -> Fold:
        """What the sessions before came to. Raises what `opened` does."""
        state = opened(self._folder, self._journal, self._plan, self._snapshot)
        self.records = self._journal.records  # of the sessions before
        self.overrides = state.overrides  # by trial
        self._history = state.history
        self._result_file = ResultFile(self._folder, self._plan)
        self._result_file.rebuild(self.records, self._history)
        return state

    def begin(self) -> None:
        """Give the exports what there is; from now on they get what comes."""
        self._exporter.begin(self.records, self._history)

    def append(self, event: str, **fields: Any) -> None:
        self.extend([(event, fields)])

    def extend(self, events: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Write events that are in the history: all are on disk when this returns."""
        events = list(events)
        if not events:
            return
        for path in self._snapshot.edits():
            log.warning(
                f"'{path}' was edited during the sweep. No job sees the edit: jobs read the copy"
                f" '{copy_of(self._folder, path)}'. To use the edit, set another hydra.sweep.dir"
            )
        self._journal.extend(events)
        for event, fields in events:
            self._result_file.append(event, fields, self._history)
            self._exporter.note(event, fields)

    def best_chain(self) -> list[dict[str, Any]]:
        """One entry per stage, as in optimization_results.yaml."""
        return best_chain(self._plan, self._history, self.overrides)

    def write_results(self, used_up: str | None) -> None:
        if not self._journal.is_there():  # nor is the folder ours any more
            return
        write_best(self._folder, self._plan, self._history, self.overrides, used_up)
        write_table(self._folder, self._history)

    def close(self) -> None:
        self._journal.close()
