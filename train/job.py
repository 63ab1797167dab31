"""One run: train one task or several together, keep the checkpoint, evaluate on all tasks seen."""

from __future__ import annotations

import itertools
import logging
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from autocl_sweeper.reporter import report, reports_are_read
from train import start
from train.chain import Node, base_of, walk
from train.config.sections import Run
from train.config.trackers import tracked
from train.config.typed import SettingsError
from train.data.preprocess import over_length
from train.data.rows import Rows, kept
from train.data.rows import load as load_rows
from train.data.task_plan import TaskPlan, micro_batch_size, update_freq
from train.delta.delta import delta_of
from train.delta.start import begin_as
from train.loop import ranks, records
from train.loop.batches import Training
from train.loop.evaluation import means, predict
from train.loop.trainer import TrainingReport, row_losses, train
from train.memory.budget import limit_memory
from train.memory.checkpointing import recomputing
from train.memory.meter import CpuMeter, GpuMeter
from train.model.checkpoints import delta_name, load, save
from train.model.family import Meeting, Spreads, family_of
from train.model.fit import check_loaded, fitted
from train.sizes import dry_run

log = logging.getLogger(__name__)

TASK_SEEDS = 1_000_003  # apart: tasks trained together draw different orders


def train_and_evaluate(run: Run, plans: Mapping[str, TaskPlan], folder: Path) -> dict[str, Any]:
    """Do `run` in `folder`; the numbers it returns are also in all_results.json there.

    `plans`: by `plan_run`, of the tasks trained and all seen.
    """
    began = time.perf_counter()
    disable_progress_bar()  # a job's output is a log file
    # peft asks transformers for it by its old name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    limit_memory(run.memory)
    save_dir = _save_dir(run, folder)
    rows = {name: load_rows(plan, run.evaluation) for name, plan in plans.items()}
    nodes = walk(run.init_from)
    to_replay = replayed_tasks(run, nodes)
    settings = fitted(run.model, plans.values())
    family, delta = family_of(settings, base_of(nodes)), delta_of(run.delta)
    tasks = {name: family.meeting(plan) for name, plan in plans.items()}
    rows = {n: t.spread(rows[n]) if isinstance(t, Spreads) else rows[n] for n, t in tasks.items()}
    parent = None if run.init_from is None else load(run.init_from, family, delta)

    place = 1 if parent is None else len(parent.nodes) + 1
    # The same seed for every place would draw every delta alike: the opposite of orthogonal.
    seed = int(np.random.SeedSequence([run.seed, place]).generate_state(1)[0])
    torch.manual_seed(seed)
    whole = delta.trains_whole(parent is None, run.model.is_pretrained)
    model = family.build() if parent is None else parent.model
    begun: dict[str, Any] = {}
    if not whole:
        ancestors = parent.deltas if parent else ()
        is_merged = start.is_asked_for(run, delta)
        if is_merged and parent is not None and delta.kind != "adapters":
            # The chain has one delta, which this job does not go on from.
            model, ancestors = start.base_model(run, family), ()
        model = delta.attach(model, delta_name(place), ancestors)
        if is_merged:
            begun = start.merged_start(run, plans, rows, family, model, delta_name(place), folder)
        if run.delta.start_from is not None:
            begin_as(model, delta_name(place), run.delta.start_from)
    elif parent is not None:
        model.requires_grad_(True)
    check_loaded(model, settings, plans.values())
    trained, replayed = _trainings(run, tasks, rows, seed, to_replay)
    if run.memory.mode == "sizes":
        evaluated = {n: (tasks[n], rows[n]) for t in run.seen_tasks if plans[n := t.name].is_scored}
        return dry_run(run, model, delta, trained, replayed, evaluated, folder)
    recompute = recomputing(
        run.memory, model, folder, GpuMeter() if torch.cuda.is_available() else CpuMeter()
    )

    own, seen = [task.name for task in run.tasks], [task.name for task in run.seen_tasks]
    scored = [name for name in own if plans[name].is_scored]
    asked = [name for name in seen if plans[name].is_scored]
    others = [name for name in asked if name not in own]
    score_of = {name: plan.logged[0] for name, plan in plans.items()}

    def validate(step: int) -> dict[str, float]:
        limit = run.extras.max_valid_steps
        found = {n: predict(model, tasks[n], rows[n], "dev", limit, True).logged for n in scored}
        logged = means(found, score_of)
        if reports_are_read():  # by a sweep, which ranks a job by the mean over all tasks seen
            found |= {n: predict(model, tasks[n], rows[n], "dev", limit).logged for n in others}
        by_task = {n: found[n][score_of[n]] for n in found}
        report(score_by(run.evaluation.score, by_task, own), step)
        return logged

    def save_in(place: Path) -> None:
        save(model, place, own, parent, family, None if whole else delta)

    def keep(name: str) -> None:
        save_in(save_dir / name)
        kept = sorted(save_dir.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        for old in kept[: -(run.trainer.get("save_total_limit") or len(kept))]:
            shutil.rmtree(old)

    untrained: dict[str, float] = {}
    if parent is None and others:  # what forward transfer is measured against
        untrained = ranks.on_first(
            lambda: {f"before_{n}": predict(model, tasks[n], rows[n], "dev").score for n in others}
        )
    cut = ranks.on_first(lambda: count_cut(tasks, rows))
    train_start = time.perf_counter()
    if run.extras.do_train:
        with tracked(run.trainer.get("report_to"), folder) as name:
            callbacks = [] if recompute is None else [recompute]
            try:
                training = train(
                    *(model, trained, delta, run, seed, folder, validate, keep, name, replayed),
                    callbacks,
                )
            finally:  # also where a loss was NaN, or memory ran out: what was measured says why
                if recompute is not None:
                    recompute.leave()
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.to(device)  # type: ignore[arg-type]  # torch's overloads
        training = TrainingReport(0, 0.0, delta.report())
    if not whole and run.extras.do_train:
        delta.conclude(row_losses(model, trained))
    train_end = time.perf_counter()

    def keep_and_score() -> dict[str, Any]:
        if run.extras.save_model:
            save_in(save_dir)
        dev = {n: predict(model, tasks[n], rows[n], "dev", None, True) for n in asked}
        is_tested = run.evaluate_test and run.extras.do_test
        tested = [name for name in seen if rows[name].test and is_tested]
        test = {n: predict(model, tasks[n], rows[n], "test", None, True) for n in tested}
        by_task = {name: found.score for name, found in dev.items()}
        results = {
            "score": score_by(run.evaluation.score, by_task, own),
            "checkpoint": str(save_dir) if run.extras.save_model else None,
            "eval": by_task,
            "test": {name: found.score for name, found in test.items()},
            "steps": training.steps,
            "train_loss": training.train_loss,
            **training.delta,
            **begun,
            **start.lorahub(run, begun, [dev[n].logged["loss"] for n in scored]),
            **untrained,
            "seconds_train": train_end - train_start,
            "seconds_job": time.perf_counter() - began,
        }
        if recompute is not None:
            results |= recompute.numbers()
        if any(plan.rows is not None and plan.rows.selects_on_test for plan in plans.values()):
            results["selected_on_test"] = 1
        metrics = {"metrics": {name: found.logged for name, found in dev.items()}}
        metrics["test_metrics"] = {name: found.logged for name, found in test.items()}
        # O-LoRA's names, and how many prompts were too long, by task and part.
        numbers = {
            "train_loss": training.train_loss,
            "train_samples": sum(len(rows[name].train(0)) for name in own),
            "train_steps": training.steps,
            "train_runtime": round(train_end - train_start, 4),
            "train_over_length": cut,
        }
        records.write_job(folder, results | metrics, numbers, [*dev.values()], [*test.values()])
        log.info("%s: score %.3f on dev of %s", "+".join(own), results["score"], ", ".join(dev))
        return results

    return ranks.on_first(keep_and_score)


def _trainings(
    run: Run,
    tasks: Mapping[str, Meeting],
    rows: Mapping[str, Rows],
    seed: int,
    earlier: Sequence[str],
) -> tuple[list[Training], list[Training]]:
    """The tasks that are trained, and those earlier ones of which rows are mixed in."""
    sizes = [micro_batch_size(task, run.trainer) for task in run.tasks]
    seeds = itertools.count(seed, TASK_SEEDS)
    trained = [
        Training(tasks[t.name], rows[t.name], size, update_freq(t, run.trainer), next(seeds))
        for t, size in zip(run.tasks, sizes, strict=True)
    ]
    few = {name: kept(rows[name], run.delta.replay_rows, run.seed) for name in earlier}
    replayed = [Training(tasks[n], own, sizes[0], (1,), next(seeds)) for n, own in few.items()]
    return trained, replayed


def replayed_tasks(run: Run, nodes: Sequence[Node]) -> list[str]:
    """Tasks of the chain before this one, if rows of them are to be mixed in. Raises SettingsError."""
    if not run.delta.replay_rows:
        return []
    own, seen = [task.name for task in run.tasks], [task.name for task in run.seen_tasks]
    earlier = dict.fromkeys(name for node in nodes for name in node.tasks if name not in own)
    if missing := [name for name in earlier if name not in seen]:
        raise SettingsError(
            f"delta.replay_rows={run.delta.replay_rows}: rows of task '{missing[0]}' are to be mixed in, "
            f"which the chain in init_from has trained, but seen_tasks={seen} leaves it out; add it"
        )
    return [*earlier]


def evaluate_checkpoint(
    run: Run, plans: Mapping[str, TaskPlan], folder: Path, told: Mapping[str, Any]
) -> dict[str, float]:
    """Task -> score on test of the checkpoint in `run.init_from`; nothing is trained.

    folder: of the job that trained it; its records of prediction become those of test. told: what its
    all_results.json says. Raises SettingsError, CheckpointError, DataError.
    """
    assert run.init_from is not None
    disable_progress_bar()
    rows = {t.name: load_rows(plans[t.name], run.evaluation) for t in run.seen_tasks}
    settings = fitted(run.model, plans.values())
    family = family_of(settings, base_of(walk(run.init_from)))
    model = load(run.init_from, family, delta_of(run.delta)).model
    check_loaded(model, settings, plans.values())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)  # type: ignore[arg-type]  # torch's overloads
    test = {
        name: predict(model, family.meeting(plans[name]), own, "test", None, True)
        for name, own in rows.items()
        if own.test
    }
    records.write_test(folder, told, [*test.values()])
    return {name: found.score for name, found in test.items()}


