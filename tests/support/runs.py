"""Runs of the training app, taken apart: plans, models and tasks as `train.job` puts them together."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np

from train.chain import base_of, walk
from train.config.sections import Run
from train.data.rows import Rows, load
from train.data.task_plan import TaskPlan, micro_batch_size, plan_run, update_freq
from train.model.family import check_model, family_of
from train.model.fit import fitted


def of(folder: Path, *more: str) -> list[str]:
    """Overrides of a job on the weights of a folder."""
    return ["model=pretrained", f"model.path={folder}", *more]


def planned(run: Run) -> dict[str, TaskPlan]:
    """The checked plans of a run, as main passes them on."""
    plans = plan_run(run)
    check_model(run, plans)
    return plans


def leave_the_rest_alone() -> None:
    """Every training collects garbage: not again among all that the tests have imported so far."""
    gc.collect()
    gc.freeze()


def finish(run: Run, folder: Path) -> dict[str, Any]:
    """All of a run, in this process."""
    from train.job import train_and_evaluate

    leave_the_rest_alone()
    return train_and_evaluate(run, planned(run), folder)


def meeting_of(run: Run, name: str | None = None) -> Any:
    """How a task of the run meets its model; the only one unless named."""
    plans = planned(run)
    plan = plans[name or run.task.name]
    return family_of(fitted(run.model, plans.values())).meeting(plan)


def read(task: Any, row: Any, training: bool = False) -> Any:
    """A row as the model of a task reads it."""
    return task.example(row, np.random.default_rng(0), training, "row")


def model_of(run: Run, seed: int = 0) -> Any:
    """A first model of the run."""
    import torch

    torch.manual_seed(seed)
    return family_of(run.model).build()


def second_task(run: Run, seed: int = 0) -> tuple[Any, Any]:
    """A model with one ancestor whose B is not zero, and its new delta, whose B is not either."""
    import torch

    from train.delta.olora import OLoRA, factors

    model = model_of(run, seed)
    for name, ancestors in (("task2", []), ("task3", ["task2"])):
        delta = OLoRA(run.delta)
        model = delta.attach(model, name, ancestors)
        for module in factors(model, name, ancestors):
            torch.nn.init.normal_(module.b_new, std=0.1)
    return model, delta


def trainings(run: Run, n_train: int | None = None, every: int = 1) -> list[Any]:
    """The tasks of a run as the trainer takes them, on `n_train` of every so many of its rows."""
    from train.loop.batches import Training

    leave_the_rest_alone()
    plans, made = planned(run), []
    for task in run.tasks:
        rows = load(plans[task.name], run.evaluation)
        few = Rows(lambda e, r=rows: r.train(e)[::every][:n_train], rows.dev[:8], rows.test)  # type: ignore[misc]
        size, freq = micro_batch_size(task, run.trainer), update_freq(task, run.trainer)
        made.append(Training(meeting_of(run, task.name), few, size, freq, 0))
    return made


def loaded(run: Run, folder: Path) -> Any:
    """The chain that ends in the checkpoint `folder`, as a run of the next task loads it."""
    from train.delta.delta import delta_of
    from train.model.checkpoints import load

    base = base_of(walk(folder))
    return load(folder, family_of(run.model, base), delta_of(run.delta))
