"""What became of a job: read from what its function returned or raised, told in a file.

However a job is run, its outcome appears whole or not at all as `<sweep folder>/.autocl/<number>.json`,
so it survives the controller and every launcher.
"""

from __future__ import annotations

import errno
import logging
import math
import numbers
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocl_sweeper.disk import BROKEN, FULL, disk_errors, is_disk_trouble
from autocl_sweeper.errors import (
    EvaluationMemoryError,
    InfeasibleBudgetError,
    InfeasibleError,
    SkippedError,
)
from autocl_sweeper.journal import outcome_from_json, outcome_to_json, seal, unseal
from autocl_sweeper.reporter import FINAL, final_result
from autocl_sweeper.types import Cause, Outcome, State

LOG_NAME = "job.log"
ERROR_NAME = "error.txt"  # a long error, where no log has it
CHECKPOINT_NAME = "checkpoint"
TAIL_LINES = 20
LONGEST_LINE = (
    2000  # characters of an error, or of a line of a log, that are worth a place in a journal
)
ROOM_BYTES = 64 * 2**10  # kept on the disk for the outcome of a running job; most take one
UNWRITTEN = 186  # the exit status of a job whose outcome the disk did not take
log = logging.getLogger(__name__)
# How the allocators of torch (CUDA, ROCm, XPU, MPS), cuBLAS, cuDNN, the CUDA driver and XLA say it.
NO_DEVICE_MEMORY = re.compile(
    r"\b(CUDA|HIP|XPU|MPS)( backend)?( error:)? out of memory\b"
    r"|\bCU(BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED\b"
    r"|\bCUDA_ERROR_OUT_OF_MEMORY\b|\bCuda failure\b.{0,4}'out of memory'"
    r"|\bRESOURCE_EXHAUSTED: Out of memory\b",
    re.IGNORECASE,
)
NO_HOST_MEMORY = re.compile(r"\bDefaultCPUAllocator: (can't allocate|not enough) memory\b")
# How Python, Rust (safetensors) and torch say that a disk is full; torch's writer gives no number.
NO_SPACE = re.compile(
    r"\bNo space left on device\b|\bDisk quota exceeded\b"
    r"|\bPytorchStreamWriter failed writing file\b"
)
# The last line of a traceback; a log may speak of memory in many other places.
TRACEBACK_END = re.compile(r"(?:[A-Za-z_][\w.]*\.)?([A-Za-z_]\w*)(?::|$)")


