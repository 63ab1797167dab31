"""TensorBoard's event files, written by a process of their own.

tensorboardX imports torch where it finds it, which would take the control loop seconds.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

NEW = ".new"  # beside the runs, while they are written
PATTERN = "events.out.tfevents.*"


def write_runs(folder: Path, runs: dict[str, list[Any]]) -> None:
    """Write each run's scalars, [tag, step, value] each, in the place of what its folder had."""
    from tensorboardX import SummaryWriter  # type: ignore[import-untyped, unused-ignore]

    shutil.rmtree(folder / NEW, ignore_errors=True)
    for run, scalars in runs.items():
        with SummaryWriter(str(folder / NEW / run)) as writer:
            for tag, step, value in scalars:
                writer.add_scalar(tag, value, step)
    for run in runs:
        home = folder / run
        home.mkdir(exist_ok=True)
        before = list(home.glob(PATTERN))
        for written in (folder / NEW / run).glob(PATTERN):
            written.replace(home / written.name)
            before = [one for one in before if one.name != written.name]
        for one in before:
            one.unlink()
    shutil.rmtree(folder / NEW, ignore_errors=True)


def main(folder: str) -> None:
    """The runs are JSON on stdin."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # scalars need no tensors
    write_runs(Path(folder), json.load(sys.stdin))
