"""Scores that a job reports: on its way, and its final one. Standard library only.

Training code calls `autocl_sweeper.report(score, step)` and, where it does not return its score,
`autocl_sweeper.report_final_result(score)`.
"""

from __future__ import annotations

import math
import numbers
import os
from typing import Any

VARIABLE = "AUTOCL_REPORTS"
"""The environment variable that names the file of a job's reports; unset outside a sweep."""

FINAL = ".final"  # added to that name: the file of the final result


def reports_are_read() -> bool:
    """Whether this process is a job of a sweep: what only a report needs is to be worked out."""
    return bool(os.environ.get(VARIABLE))


def report(score: float, step: int) -> None:
    """Append a score reached after `step` steps to the reports of the running job.

    May be called from any process of the job; of several ranks that have the same score, let one
    report it. A score of nan or infinity is recorded as null: training diverged, and goes on if it
    wants to. Without a sweep nothing is written.

    Raises ValueError for a score that is no number or a step that is no whole number from 0.
    """
    if not isinstance(score, numbers.Real) or isinstance(score, bool):
        raise ValueError(
            f"report(score={score!r}, step={step!r}): the score is a {type(score).__name__}, not a"
            " number.\n  Pass a float; a tensor of one element has it as .item()."
        )
    if not isinstance(step, numbers.Integral) or isinstance(step, bool) or step < 0:
        raise ValueError(
            f"report(score={score!r}, step={step!r}): the step is not a whole number from 0.\n"
            "  Pass the number of training steps done so far."
        )
    path = os.environ.get(VARIABLE)
    if not path:
        return
    number = float(score)
    text = repr(number) if math.isfinite(number) else "null"
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except FileNotFoundError:
        return  # the sweep has ended and removed its folder: nobody reads this
    try:
        os.write(file, f'{{"score": {text}, "step": {int(step)}}}\n'.encode())  # in one piece
    finally:
        os.close(file)


def report_final_result(score: Any) -> None:
    """Report the score that ranks the running job; the last call counts.

    For jobs that do not return their score: scripts under `autocl finetune`, or a Hydra app whose
    task function returns nothing. A score of nan or infinity makes the trial fail with that reason.
    Outside a sweep the score is printed and nothing is written.

    Raises ValueError for a score that is no number; scalars of numpy and torch are numbers.
    """
    number = _scalar(score)
    if number is None:
        raise ValueError(
            f"report_final_result({score!r}): the score is a {type(score).__name__}, not a number.\n"
            "  Pass a float, or a numpy or torch scalar: the evaluation that ranks this trial."
        )
    path = os.environ.get(VARIABLE)
    if not path:
        print(f"final result: {number!r}")
        return
    aside = f"{path}{FINAL}.{os.getpid()}.tmp"
    try:
        with open(aside, "w") as file:
            file.write(repr(number))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, f"{path}{FINAL}")  # whole or not at all
    except FileNotFoundError:
        return  # the sweep has ended and removed its folder: nobody reads this


def final_result(path: str | os.PathLike[str] | None = None) -> float | None:
    """The final result that a job reported, by the file of its reports (None: the running job's).

    None: it reported none.
    """
    path = path or os.environ.get(VARIABLE)
    if not path:
        return None
    try:
        with open(f"{os.fspath(path)}{FINAL}") as file:
            return float(file.read())
    except FileNotFoundError:
        return None


def _scalar(score: Any) -> float | None:
    """A number of Python, numpy or torch as a float; None: it is none."""
    item = getattr(score, "item", None)  # tensors of one element, wherever they live
    if callable(item):
        try:
            score = item()
        except (TypeError, ValueError, RuntimeError):
            return None
    if isinstance(score, bool) or not isinstance(score, numbers.Real):
        return None
    try:
        return float(score)
    except OverflowError:  # a whole number beyond the largest float
        return math.copysign(math.inf, score > 0 or -1)  # type: ignore[operator]
