"""Scores of sources on one target: batches of its dev rows, once through the model of every source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from train.config.merging import MergeSettings
from train.config.task import LossSettings
from train.data.rows import Rows
from train.data.tables import Row
from train.loop.criterion import loss_sum
from train.loop.evaluation import predict
from train.merge.blocks import blocks_of
from train.merge.rules import MergeError
from train.merge.sources import Source
from train.model.family import Meeting
from train.score import formulas
from train.score.hidden import EMBEDDING, Stack, alike, observed, stacks
from train.score.holder import Holder

Tick = Callable[[], None]


@dataclass(frozen=True)
class Scored:
    """Scores for one target, by method and source, and what they are over."""

    by_method: Mapping[str, Mapping[str, float]]
    tokens: int
    batches: int
    blocks: Mapping[str, Mapping[str, float]]  # of grand and hidden_cos: block -> source -> score


def score(
    task: Meeting,
    rows: Rows,
    sources: Sequence[Source],
    holder: Holder,
    settings: MergeSettings,
    tuned_target: Source | None,
    tuned: Mapping[str, Source],
    tick: Tick = lambda: None,
) -> Scored:
    """Scores of all methods that `settings.method` needs a pass for. Raises MergeError.

    tuned_target: the delta tuned on the target's rows from a random start, for kl, cosine and hidden_cos.
    tuned: every source after its tune pass, for euclidean and performance. tick: called after each batch of a
    source.
    """
    method = settings.method
    if method in ("kl", "cosine", "hidden_cos") and tuned_target is None:
        raise MergeError(
            f"merge.method={method} needs merge.target_tuned: a delta tuned on the target's few rows from a "
            f"random start (python train.py task={task.plan.name} trainer.max_steps=200)"
        )
    if method in ("euclidean", "performance"):
        if lacking := [one.name for one in sources if one.name not in tuned]:
            raise MergeError(
                f"merge.method={method} needs merge.tuned: every source after a tune pass on the target; it "
                f"lacks '{lacking[0]}' (python train.py task={task.plan.name} "
                f"delta.start_from={sources[0].path} trainer.max_steps=200)"
            )
        return Scored({method: _after_tuning(task, rows, sources, holder, method, tuned)}, 0, 0, {})
    if method == "cosine":
        assert tuned_target is not None
        for one in sources:
            if different := sorted(one.state.keys() ^ tuned_target.state.keys()):
                raise MergeError(
                    f"merge.target_tuned and '{one.name}': only one has '{different[0]}'"
                )
        found = {one.name: formulas.cosine(tuned_target.state, one.state) for one in sources}
        return Scored({"cosine": found}, 0, 0, {})
    batches = _batches(task, rows.dev, settings.batch_size)[: settings.max_batches]
    device = holder.device
    if method == "hidden_cos":
        assert tuned_target is not None
        return _hidden_cos(task, batches, sources, tuned_target, holder, settings, tick)
    if method == "grand":
        return _grand(task, batches, sources, holder, settings, tick)
    sums: dict[str, list[dict[str, float]]] = {one.name: [] for one in sources}
    with torch.inference_mode():
        for batch in batches:
            own = {key: value.to(device) for key, value in batch.items()}
            target = None
            if tuned_target is not None:
                target = task.logits(holder.put(tuned_target), own)
            for one in sources:
                logits = task.logits(holder.put(one), own)
                sums[one.name].append(formulas.token_sums(logits, own["labels"], target))
                tick()
    totals = {name: formulas.added(parts) for name, parts in sums.items()}
    tokens = int(next(iter(totals.values()))["tokens"])
    methods = [m for m in formulas.OVER_TOKENS if m in next(iter(totals.values()))]
    over = tokens if settings.reduction == "mean" else 1
    by_method = {m: {name: total[m] / over for name, total in totals.items()} for m in methods}
    return Scored(by_method, tokens, len(batches), {})


def _batches(task: Meeting, rows: Sequence[Row], size: int) -> list[dict[str, torch.Tensor]]:
    """All dev rows, without what is random in training."""
    seed = task.plan.task.dataset.fixed_validation_seed or 0
    examples = [
        task.example(
            row, np.random.default_rng([seed, i]), False, f"{task.plan.name}, dev row {i + 1}"
        )
        for i, row in enumerate(rows)
    ]
    return [task.batch(examples[i : i + size]) for i in range(0, len(examples), size)]


def _grand(
    task: Meeting,
    batches: Sequence[Mapping[str, torch.Tensor]],
    sources: Sequence[Source],
    holder: Holder,
    settings: MergeSettings,
    tick: Tick,
) -> Scored:
    """Norms of the delta's gradients, with the same dropout for every source."""
    totals: dict[str, dict[str, float]] = {one.name: {} for one in sources}
    tokens = 0
    for number, batch in enumerate(batches):
        own = {key: value.to(holder.device) for key, value in batch.items()}
        count = int((own["labels"] != formulas.IGNORED).sum())
        tokens += count
        for one in sources:
            model = holder.put(one)
            model.train(settings.grand_mode == "train")
            parameters = holder.delta()
            for p in parameters.values():
                p.requires_grad_(True)
            with torch.random.fork_rng():
                torch.manual_seed(settings.seed + number)
                loss = loss_sum(task.logits(model, own), own["labels"], LossSettings(), 0) / count
            gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
            given = {n: g for n, g in zip(parameters, gradients, strict=True) if g is not None}
            norms = formulas.gradient_norms(given)
            totals[one.name] = formulas.added([totals[one.name], norms])
            tick()
    over = len(batches) if settings.reduction == "mean" else 1
    found = {name: total["all"] / over for name, total in totals.items()}
    blocks = sorted({key for total in totals.values() for key in total} - {"all"})
    by_block = {b: {n: total.get(b, 0.0) / over for n, total in totals.items()} for b in blocks}
    return Scored({"grand": found}, tokens, len(batches), by_block)


