"""What became of a job: read from what its function returned or raised, told in a file.

However a job is run, its outcome appears whole or not at all as `<sweep folder>/.autocl/<number>.json`,
so it survives the controller and every launcher.
"""

from __future__ import annotations

import errno
import json
import math
import numbers
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocl_sweeper.errors import InfeasibleError
from autocl_sweeper.journal import outcome_from_json, outcome_to_json
from autocl_sweeper.reporter import FINAL, final_result
from autocl_sweeper.types import Cause, Outcome, State

LOG_NAME = "job.log"
CHECKPOINT_NAME = "checkpoint"
TAIL_LINES = 20
# How the allocators of torch (CUDA, ROCm, XPU, MPS), cuBLAS, cuDNN, the CUDA driver and XLA say it.
NO_DEVICE_MEMORY = re.compile(
    r"\b(CUDA|HIP|XPU|MPS)( backend)?( error:)? out of memory\b"
    r"|\bCU(BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED\b"
    r"|\bCUDA_ERROR_OUT_OF_MEMORY\b|\bCuda failure\b.{0,4}'out of memory'"
    r"|\bRESOURCE_EXHAUSTED: Out of memory\b",
    re.IGNORECASE,
)
NO_HOST_MEMORY = re.compile(r"\bDefaultCPUAllocator: (can't allocate|not enough) memory\b")
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

    def log(self, number: int) -> Path:
        """The job's output, under a name known before the job knows its folder and links it there."""
        return self.folder / f"{number}.log"

    def group(self, number: int) -> Path:
        """Process group and boot of a running job, for who finds it after its controller died."""
        return self.folder / f"{number}.group"

    def output(self, number: int) -> Path:
        """The name of a running job's output folder, which only the job itself finds out."""
        return self.folder / f"{number}.output"

    def reports(self, number: int) -> Path:
        """Scores that a running job reports, a JSON line each."""
        return self.folder / f"{number}.reports"

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

    def forget(self, number: int) -> None:
        """Remove what an ended job left here; all of it is elsewhere by now.

        A log that no folder claimed (the job never composed) stays: it is the only copy.
        """
        kinds = (self.outcome, self.job_return, self.group, self.output, self.reports, self.begun)
        for path in (*kinds, self.final):
            path(number).unlink(missing_ok=True)
        log = self.log(number)
        if log.exists() and log.stat().st_nlink > 1:
            log.unlink()

    def read_outcome(self, number: int) -> Outcome | None:
        """What the job wrote, or None while there is nothing or nothing readable."""
        try:
            return outcome_from_json(json.loads(self.outcome(number).read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_outcome(self, number: int, outcome: Outcome) -> None:
        text = json.dumps(outcome_to_json(outcome), ensure_ascii=False, allow_nan=False)
        write_whole(self.outcome(number), text.encode("utf-8", "backslashreplace"))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, and stays after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def outcome_of(value: Any, output_dir: Path, seconds: float) -> Outcome:
    """The outcome of a task function that returned `value`: a number, or a mapping.

    A mapping holds numbers; `eval` and `test` map tasks to scores, `checkpoint` names the folder of
    the model (default: `checkpoint/` in the job's folder, if it is there). Whether the score will
    do is judged by the sweep, which knows if anybody has to be ranked.
    """
    found: dict[str, float] = {}
    scores: dict[str, dict[str, float]] = {"eval": {}, "test": {}}
    checkpoint: Any = None
    if isinstance(value, Mapping):
        checkpoint = value.get("checkpoint")
        for key, item in value.items():
            if key in scores and isinstance(item, Mapping):
                scores[key] = {str(k): _float(n) for k, n in item.items() if is_number(n)}
            elif is_number(item):
                found[str(key)] = _float(item)
    elif is_number(value):
        found["score"] = _float(value)
    default = output_dir / CHECKPOINT_NAME
    if checkpoint is None and default.is_dir():
        checkpoint = default
    return Outcome(
        state=State.COMPLETE,
        checkpoint=None if checkpoint is None else str(output_dir / str(checkpoint)),
        evaluations=scores["eval"],
        tests=scores["test"],
        numbers=found,
        returned=type(value).__name__,
        seconds=seconds,
    )


def is_number(value: Any) -> bool:
    """Python's and numpy's numbers. A bool is an answer, a tensor may live on a device: neither."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:  # a whole number or a fraction beyond the largest float
        return math.copysign(math.inf, number > 0 or -1)


def failure(error: BaseException, seconds: float, cause: Cause | None = None) -> Outcome:
    """The outcome of a job that raised. `cause`: where it is known without looking at the error."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return Outcome(
        state=State.FAIL,
        reason=headline(error),
        seconds=seconds,
        log_tail=tuple(lines[-TAIL_LINES:]),
        cause=cause_of(error) if cause is None else cause,
    )


def cause_of(error: BaseException) -> Cause:
    """Whether memory ran out or the settings are infeasible, told by the error or by one that led to it.

    By names and texts, because nothing here imports torch: `torch.OutOfMemoryError` and its like by
    the name of the class, the rest by what the libraries write.
    """
    for one in _chain(error):
        names = [kind.__name__ for kind in type(one).__mro__]
        if isinstance(one, InfeasibleError):
            return Cause.INFEASIBLE
        text = headline(one)
        if "OutOfMemoryError" in names or NO_DEVICE_MEMORY.search(text):
            return Cause.DEVICE_MEMORY
        no_memory = isinstance(one, OSError) and one.errno == errno.ENOMEM
        if isinstance(one, MemoryError) or no_memory or NO_HOST_MEMORY.search(text):
            return Cause.HOST_MEMORY
    return Cause.EXCEPTION


def cause_in_log(lines: Sequence[str]) -> Cause:
    """The same of a job that left no error but exited: what the last traceback in its log ends with."""
    for line in reversed(lines):
        found = TRACEBACK_END.match(line)
        if found and NO_DEVICE_MEMORY.search(line):
            return Cause.DEVICE_MEMORY
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
            return tuple(file.read().decode("utf-8", "replace").splitlines()[-count:])
    except OSError:
        return ()
