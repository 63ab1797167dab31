"""Report a score while a job trains: `autocl_sweeper.report(score, step)`. Standard library only."""

from __future__ import annotations

import math
import numbers
import os

VARIABLE = "AUTOCL_REPORTS"
"""The environment variable that names the file of a job's reports; unset outside a sweep."""


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
        return  # the sweep is over and took its folder with it: nobody reads on
    try:
        os.write(file, f'{{"score": {text}, "step": {int(step)}}}\n'.encode())  # in one piece
    finally:
        os.close(file)
