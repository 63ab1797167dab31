"""The append-only record of a sweep, and the history folded from it.

One JSON object a line; the event kinds and their fields are listed in docs/structure.md. If it is
not in the journal, it did not happen.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autocl_sweeper.errors import JournalDamagedError, SweepFolderError, SweepLockedError
from autocl_sweeper.types import (
    Carried,
    Cause,
    DeviceUse,
    History,
    Outcome,
    Report,
    State,
    Suggestion,
    Trial,
)

VERSION = 1
NAME = "journal.jsonl"

Record = Mapping[str, Any]


class Journal:
    """The journal of one sweep folder, open for appending and locked against any other sweep.

    Opening creates the folder, takes the lock, cuts off a torn last line (a later append would
    otherwise be swallowed by it) and reads the rest into `records`. The lock lives as long as this
    process: a killed one leaves nothing to clean up, and jobs do not inherit it.

    Raises SweepLockedError, SweepFolderError and JournalDamagedError.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.records: list[Record] = []
        self._open()

    def _open(self) -> None:
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")  # noqa: SIM115  (open as long as the sweep)
        except OSError as error:
            raise SweepFolderError(
                f"Cannot write the sweep folder '{folder}': {error.strerror or error}.\n"
                "  A sweep keeps its journal and its jobs' folders there.\n"
                "  Set hydra.sweep.dir to a folder you may write."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise SweepLockedError(
                f"Another sweep is running in '{folder}' ({_last_session(self.path)}).\n"
                "  One folder holds one sweep at a time.\n"
                "  Wait for it, end it, or set another hydra.sweep.dir."
            ) from None
        try:
            self.records = self._read_and_repair()
        except BaseException:
            self._file.close()
            raise

    def append(self, event: str, **fields: Any) -> None:
        """Add one event; it is on disk when this returns."""
        self.extend([(event, fields)])

    def extend(self, events: Iterable[tuple[str, Record]]) -> None:
        """Add events in their order; all of them are on disk when this returns."""
        lines = []
        for event, fields in events:
            record = {"event": event, **fields, "time": round(time.time(), 3)}
            # A suggestion may be nan or inf: Python's JSON has names for them and reads them back.
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        if not lines:
            return
        self._file.write("".join(lines).encode("utf-8", "surrogatepass"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def open_session(self, bounds: Mapping[str, int | None], jobs: int | None = None) -> None:
        """Note who writes from here on, which the refusal of a second sweep quotes, and by which bounds.

        jobs: how many the whole sweep has, if that is known.
        """
        who = {"pid": os.getpid(), "host": socket.gethostname()}
        self.append("session", **who, bounds=dict(bounds), jobs=jobs)

    def refuse_other_version(self, version: int) -> None:
        if version != VERSION:
            raise SweepFolderError(
                f"'{self.path}' is a journal of version {version}; this package writes version"
                f" {VERSION}.\n"
                "  Finish the sweep with the version it was begun with, or start in a new folder."
            )

    def set_aside(self) -> None:
        """Keep what is here as `journal.<n>.jsonl` and begin an empty journal."""
        taken = sum(1 for _ in self.path.parent.glob("journal.*.jsonl"))
        self.path.rename(self.path.with_name(f"journal.{taken + 1}.jsonl"))
        self._file.close()
        self._open()

    def close(self) -> None:
        self._file.close()

    def _read_and_repair(self) -> list[Record]:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].split(b"\n")[:-1]  # splitlines would also split at a stray \r
        # A crash can also leave a whole line of rubbish (blocks never written read as zeros), but
        # only as the last one: every earlier line was synced before the next began.
        if lines and _parse(lines[-1]) is None:
            whole -= len(lines.pop()) + 1
        if whole != len(data):
            self._file.truncate(whole)
            os.fsync(self._file.fileno())
        records = []
        for number, line in enumerate(lines, start=1):
            record = _parse(line)
            if record is None:
                raise JournalDamagedError(
                    f"Line {number} of '{self.path}' is not a journal event: {line[:80]!r}.\n"
                    "  Only the last line may be torn, by a crash; an earlier one means the file\n"
                    "  was edited or the disk failed. Restore the file, or start in a new folder."
                )
            records.append(record)
        return records


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("event"), str) else None


def read(folder: Path) -> list[Record]:
    """The events of a sweep that may be running: no lock, a torn last line left alone."""
    lines = (folder / NAME).read_bytes().split(b"\n")
    return [record for line in lines if (record := _parse(line)) is not None]


def _last_session(path: Path) -> str:
    sessions = [record for record in read(path.parent) if record["event"] == "session"]
    if not sessions:
        return "it has just started"
    return f"pid {sessions[-1].get('pid')} on {sessions[-1].get('host')}"


@dataclass
class Fold:
    """What the events of a journal add up to."""

    history: History = field(default_factory=History)
    setup: Record | None = None  # the `sweep` event: version and fingerprint
    overrides: dict[int, tuple[str, ...]] = field(default_factory=dict)
    failures: Counter[int] = field(default_factory=Counter)  # trial -> attempts that were retried
    over: set[int] = field(default_factory=set)  # running trials whose next attempt did not start
    failed_at: dict[int, float] = field(default_factory=dict)  # of those: when, unless it was lost
    alone: set[int] = field(default_factory=set)  # trials that ran out of memory beside others
    ended: bool = False
    bounds: Mapping[str, int | None] = field(default_factory=dict)  # of the last session, by key


def fold(records: Iterable[Record]) -> Fold:
    """The state after `records`, in their order. Raises KeyError or ValueError on foreign events."""
    state = Fold()
    for record in records:
        match record["event"]:
            case "sweep":
                state.setup = record
            case "start":
                trial = _trial(record)
                if trial.number in state.history:  # a failed one runs again with more retries
                    state.failures[trial.number] += state.history[trial.number].state is State.FAIL
                state.history.start(trial)
                state.over.discard(trial.number)
                state.failed_at.pop(trial.number, None)
                state.overrides[trial.number] = tuple(record["overrides"])
            case "report":
                score = math.nan if record["score"] is None else record["score"]
                state.history.report(Report(record["trial"], record["step"], score))
                if "stopped" in record:
                    state.history.stop(record["trial"], record["stopped"])
            case "finish":
                state.history.finish(record["trial"], outcome_from_json(record))
            case "give_up":
                state.history.give_up(record["trial"], record["reason"])
            case "select":
                state.history.select(record["stage"], record["beam"])
            case "end":
                state.ended = True
            case "running":  # on which devices: for those who look at the sweep
                pass
            case "session":
                state.ended = False
                state.bounds = record.get("bounds", {})
            case "attempt_failed":
                # The trial stays RUNNING until its last attempt ends.
                state.failures[record["trial"]] += not record["lost"]
                state.over.add(record["trial"])
                if not record["lost"]:
                    state.failed_at[record["trial"]] = record["time"]
                if record["lost"] and record.get("cause") == Cause.DEVICE_MEMORY.value:
                    state.alone.add(record["trial"])
            case unknown:
                raise ValueError(f"a journal of this version has no event '{unknown}'")
    return state


def trial_to_json(trial: Trial) -> dict[str, Any]:
    suggestion = trial.suggestion
    carried = None if suggestion.carried is None else asdict(suggestion.carried)
    told = {"origin": suggestion.origin, "source": suggestion.source, "carried": carried}
    return {
        "trial": trial.number,
        "stage": trial.stage,
        "task": trial.task,
        "suggestion": suggestion.index,
        "params": dict(suggestion.params),
        **{key: value for key, value in told.items() if value is not None},
        "parent": trial.parent,
        "folder": trial.folder,
        "attempt": trial.attempt,
        **({"repeat": trial.repeat} if trial.repeat else {}),
    }


def _trial(record: Record) -> Trial:
    source, carried = (record.get("origin"), record.get("source")), record.get("carried")
    kept = None if carried is None else Carried(**carried)
    suggestion = Suggestion(record["suggestion"], record["params"], *source, carried=kept)
    same = {key: record[key] for key in ("stage", "task", "parent", "folder", "attempt")}
    repeat = record.get("repeat", 0)
    return Trial(number=record["trial"], suggestion=suggestion, repeat=repeat, **same)


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Strict JSON; a number that is not finite becomes its name ("nan", "inf")."""
    return {
        "state": outcome.state.value,
        "reason": outcome.reason,
        "score": outcome.score,
        "checkpoint": outcome.checkpoint,
        "eval": _numbers_to_json(outcome.evaluations),
        "test": _numbers_to_json(outcome.tests),
        "numbers": _numbers_to_json(outcome.numbers),
        "returned": outcome.returned,
        "seconds": round(outcome.seconds, 3),
        "log_tail": list(outcome.log_tail),
        "cause": outcome.cause.value,
        "device": None if outcome.device is None else asdict(outcome.device),
    }


def outcome_from_json(record: Record) -> Outcome:
    """Raises KeyError, TypeError or ValueError when `record` is not an outcome."""
    use = record.get("device")  # none in journals of earlier versions
    same = {key: record[key] for key in ("reason", "score", "checkpoint", "returned")}
    return Outcome(
        state=State(record["state"]),
        evaluations=_numbers_from_json(record["eval"]),
        tests=_numbers_from_json(record["test"]),
        numbers=_numbers_from_json(record["numbers"]),
        seconds=float(record["seconds"]),
        log_tail=tuple(record["log_tail"]),
        cause=Cause(record.get("cause", "")),  # journals of earlier versions have none
        device=use and DeviceUse(**{**use, "ids": tuple(use["ids"])}),
        **same,
    )


def _numbers_to_json(numbers: Mapping[str, float]) -> dict[str, float | str]:
    return {key: n if math.isfinite(n) else str(n) for key, n in numbers.items()}


def _numbers_from_json(numbers: Mapping[str, float | str]) -> dict[str, float]:
    return {key: float(n) for key, n in numbers.items()}
