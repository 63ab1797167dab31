"""A task function that reports its own outcome, whichever launcher runs it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from autocl_sweeper.job.pickles import by_value, loads
from autocl_sweeper.job.program import Place, Program
from autocl_sweeper.job.returned import portable
from autocl_sweeper.outcome import ERROR_NAME, JobFiles, failure, outcome_of, write_whole
from autocl_sweeper.private import private_folder
from autocl_sweeper.reporter import VARIABLE as REPORTS
from autocl_sweeper.types import Cause


class Terminated(SystemExit):
    """SIGTERM to the controller. Under basic it comes up in the job, whose own exit it is not."""


class ReportingTask:
    """A task function that also writes its outcome file.

    What the function raises or returns passes through, as long as that harms no other job of the
    launcher: an exit, or in another process what cannot be pickled, becomes a RuntimeError.
    """

    def __init__(self, task_function: Callable[[Any], Any], controller: int | None = None) -> None:
        self.task_function = task_function
        self.controller = controller or os.getpid()
        self.__wrapped__ = task_function
        self.__module__ = task_function.__module__
        self.__name__ = getattr(task_function, "__name__", type(task_function).__name__)

    def __call__(self, config: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        number = int(hydra.job.num)
        # The job may have changed directory; `sweep.dir` may be relative to where Hydra started.
        files = JobFiles.of(Path(hydra.runtime.cwd) / hydra.sweep.dir)
        output_dir = Path(hydra.runtime.output_dir)
        elsewhere = os.getpid() != self.controller
        if elsewhere:
            _end_with_parent(self.controller)
            write_whole(files.begun(number), b"")
        reports = os.environ.get(REPORTS)
        os.environ[REPORTS] = str(files.reports(number).absolute())
        private_folder(files.folder)  # or what it reports would be lost
        files.reserve(number)
        start = time.monotonic()
        value: Any = None
        error: Exception | None = None
        try:
            value = self.task_function(config)
            result = files.returned(number, value)
            outcome = outcome_of(result, output_dir, time.monotonic() - start)
        except Terminated:
            raise
        except SystemExit as left:
            outcome = failure(left, time.monotonic() - start, Cause.EXIT)
            outcome = replace(outcome, reason=_exit_text(left.code))
            error = RuntimeError(outcome.reason)
        except Exception as raised:
            outcome = failure(raised, time.monotonic() - start, folder=output_dir, whole=ERROR_NAME)
            error = portable(raised) if elsewhere else raised
        finally:
            if reports is None:
                del os.environ[REPORTS]
            else:
                os.environ[REPORTS] = reports
        files.write_outcome(number, outcome)
        if error is None and elsewhere and (carried := portable(value)) is not value:
            error = carried
        if error is not None:
            raise error
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            pickled = by_value(self.task_function)
        except Exception:  # it uses a lock or an open file: its place has to do
            place = Place.of(self.task_function)
            if place is None:
                raise
            return _placed, (Program.of_this_process(), place, self.controller)
        return _unpickled, (pickled, self.controller)


def _placed(program: Program, place: Place, controller: int) -> ReportingTask:
    flaw = _enter(program)
    function = place.find()
    if function is None:
        raise ImportError(f"the program does not define {place.name} ({flaw or 'once imported'})")
    return ReportingTask(function, controller)


@cache
def _enter(program: Program) -> str:
    """Once in a worker, whose next jobs find the program's modules imported."""
    return program.enter()


def _unpickled(pickled: bytes, controller: int) -> ReportingTask:
    return ReportingTask(loads(pickled), controller)


def _exit_text(code: Any) -> str:
    if not code:
        return "exit status 0 before the task function returned"
    return f"exit status {code}" if isinstance(code, int) else f"exit status 1: {code}"


_following = False


def _end_with_parent(controller: int) -> None:
    """End this process when its parent does, if that is the controller of the sweep.

    A pool's workers go on with what is queued after their parent was killed: resuming would run
    the same trials beside them.
    """
    global _following
    if _following or os.getppid() != controller:
        return
    _following = True

    def follow() -> None:
        while os.getppid() == controller:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, name="follows-controller", daemon=True).start()
