"""Hydra's JobReturn on its way from a job's process to the controller that started it."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autocl_sweeper.job.pickles import dumps, loads
from autocl_sweeper.outcome import headline


class JobTraceback(Exception):
    """The traceback of an exception that a job raised, as text: the cause of its copy here."""


def write_return(path: Path, job_return: Any) -> None:
    """Pickle a JobReturn; a value that does not survive becomes a RuntimeError with its story."""
    value = job_return._return_value
    text = traceback_text(value) if isinstance(value, BaseException) else ""
    job_return._return_value = portable(value)
    if job_return._return_value is not value:
        from hydra.core.utils import JobStatus

        job_return.status = JobStatus.FAILED
    # Not synced: its reader is the controller that started the job, once the outcome is there too.
    path.write_bytes(dumps((job_return, text)))


def unpacked(data: bytes) -> Any:
    """The JobReturn in the bytes of a file that a job of ours wrote; nothing else is ever unpickled."""
    job_return, text = loads(data)
    value = job_return._return_value
    if text and isinstance(value, BaseException):
        # Pickling loses the traceback, and what the exception was raised from.
        value.__cause__ = JobTraceback(f"\nin the job process:\n{text}")
    return job_return


def failed_return(overrides: Sequence[str], error: BaseException) -> Any:
    """The JobReturn of a job that failed before its function was called."""
    from hydra.core.utils import JobReturn, JobStatus, filter_overrides

    return JobReturn(
        overrides=list(filter_overrides(overrides)), status=JobStatus.FAILED, _return_value=error
    )


def portable(value: Any) -> Any:
    """`value`, or a RuntimeError that names it where it does not survive pickling."""
    try:
        loads(dumps(value))
    except Exception as error:
        if isinstance(value, BaseException):
            return RuntimeError(f"{headline(value)}\n{traceback_text(value)}")
        return RuntimeError(f"the returned {type(value).__name__} cannot be pickled: {error!r}")
    return value


def traceback_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()
