"""The append-only record of a sweep, and the history folded from it.

One JSON object a line, with a checksum; the event kinds and their fields are listed in
docs/structure.md. If it is not in the journal, it did not happen.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import socket
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autocl_sweeper.disk import disk_errors
from autocl_sweeper.errors import (
    DiskError,
    JournalDamagedError,
    JournalLostError,
    SweepFolderError,
    SweepLockedError,
)
from autocl_sweeper.types import (
    OUT_OF_DEVICE_MEMORY,
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
RESCUED = "journal.rescued.jsonl"

log = logging.getLogger(__name__)

Record = Mapping[str, Any]


class Journal:
    """The journal of one sweep folder, open for appending and locked against any other sweep.

    Opening creates the folder, locks it and the file, cuts off a torn last line (a later append
    would otherwise be swallowed by it) and reads the rest into `records`. The locks live as long as
    this process: a killed one leaves nothing to clean up, and jobs do not inherit them.

    Raises SweepLockedError, SweepFolderError, JournalDamagedError and DiskError.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.records: Sequence[Record] = []
        self._checksum = 0  # of the last line, and so of all
        self._folder = self._open_folder()
        try:
            self._open()
        except BaseException:
            os.close(self._folder)
            raise

    def _open_folder(self) -> int:
        """The folder with a lock on it: whoever removes the journal lets no other sweep in."""
        folder = self.path.parent
        with self._refused_folder():
            folder.mkdir(parents=True, exist_ok=True)
            found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._lock(found)
        except SweepLockedError:
            os.close(found)
            raise
        except OSError:  # NFS locks no folders; the lock of the journal has to do there
            log.debug("'%s' cannot be locked", folder)
        return found

    def _open(self) -> None:
        with self._refused_folder():
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115  (as long as the sweep)
            try:
                self._lock(self._file.fileno())
                self._read_and_repair()
            except BaseException:
                self._file.close()
                raise

    @contextmanager
    def _refused_folder(self) -> Iterator[None]:
        folder = self.path.parent
        try:
            with disk_errors(folder):
                yield
        except OSError as error:
            raise SweepFolderError(
                f"Cannot write the sweep folder '{folder}': {error.strerror or error}.\n"
                "  A sweep keeps its journal and its jobs' folders there.\n"
                "  Set hydra.sweep.dir to a folder you may write."
            ) from error

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            folder = self.path.parent
            raise SweepLockedError(
                f"Another sweep is running in '{folder}' ({_last_session(folder)}).\n"
                "  One folder holds one sweep at a time.\n"
                "  Wait for it, end it, or set another hydra.sweep.dir."
            ) from None

    def append(self, event: str, **fields: Any) -> None:
        """Add one event; it is on disk when this returns."""
        self.extend([(event, fields)])

    def extend(self, events: Iterable[tuple[str, Record]]) -> None:
        """Add events in their order; all of them are on disk when this returns.

        Raises DiskError, and JournalLostError when the file is no longer the one that was opened.
        """
        checksum = self._checksum
        data = bytearray()  # bytes would be copied with every line
        for event, fields in events:
            record = {"event": event, **fields, "time": round(time.time(), 3)}
            line, checksum = seal(record, checksum)
            data += line
        if not data:
            return
        self.refuse_lost()
        size = os.fstat(self._file.fileno()).st_size
        before, self._checksum = self._checksum, checksum
        try:
            with disk_errors(self.path):
                rest = memoryview(data)
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
        except BaseException as error:  # a signal, too, may come in between
            whole = os.fstat(self._file.fileno()).st_size == size + len(data)
            if isinstance(error, DiskError) or not whole:
                self._checksum = before
                with suppress(OSError):  # then the next session cuts it off
                    self._file.truncate(size)
            raise

    def refuse_lost(self) -> None:
        """Raises JournalLostError when this is not the journal of the folder any more."""
        if self.is_there():
            return
        told = "what it said is lost"
        if _is_at(self._folder, self.path.parent) and not self.path.exists():
            saved = self.path.with_name(RESCUED)
            with suppress(OSError):
                self._file.seek(0)
                saved.write_bytes(self._file.read())
                told = f"what it said is in '{saved}': rename that to go on"
        raise JournalLostError(
            f"'{self.path}' was removed or replaced while its sweep runs; {told}.\n"
            "  Without it no result would be recorded, so the sweep stops here.\n"
            "  Leave the folder of a running sweep as it is, or stop the sweep first (Ctrl-C)."
        )

    def is_there(self) -> bool:
        """Whether the file that was opened is still the journal of the folder."""
        return _is_at(self._file.fileno(), self.path)

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
        os.close(self._folder)

    def _read_and_repair(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        self.records, whole, self._checksum = _events(data, self.path)
        if whole != len(data):
            # A line that was being written at a crash never took effect; one that was damaged
            # afterwards did, so it is said what is left out.
            log.warning(
                "the last line of '%s' is torn or damaged: it is ignored, and what it recorded is done"
                " again: %r", self.path, data[whole:][:80],
            )  # fmt: skip
            self._file.truncate(whole)
            os.fsync(self._file.fileno())


def read(folder: Path) -> list[Record]:
    """The events of a sweep that may be running: no lock, a torn last line left alone.

    Raises OSError and JournalDamagedError.
    """
    path = folder / NAME
    return _events(path.read_bytes(), path)[0]


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file, or folder, is what lies at this path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False


# -- lines ------------------------------------------------------------------------------------------
# Every line ends in a CRC-32 of itself and all before it, so neither a flipped bit nor a line that
# is missing, doubled or in another place is believed. Journals of earlier versions have none: such
# lines can only stand before the first that has one, which covers them too.

_KEY, _END = b', "crc": "', b'"}'
_SUFFIX = len(_KEY) + 8 + len(_END)


def seal(record: Record, before: int = 0) -> tuple[bytes, int]:
    """A record as a line with a checksum, and that checksum. `before`: that of the line before it."""
    # A suggestion may be nan or inf: Python's JSON has names for them and reads them back.
    text = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace")
    body = text[:-1]
    checksum = zlib.crc32(body, before)
    return b"%b%b%08x%b\n" % (body, _KEY, checksum, _END), checksum


def unseal(line: bytes, before: int = 0) -> tuple[dict[str, Any], int, bool] | None:
    """The record of a line, the checksum up to it, and whether the line has one; None: it is damaged."""
    line = line.removesuffix(b"\n")
    has_sum = line[-_SUFFIX:].startswith(_KEY) and line.endswith(_END)
    checksum = zlib.crc32(line[:-_SUFFIX] if has_sum else line, before)
    if has_sum and line[-_SUFFIX:] != b"%b%08x%b" % (_KEY, checksum, _END):
        return None
    try:
        record = json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    record.pop("crc", None)
    return record, checksum, has_sum


def _events(data: bytes, path: Path) -> tuple[list[Record], int, int]:
    """Records of the whole lines, the bytes they take, and the checksum up to there.

    The last line may be damaged: a crash can leave half of it, or rubbish in place of all of it (blocks
    never written read as zeros). Every earlier line was synced before the next began.
    """
    whole = data.rfind(b"\n") + 1
    lines = data[:whole].split(b"\n")[:-1]  # splitlines would also split at a stray \r
    records: list[Record] = []
    checksum, summed = 0, False
    for number, line in enumerate(lines, start=1):
        found = unseal(line, checksum)
        if found is None or summed > found[2] or not isinstance(found[0].get("event"), str):
            if number == len(lines):
                return records, whole - len(line) - 1, checksum
            raise JournalDamagedError(
                f"Line {number} of '{path}' is not as it was written: {line[:80]!r}.\n"
                "  Only the last line may be torn, by a crash; an earlier one means the file was"
                " edited or the\n  disk failed. Restore the file, or start in a new folder"
                " (hydra.sweep.dir)."
            )
        record, checksum, summed = found
        records.append(record)
    return records, whole, checksum


def _last_session(folder: Path) -> str:
    try:
        sessions = [record for record in read(folder) if record["event"] == "session"]
    except (OSError, JournalDamagedError):
        return "its journal cannot be read"
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
                if record["lost"] and record.get("cause") in OUT_OF_DEVICE_MEMORY:
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
        **({"extra": trial.extra} if trial.extra else {}),
    }


def _trial(record: Record) -> Trial:
    source, carried = (record.get("origin"), record.get("source")), record.get("carried")
    kept = None if carried is None else Carried(**carried)
    suggestion = Suggestion(record["suggestion"], record["params"], *source, carried=kept)
    same = {key: record[key] for key in ("stage", "task", "parent", "folder", "attempt")}
    which = {key: record.get(key, 0) for key in ("repeat", "extra")}
    return Trial(number=record["trial"], suggestion=suggestion, **which, **same)


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Strict JSON; a number that is not finite becomes its name ("nan", "inf")."""
    return {
        "state": outcome.state.value,
        "reason": outcome.reason,
        "score": outcome.score,
        "checkpoint": outcome.checkpoint,
        "eval": _numbers_to_json(outcome.evaluations),
        "test": _numbers_to_json(outcome.tests),
        **({"merged_from": _numbers_to_json(merged)} if (merged := outcome.merged_from) else {}),
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
        merged_from=_numbers_from_json(record.get("merged_from", {})),
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
