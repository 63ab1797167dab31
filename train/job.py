"""One job: train one task or several together, keep the checkpoint, evaluate on all tasks seen."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from train.chain import walk
from train.config.sections import MemorySettings, ModelSettings, Run, SettingsError
from train.data.rows import load as load_rows
from train.data.task_plan import TaskPlan, fitted, micro_batch_size, plan_run, update_freq
from train.data.vocabulary import vocabulary_of
from train.delta.olora import add_adapter
from train.loop import ranks
from train.loop.batches import Training
from train.loop.evaluation import evaluate, means
from train.loop.trainer import train
from train.model.models import Chain, adapter_name, build_base, load, meeting, save

log = logging.getLogger(__name__)

TASK_SEEDS = 1_000_003  # apart: tasks trained together draw different orders


def run(job: Run, folder: Path) -> dict[str, Any]:
    """As `train_and_evaluate`, for callers that have no plans yet."""
    return train_and_evaluate(job, plan_run(job), folder)


def train_and_evaluate(job: Run, plans: Mapping[str, TaskPlan], folder: Path) -> dict[str, Any]:
    """Train and evaluate `job` in `folder`; the numbers it returns are also in all_results.json."""
    start = time.perf_counter()
    disable_progress_bar()  # nobody watches; a job's output is a log file
    limit_memory(job.memory)
    save_dir = _save_dir(job, folder)
    rows = {name: load_rows(plan, job.evaluation) for name, plan in plans.items()}
    begun = None if job.init_from is None else walk(job.init_from)[0].folder / "base"
    settings = fitted(job.model, plans.values())
    vocabulary = vocabulary_of(settings, begun)
    tasks = {name: meeting(plan, settings, vocabulary) for name, plan in plans.items()}

    parent = None if job.init_from is None else load(job.init_from)
    if parent is not None:
        _check_images(parent, settings, plans.values())
    place = 1 if parent is None else len(parent.nodes) + 1
    # The same seed for every place would draw every adapter's A alike: the opposite of orthogonal.
    seed = int(np.random.SeedSequence([job.seed, place]).generate_state(1)[0])
    torch.manual_seed(seed)
    adapters: list[str] = []
    if parent is None:
        model = build_base(settings, vocabulary)
    else:
        adapters = [*parent.adapters, adapter_name(place)]
        model = add_adapter(parent.model, adapters[-1], parent.adapters, job.delta)

    _check_lengths(model, plans.values())

    own = [task.name for task in job.tasks]
    score_of = {name: plan.logged[0] for name, plan in plans.items()}

    def validate() -> dict[str, float]:
        scored = [name for name in own if plans[name].is_scored]
        found = {name: score(name, "dev", job.extras.max_valid_steps, True) for name in scored}
        return means(found, {name: score_of[name] for name in scored})

    def score(
        name: str, part: str, max_batches: int | None = None, with_loss: bool = False
    ) -> dict[str, float]:
        chosen = rows[name].dev if part == "dev" else rows[name].test
        size = plans[name].task.dataset.micro_valid_batch_size or 256
        return evaluate(model, tasks[name], chosen, part, size, max_batches, with_loss)

    def keep(name: str) -> None:
        save(model, save_dir / name, own, parent, vocabulary)
        kept = sorted(save_dir.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        for old in kept[: -(job.trainer.get("save_total_limit") or len(kept))]:
            shutil.rmtree(old)

    train_start = time.perf_counter()
    trainings = [
        Training(
            tasks[task.name],
            rows[task.name],
            micro_batch_size(task, job.trainer),
            update_freq(task, job.trainer),
            seed + TASK_SEEDS * i,
        )
        for i, task in enumerate(job.tasks)
    ]
    report = train(model, trainings, adapters, job, seed, folder, validate, keep)
    train_end = time.perf_counter()

    def keep_and_score() -> dict[str, Any]:
        save(model, save_dir, own, parent, vocabulary)
        seen = [task.name for task in job.seen_tasks]
        metrics = {name: score(name, "dev") for name in seen if plans[name].is_scored}
        dev = {name: found[score_of[name]] for name, found in metrics.items()}
        test = {n: score(n, "test")[score_of[n]] for n in seen if rows[n].test}
        results = {
            "score": sum(dev.values()) / len(dev),
            "checkpoint": str(save_dir),
            "eval": dev,
            "test": test,
            **asdict(report),
            "seconds_train": train_end - train_start,
            "seconds_job": time.perf_counter() - start,
        }
        everything = {**results, "metrics": metrics}
        (folder / "all_results.json").write_text(json.dumps(everything, indent=2) + "\n")
        log.info("%s: score %.3f on dev of %s", "+".join(own), results["score"], ", ".join(dev))
        return results

    return ranks.on_first(keep_and_score)


def _check_images(parent: Chain, model: ModelSettings, plans: Iterable[TaskPlan]) -> None:
    """Images of these tasks are those the chain's model was made for. Raises SettingsError."""
    side = getattr(parent.model.config, "image_size", None)
    reads = any(s.type == "IMAGE" for plan in plans for t in plan.templates for s in t.slots)
    if reads and side not in (None, model.side):
        raise SettingsError(
            f"model.image_size={model.side}: the model of the chain in init_from was made for images "
            f"of {side} pixels. Set preprocess.<name>.patch_image_size={side} in its tasks"
        )


def _check_lengths(model: Any, plans: Iterable[TaskPlan]) -> None:
    """BART's kind has learned positions and no more. Raises SettingsError."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for plan in plans:
        for key in ("max_src_length", "max_tgt_length"):
            length = getattr(plan, key) + 1  # with the begin mark
            if limit is not None and length > limit:
                raise SettingsError(
                    f"task.{plan.name}.{key}={length - 1}: the model has positions for {limit} ids, one "
                    f"of them for the begin mark; {limit - 1} is the most"
                )


def limit_memory(memory: MemorySettings) -> None:
    """Hold this process to its share of the GPU. Raises SettingsError where there is none."""
    if memory.budget_mib is None:
        return
    if not torch.cuda.is_available():
        raise SettingsError(
            f"memory.budget_mib={memory.budget_mib}: limits the memory of a GPU, and this job has "
            "none. Leave it null on the CPU"
        )
    total_mib = torch.cuda.get_device_properties(0).total_memory / 2**20
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory.budget_mib / total_mib))


def _save_dir(job: Run, folder: Path) -> Path:
    """Where the checkpoint goes. Raises SettingsError where another run's lies already."""
    if job.extras.save_dir is None:
        return folder / "checkpoint"
    if "://" in job.extras.save_dir:
        raise SettingsError(
            f"trainer.save_dir={job.extras.save_dir}: only local folders are written"
        )
    path = Path(job.extras.save_dir).absolute()
    if (path / "node.json").exists():
        raise SettingsError(
            f"trainer.save_dir={path}: holds the checkpoint of another run. Give every run its own, "
            "for instance ${hydra:runtime.output_dir}/checkpoint"
        )
    return path
