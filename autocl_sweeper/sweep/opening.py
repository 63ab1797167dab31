"""What a sweep goes on from: the journal of its folder, where it is that of the same sweep."""

from __future__ import annotations

import logging
from pathlib import Path

from autocl_sweeper.errors import SweepFolderError
from autocl_sweeper.folder import refuse_lost_journal, tidy
from autocl_sweeper.journal import VERSION, Fold, Journal, Record, fold
from autocl_sweeper.made_with import command, versions
from autocl_sweeper.plan import Plan, refuse_another
from autocl_sweeper.results.best import BEST_FILE
from autocl_sweeper.results.result_file import RESULT_FILE
from autocl_sweeper.results.table import TABLE_FILE
from autocl_sweeper.yaml.snapshot import Snapshot

RESULTS = (RESULT_FILE, BEST_FILE, TABLE_FILE)

log = logging.getLogger(__name__)


def opened(folder: Path, journal: Journal, plan: Plan, snapshot: Snapshot) -> Fold:
    """The state that the journal tells, with a session begun in it and the folder tidied.

    Raises SweepFolderError and its kin, and ChangedSweepError.
    """
    state = _state(journal, plan)
    if state.setup is None:
        _begin(folder, journal, plan, snapshot)
    else:
        _refuse_another(folder, journal, plan, snapshot, state, state.setup)
    journal.open_session(plan.bounds, plan.size)
    tidy(folder, RESULTS)
    return state


def _state(journal: Journal, plan: Plan) -> Fold:
    try:
        state = fold(journal.records)
    except (KeyError, ValueError, TypeError) as error:
        raise SweepFolderError(
            f"'{journal.path}' cannot be continued: {error!r}.\n"
            "  It is not a journal of this version. Set another hydra.sweep.dir."
        ) from error
    scored = any(trial.score is not None for trial in state.history)
    if state.ended and not plan.ranked and not scored:
        # Nothing to continue and nothing to compare: run again, as Hydra's basic sweeper does.
        journal.set_aside()
        return Fold()
    return state


def _begin(folder: Path, journal: Journal, plan: Plan, snapshot: Snapshot) -> None:
    _refuse_traces(folder, plan)
    fingerprint = dict(plan.fingerprint)
    files = snapshot.record(fingerprint.get("configuration"))
    snapshot.keep(folder)
    made = {"command": command(), "versions": versions()}
    same = {"fingerprint": fingerprint, "configuration": files}
    journal.append("sweep", version=VERSION, **same, **made)


def _refuse_traces(folder: Path, plan: Plan) -> None:
    if not plan.ranked and any(folder.glob("journal.[0-9]*.jsonl")):
        return  # a sweep that was over, begun again just now
    traces = list(RESULTS)
    if plan.ranked and (first := plan.folder(0, plan.stages[0])):
        traces.append(first)
    refuse_lost_journal(folder, traces)


def _refuse_another(
    folder: Path, journal: Journal, plan: Plan, snapshot: Snapshot, state: Fold, setup: Record
) -> None:
    journal.refuse_other_version(setup["version"])
    edited = snapshot.changes(setup.get("configuration", {}).get("files", {}))
    if raised := refuse_another(folder, state, plan, edited):
        over = len(state.history.beams) >= len(plan.stages)
        told = "every stage is over" if over else "for the stages still open"
        log.info("%s (%s)", "; ".join(raised), told)
