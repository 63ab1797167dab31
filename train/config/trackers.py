"""Trackers of experiments that a training reports to: which there are, and what a run is called there."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from train.config.typed import SettingsError

# Name -> packages, one of which is needed.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
NONE = "none"
SWEEP_FILES = ("journal.jsonl", "multirun.yaml")  # of our sweeper; of Hydra's own


def trackers(report_to: str | list[str] | None) -> list[str]:
    """The trackers that trainer.report_to names. Raises SettingsError for one that cannot be used."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    names = [name for name in names if name != NONE]
    for name in names:
        key = f"trainer.report_to={name}"
        if name not in PACKAGES:
            raise SettingsError(f"{key}: must be {NONE}, or one or more of {', '.join(PACKAGES)}")
        packages = PACKAGES[name]
        if not any(map(find_spec, packages)):
            raise SettingsError(
                f"{key}: the package {' or '.join(packages)} is not installed: "
                f"`pip install {packages[0]}`, or trainer.report_to={NONE}"
            )
    return names


def run_and_sweep(folder: Path) -> tuple[str, str]:
    """What a job is called within its sweep, and its sweep: 1_digits_01/0 of runs/first.

    Without a sweep: the last two parts of its folder, and those before.
    """
    folder = folder.absolute()
    sweep = next((p for p in folder.parents if any((p / f).exists() for f in SWEEP_FILES)), None)
    if sweep is None:
        sweep = folder.parents[min(1, len(folder.parents) - 1)]
    return folder.relative_to(sweep).as_posix(), "/".join(sweep.parts[-2:])


@contextmanager
def tracked(report_to: str | list[str] | None, folder: Path) -> Iterator[str]:
    """The run's name for its trackers, which find its sweep and its folder in the environment.

    What the user has set there holds. Runs are ended with the block: a process may train again.
    """
    run, sweep = run_and_sweep(folder)
    if not (names := trackers(report_to)):
        yield run
        return
    board = os.environ.get("TENSORBOARD_LOGGING_DIR")
    tags = json.loads(os.environ.get("MLFLOW_TAGS") or "{}")
    ours = {
        # One folder for all runs would mix their curves.
        "TENSORBOARD_LOGGING_DIR": str(
            Path(board, sweep, run) if board else folder / "tensorboard"
        ),
        "WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", sweep),
        "WANDB_DIR": os.environ.get("WANDB_DIR", str(folder)),
        "MLFLOW_TAGS": json.dumps({"sweep": sweep, "run": run, **tags}),
    }
    before = {name: os.environ[name] for name in ours.keys() & os.environ.keys()}
    os.environ.update(ours)
    failed = True
    try:
        yield run
        failed = False
    finally:
        _end_runs(names, failed)
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(before)


def _end_runs(names: list[str], failed: bool) -> None:
    if "wandb" in names and (wandb := sys.modules.get("wandb")) is not None:
        wandb.finish(exit_code=int(failed))
    if "mlflow" in names and (mlflow := sys.modules.get("mlflow")) is not None:
        mlflow.end_run("FAILED" if failed else "FINISHED")
