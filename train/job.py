"""One run: train one task or several together, keep the checkpoint, evaluate on all tasks seen."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from autocl_sweeper.reporter import report
from train.chain import base_of, walk
from train.config.sections import Run
from train.config.typed import SettingsError
from train.data.rows import load as load_rows
from train.data.task_plan import TaskPlan, micro_batch_size, update_freq
from train.delta.delta import delta_of
from train.loop import ranks
from train.loop.batches import Training
from train.loop.evaluation import evaluate, means
from train.loop.trainer import row_losses, train
from train.memory.budget import limit_memory
from train.model.checkpoints import delta_name, load, save
from train.model.family import family_of
from train.model.fit import check_loaded, fitted

log = logging.getLogger(__name__)

TASK_SEEDS = 1_000_003  # apart: tasks trained together draw different orders


def train_and_evaluate(run: Run, plans: Mapping[str, TaskPlan], folder: Path) -> dict[str, Any]:
    """Do `run` in `folder`; the numbers it returns are also in all_results.json there.

    `plans`: by `plan_run`, of the tasks trained and all seen.
    """
    start = time.perf_counter()
    disable_progress_bar()  # a job's output is a log file
    limit_memory(run.memory)
    save_dir = _save_dir(run, folder)
    rows = {name: load_rows(plan, run.evaluation) for name, plan in plans.items()}
    base = None if run.init_from is None else base_of(walk(run.init_from))
    settings = fitted(run.model, plans.values())
    family, delta = family_of(settings, base), delta_of(run.delta)
    tasks = {name: family.meeting(plan) for name, plan in plans.items()}
    parent = None if run.init_from is None else load(run.init_from, family, delta)

    place = 1 if parent is None else len(parent.nodes) + 1
    # The same seed for every place would draw every delta alike: the opposite of orthogonal.
    seed = int(np.random.SeedSequence([run.seed, place]).generate_state(1)[0])
    torch.manual_seed(seed)
    whole = delta.trains_whole(parent is None, run.model.is_pretrained)
    model = family.build() if parent is None else parent.model
    if not whole:
        model = delta.attach(model, delta_name(place), parent.deltas if parent else ())
    elif parent is not None:
        model.requires_grad_(True)
    check_loaded(model, settings, plans.values())

    own = [task.name for task in run.tasks]
    scored = [name for name in own if plans[name].is_scored]
    score_of = {name: plan.logged[0] for name, plan in plans.items()}

    def validate(step: int) -> dict[str, float]:
        limit = run.extras.max_valid_steps
        found = {n: evaluate(model, tasks[n], rows[n], "dev", limit, True) for n in scored}
        logged = means(found, score_of)
        report(logged["score"], step)
        return logged

    def keep(name: str) -> None:
        save(model, save_dir / name, own, parent, family, None if whole else delta)
        kept = sorted(save_dir.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        for old in kept[: -(run.trainer.get("save_total_limit") or len(kept))]:
            shutil.rmtree(old)

    train_start = time.perf_counter()
    trained = [
        Training(
            tasks[task.name],
            rows[task.name],
            micro_batch_size(task, run.trainer),
            update_freq(task, run.trainer),
            seed + TASK_SEEDS * i,
        )
        for i, task in enumerate(run.tasks)
    ]
    training = train(model, trained, delta, run, seed, folder, validate, keep)
    if not whole:
        delta.conclude(row_losses(model, trained))
    train_end = time.perf_counter()

    def keep_and_score() -> dict[str, Any]:
        save(model, save_dir, own, parent, family, None if whole else delta)
        seen = [task.name for task in run.seen_tasks]
        metrics = {
            n: evaluate(model, tasks[n], rows[n], "dev", with_loss=True)
            for n in seen
            if plans[n].is_scored
        }
        test_metrics = {
            n: evaluate(model, tasks[n], rows[n], "test", with_loss=True)
            for n in seen
            if rows[n].test
        }
        dev = {n: found[score_of[n]] for n, found in metrics.items()}
        test = {n: found[score_of[n]] for n, found in test_metrics.items()}
        losses = [found["loss"] for found in test_metrics.values()]
        results = {
            "score": sum(dev.values()) / len(dev),
            "checkpoint": str(save_dir),
            "eval": dev,
            "test": test,
            "steps": training.steps,
            "train_loss": training.train_loss,
            # Teacher-forced on test, per target id; plain mean over the tasks.
            **({"predict_loss": sum(losses) / len(losses)} if losses else {}),
            **training.delta,
            "seconds_train": train_end - train_start,
            "seconds_job": time.perf_counter() - start,
        }
        everything = {**results, "metrics": metrics, "test_metrics": test_metrics}
        (folder / "all_results.json").write_text(json.dumps(everything, indent=2) + "\n")
        log.info("%s: score %.3f on dev of %s", "+".join(own), results["score"], ", ".join(dev))
        return results

    return ranks.on_first(keep_and_score)


def _save_dir(run: Run, folder: Path) -> Path:
    """The folder of the checkpoint. Raises SettingsError where another run's lies already."""
    if run.extras.save_dir is None:
        return folder / "checkpoint"
    path = Path(run.extras.save_dir).absolute()
    if (path / "node.json").exists():
        raise SettingsError(
            f"trainer.save_dir={path}: holds the checkpoint of another run. Give every run its own, "
            "for instance ${hydra:runtime.output_dir}/checkpoint"
        )
    return path