def score_by(choice: str, by_task: Mapping[str, float], own: Sequence[str]) -> float:
    """The score of a job from those of the tasks seen. choice: evaluation.score."""
    chosen = [v for n, v in by_task.items() if choice != "current" or n in own]
    return min(chosen) if choice == "worst" else sum(chosen) / len(chosen)


def count_cut(tasks: Mapping[str, Meeting], rows: Mapping[str, Rows]) -> dict[str, dict[str, int]]:
    """How many prompts are longer than max_src_length, by task and part; warns of them."""
    found: dict[str, dict[str, int]] = {}
    for name, task in tasks.items():
        vocabulary = getattr(task, "vocabulary", None)
        if vocabulary is None or task.plan.rows is None:
            continue
        parts = {"train": rows[name].train(0), "dev": rows[name].dev, "test": rows[name].test}
        cut = {part: over_length(task.plan, vocabulary, own) for part, own in parts.items()}
        found[name] = {part: n for part, n in cut.items() if n}
        if found[name]:
            told = ", ".join(f"{n} of {len(parts[part])} {part}" for part, n in found[name].items())
            how = "inside: their end is kept" if task.plan.keep_end else "from the right"
            log.warning(
                "task %s: %s rows are longer than max_src_length=%d %s and are cut %s%s",
                *(name, told, task.plan.max_src_length, vocabulary.unit, how),
                "" if task.plan.keep_end else ": they lose 'Answer:' (keep_end=true keeps it)",
            )
    return found


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
