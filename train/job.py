"""One job: train one task, keep its checkpoint, evaluate on all tasks seen so far."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from train import ranks
from train.data import Examples, split
from train.evaluation import accuracy
from train.models import adapter_name, build_base, load, save
from train.olora import add_adapter
from train.settings import Job
from train.trainer import train

log = logging.getLogger(__name__)


def run(job: Job, folder: Path) -> dict[str, Any]:
    """Train and evaluate `job` in `folder`; the numbers it returns are also in all_results.json."""
    start = time.perf_counter()
    disable_progress_bar()  # nobody watches; a job's output is a log file
    parent = None if job.init_from is None else load(job.init_from)
    place = 1 if parent is None else len(parent.nodes) + 1
    # The same seed for every place would draw every adapter's A alike: the opposite of orthogonal.
    seed = int(np.random.SeedSequence([job.seed, place]).generate_state(1)[0])
    torch.manual_seed(seed)
    adapters: list[str] = []
    if parent is None:
        model = build_base(job.model)
    else:
        adapters = [*parent.adapters, adapter_name(place)]
        model = add_adapter(parent.model, adapters[-1], parent.adapters, job.delta)
    splits = {task.name: split(task, job.evaluation) for task in job.seen_tasks}

    train_start = time.perf_counter()
    train_rows = splits[job.task.name].train
    report = train(model, Examples(job.task, train_rows), adapters, job, seed, folder)
    train_end = time.perf_counter()

    def keep_and_score() -> dict[str, Any]:
        save(model, folder / "checkpoint", job.task.name, parent)
        dev = {t.name: accuracy(model, Examples(t, splits[t.name].dev)) for t in job.seen_tasks}
        test = {t.name: accuracy(model, Examples(t, splits[t.name].test)) for t in job.seen_tasks}
        results = {
            "score": sum(dev.values()) / len(dev),
            "checkpoint": str(folder / "checkpoint"),
            "eval": dev,
            "test": test,
            **asdict(report),
            "seconds_train": train_end - train_start,
            "seconds_job": time.perf_counter() - start,
        }
        (folder / "all_results.json").write_text(json.dumps(results, indent=2) + "\n")
        log.info("%s: score %.3f on dev of %s", job.task.name, results["score"], ", ".join(dev))
        return results

    return ranks.on_first(keep_and_score)