def _hidden_cos(
    task: Meeting,
    batches: Sequence[Mapping[str, torch.Tensor]],
    sources: Sequence[Source],
    tuned_target: Source,
    holder: Holder,
    settings: MergeSettings,
    tick: Tick,
) -> Scored:
    """How alike hidden states are to those of the target-tuned model: by block, and their mean over blocks."""
    totals: dict[str, list[dict[str, float]]] = {one.name: [] for one in sources}

    def states(delta: Source, batch: Mapping[str, torch.Tensor]) -> dict[str, Stack]:
        model = holder.put(delta)
        with observed(model) as outputs:
            task.logits(model, batch)
        return stacks(outputs[-1], batch)

    rows = tokens = 0
    with torch.inference_mode():
        for batch in batches:
            own = {key: value.to(holder.device) for key, value in batch.items()}
            rows += len(own["labels"])
            tokens += int((own["labels"] != formulas.IGNORED).sum())
            target = states(tuned_target, own)
            for one in sources:
                totals[one.name].append(alike(target, states(one, own)))
                tick()
    over = rows if settings.reduction == "mean" else 1
    sums = {name: formulas.added(parts) for name, parts in totals.items()}
    # A model with one stack calls its blocks as the delta's tensors do: '3' or 'encoder.3'.
    named = {block for key in sources[0].state for block in blocks_of(key)}
    prefix = "encoder." if any(block.startswith("encoder.") for block in named) else ""
    by_block: dict[str, dict[str, float]] = {}
    for name, found in sums.items():
        for block, value in found.items():
            full = block if "." in block else f"{prefix}{block}"
            by_block.setdefault(full, {})[name] = value / over
    trained = [row for block, row in by_block.items() if not block.endswith(EMBEDDING)]
    mean = {name: sum(row[name] for row in trained) / len(trained) for name in sums}
    return Scored({"hidden_cos": mean}, tokens, len(batches), by_block)


def _after_tuning(
    task: Meeting,
    rows: Rows,
    sources: Sequence[Source],
    holder: Holder,
    method: str,
    tuned: Mapping[str, Source],
) -> dict[str, float]:
    found = {}
    for one in sources:
        after = tuned[one.name]
        if different := sorted(one.state.keys() ^ after.state.keys()):
            raise MergeError(f"'{one.name}' and its tuned delta: only one has '{different[0]}'")
        if method == "euclidean":
            found[one.name] = formulas.euclidean(one.state, after.state)
            continue
        told: list[float] = []
        for delta in (after, one):
            model: Any = holder.put(delta)
            told.append(predict(model, task, rows, "dev").score)
        found[one.name] = told[0] - told[1]
    return found