@dataclass(frozen=True)
class JobFiles:
    """Where the files between controller and jobs lie, below `<sweep folder>/.autocl/`."""

    folder: Path

    @classmethod
    def of(cls, sweep_folder: Path) -> JobFiles:
        return cls(sweep_folder / ".autocl")

    def package(self) -> Path:
        return self.folder / "package.pkl"

    def outcome(self, number: int) -> Path:
        return self.folder / f"{number}.json"

    def job_return(self, number: int) -> Path:
        return self.folder / f"{number}.pkl"

    def room(self, number: int) -> Path:
        """What keeps room for the outcome of a running job, and becomes it."""
        return self.folder / f".{number}.json.tmp"

    def log(self, number: int) -> Path:
        """The job's output, under a name known before the job knows its folder and links it there."""
        return self.folder / f"{number}.log"

    def group(self, number: int) -> Path:
        """Process group and boot of a running job, for who finds it after its controller died."""
        return self.folder / f"{number}.group"

    def output(self, number: int) -> Path:
        """The name of a running job's output folder, which only the job itself finds out."""
        return self.folder / f"{number}.output"

    def output_folder(self, number: int) -> Path | None:
        """The running job's output folder; None where it has not come so far."""
        try:
            return Path(self.output(number).read_text("utf-8", "surrogateescape"))
        except OSError:
            return None

    def reports(self, number: int) -> Path:
        """Scores that a running job reports, a JSON line each."""
        return self.folder / f"{number}.reports"

    def samples(self, number: int) -> Path:
        """What a running job's devices said of themselves; in the job's folder when it is over."""
        return self.folder / f"{number}.devices.csv"

    def final(self, number: int) -> Path:
        """The score that a running job reported as its final result."""
        return self.folder / f"{number}.reports{FINAL}"

    def returned(self, number: int, value: Any) -> Any:
        """What a job's function returned or, where that is nothing, its final result."""
        return final_result(self.reports(number)) if value is None else value

    def flaw(self) -> Path:
        """Says why jobs in fresh interpreters cannot import the app's main file; mostly not there."""
        return self.folder / "main_file.txt"

    def begun(self, number: int) -> Path:
        """There once another launcher's worker has begun the job."""
        return self.folder / f"{number}.begun"

    def mark(self, number: int) -> str:
        """Names a job in its environment: the same for whichever controller has it."""
        return str(self.folder.absolute() / str(number))

    def forget(self, number: int) -> None:
        """Remove what an ended job left here; all of it is elsewhere by now.

        A log that no folder claimed (the job never composed) stays: it is the only copy.
        """
        kinds = (self.outcome, self.job_return, self.group, self.output, self.reports, self.begun)
        for path in (*kinds, self.final, self.room, self.samples):
            path(number).unlink(missing_ok=True)
        log = self.log(number)
        if log.exists() and log.stat().st_nlink > 1:
            log.unlink()

    def read_outcome(self, number: int) -> Outcome | None:
        """What the job wrote, or None while there is nothing or nothing readable."""
        try:
            found = unseal(self.outcome(number).read_bytes())
            return None if found is None else outcome_from_json(found[0])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def reserve(self, number: int, size: int = ROOM_BYTES) -> None:
        """Keep room for the outcome of a job that starts, so that a disk it fills takes it all the same.

        Raises OSError where there is none.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.room(number), os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot
                raise
        finally:
            os.close(file)

    def is_full(self, number: int) -> bool:
        """Whether the disk has no room for another job, now that this one is over."""
        try:
            self.reserve(number, 2 * ROOM_BYTES)
        except OSError as error:
            return is_disk_trouble(error)
        finally:
            with suppress(OSError):
                self.room(number).unlink()
        return False

    def write_outcome(self, number: int, outcome: Outcome) -> None:
        """The file appears whole or not at all, in the room that was kept for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data, _ = seal(outcome_to_json(outcome))
        room = self.room(number)
        with os.fdopen(os.open(room, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        os.replace(room, self.outcome(number))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, and stays after a power cut. Raises DiskError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)


def outcome_of(value: Any, output_dir: Path, seconds: float) -> Outcome:
    """The outcome of a task function that returned `value`: a number, or a mapping.

    A mapping holds numbers; `eval` and `test` map tasks to scores, `merged_from` what the start was merged
    from to weights, `checkpoint` names the folder of
    the model (default: `checkpoint/` in the job's folder, if it is there). Whether the score will
    do is judged by the sweep, which knows if anybody has to be ranked.
    """
    found: dict[str, float] = {}
    scores: dict[str, dict[str, float]] = {"eval": {}, "test": {}, "merged_from": {}}
    checkpoint: str | None = None
    if isinstance(value, Mapping):
        checkpoint = _path(value.get("checkpoint"))
        for key, item in value.items():
            if key in scores and isinstance(item, Mapping):
                scores[key] = {str(k): _float(n) for k, n in item.items() if is_number(n)}
            elif is_number(item):
                found[str(key)] = _float(item)
    elif is_number(value):
        found["score"] = _float(value)
    default = output_dir / CHECKPOINT_NAME
    if checkpoint is None and default.is_dir():
        checkpoint = CHECKPOINT_NAME
    return Outcome(
        state=State.COMPLETE,
        checkpoint=None if checkpoint is None else str(output_dir / checkpoint),
        evaluations=scores["eval"],
        tests=scores["test"],
        merged_from=scores["merged_from"],
        numbers=found,
        returned=type(value).__name__,
        seconds=seconds,
    )


def _path(value: Any) -> str | None:
    """What a job gives as its checkpoint, if a file system can have it."""
    if value is None:
        return None
    try:
        path = os.fsdecode(value)
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.stat(path)
    except (TypeError, ValueError, OSError) as error:  # a state dict; a NUL in it; far too long
        text = str(error)[:LONGEST_LINE]
        log.warning("the returned 'checkpoint' is no path, and is left out: %s", text)
        return None
    return path


def is_number(value: Any) -> bool:
    """Python's and numpy's numbers. A bool is an answer, a tensor may live on a device: neither."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:  # a whole number or a fraction beyond the largest float
        return math.copysign(math.inf, number > 0 or -1)


def failure(
    error: BaseException,
    seconds: float,
    cause: Cause | None = None,
    folder: Path | None = None,
    whole: str = LOG_NAME,
) -> Outcome:
    """The outcome of a job that raised. `cause`: where it is known without looking at the error.

    `folder`: the job's own. `whole`: the file in it that has a long error as a whole.
    """
    text = headline(error)
    if folder is not None and whole == ERROR_NAME and len(text) > LONGEST_LINE:
        with suppress(OSError):
            (folder / whole).write_text(text, "utf-8", "backslashreplace")
    if cause is None and isinstance(error, SkippedError):
        return Outcome(State.PRUNED, shortened(text, whole), seconds=seconds, cause=Cause.SKIPPED)
    lines = "".join(traceback.format_exception(error)).splitlines()
    return Outcome(
        state=State.FAIL,
        reason=shortened(text, whole),
        seconds=seconds,
        log_tail=tuple(shortened(line, whole) for line in lines[-TAIL_LINES:]),
        cause=cause_of(error, folder) if cause is None else cause,
    )


def cause_of(error: BaseException, folder: Path | None = None) -> Cause:
    """What an error says of its cause: memory, disk or settings; `EXCEPTION` if it says nothing of these.

    Errors that it was raised from count too.

    By names and texts, because nothing here imports torch: `torch.OutOfMemoryError` and its like by
    the name of the class, the rest by what the libraries write. A disk that is broken or read-only
    is to blame below `folder` only: elsewhere the job may not have been meant to write.
    """
    for one in _chain(error):
        names = [kind.__name__ for kind in type(one).__mro__]
        if isinstance(one, InfeasibleBudgetError):
            return Cause.INFEASIBLE_BUDGET
        if isinstance(one, InfeasibleError):
            return Cause.INFEASIBLE
        if isinstance(one, EvaluationMemoryError):
            return Cause.EVALUATION_MEMORY
        text = headline(one)
        if "OutOfMemoryError" in names or NO_DEVICE_MEMORY.search(text):
            return Cause.DEVICE_MEMORY
        if _is_of_disk(one, folder) or NO_SPACE.search(text):
            return Cause.DISK
        no_memory = isinstance(one, OSError) and one.errno == errno.ENOMEM
        if isinstance(one, MemoryError) or no_memory or NO_HOST_MEMORY.search(text):
            return Cause.HOST_MEMORY
    return Cause.EXCEPTION


def _is_of_disk(error: BaseException, folder: Path | None) -> bool:
    if not isinstance(error, OSError) or error.errno not in BROKEN:
        return False
    if error.errno in FULL:
        return True
    named = isinstance(error.filename, str | bytes)
    return named and folder is not None and folder in Path(os.fsdecode(error.filename)).parents


def cause_in_log(lines: Sequence[str]) -> Cause:
    """The same of a job that left no error but exited: what the last traceback in its log ends with."""
    for line in reversed(lines):
        found = TRACEBACK_END.match(line)
        if found and NO_DEVICE_MEMORY.search(line):
            return Cause.DEVICE_MEMORY
        if found and NO_SPACE.search(line):
            return Cause.DISK
        if found and found[1] in ("OutOfMemoryError", "MemoryError"):
            return Cause.HOST_MEMORY if found[1] == "MemoryError" else Cause.DEVICE_MEMORY
    return Cause.EXIT


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from or while handling, and the members of a group."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting.append(one.__cause__)
        if not one.__suppress_context__:
            waiting.append(one.__context__)
        waiting += getattr(one, "exceptions", ())  # ExceptionGroup, which Python 3.10 has not


def headline(error: BaseException) -> str:
    """The error in one line, as a traceback ends."""
    try:
        return f"{type(error).__name__}: {error}".strip().rstrip(":")
    except Exception:  # its __str__ is as broken as the job
        return type(error).__name__


def shortened(text: str, whole: str = LOG_NAME) -> str:
    """A text of any length as a journal, a table and a terminal can hold it. `whole`: who has all of it."""
    if len(text) <= LONGEST_LINE:
        return text
    return f"{text[:LONGEST_LINE]} ... [{len(text):,} characters in all, in {whole}]"


def link_log(log: Path, target: Path) -> None:
    """Give a log its place in the job's folder; where links are unknown, by moving it."""
    if log.exists() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)  # a job may die before it made its folder
        try:
            os.link(log, target)
        except OSError:
            os.replace(log, target)


def last_lines(path: Path, count: int = TAIL_LINES, size: int = 16384) -> tuple[str, ...]:
    """The end of a log; empty when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - size))
            lines = file.read().decode("utf-8", "replace").splitlines()[-count:]
            return tuple(map(shortened, lines))
    except OSError:
        return ()
