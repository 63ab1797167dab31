"""The loss of a task: a sum over what counts, and how many that is.

Sums, not means: a mean over an update is taken once, over all its micro-batches, tasks and processes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from train.config.task import LossSettings
from train.model.family import IGNORED, Meeting, OwnLoss


def sample_size(labels: torch.Tensor, settings: LossSettings, update: int) -> int:
    """Number of tokens of `labels` (n, or n x length) that count; of rows with `sentence_avg`."""
    if settings.sentence_avg:
        return len(labels)
    return _kept(int((labels != IGNORED).sum()), settings, update)


def task_loss(
    task: Meeting, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], update: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a batch, summed over what counts, and the logits."""
    if isinstance(task, OwnLoss):
        return task.loss(model, batch)
    logits = task.logits(model, batch)
    return loss_sum(logits, batch["labels"], task.plan.loss, update), logits


def loss_sum(
    logits: torch.Tensor, labels: torch.Tensor, settings: LossSettings, update: int
) -> torch.Tensor:
    """Cross entropy in nats, smoothed and without the worst, summed over what counts.

    logits: n x classes, or n x length x vocabulary; labels: IGNORED where nothing counts.
    `label_smoothing` is spread evenly over all classes that are not ruled out. Of `drop_worst_ratio`
    the tokens with the highest loss are left out, after `drop_worst_after` updates.
    """
    flat, wanted = logits.float().flatten(0, -2), labels.flatten()
    if settings.label_smoothing == settings.drop_worst_ratio == 0:
        total = torch.nn.functional.cross_entropy(
            flat, wanted, ignore_index=IGNORED, reduction="sum"
        )
        return total * settings.weight
    # A GPU has to wait where rows are picked, as their number is not known before.
    counts = wanted != IGNORED
    losses = torch.nn.functional.cross_entropy(flat[counts], wanted[counts], reduction="none")
    if settings.label_smoothing > 0:
        # Torch's own smoothing is infinite where a class is ruled out by a logit of -inf.
        possible = flat[counts].isfinite()
        logs = flat[counts].log_softmax(-1).masked_fill(~possible, 0.0)
        spread = -logs.sum(-1) / possible.sum(-1)
        losses = (1 - settings.label_smoothing) * losses + settings.label_smoothing * spread
    kept = _kept(len(losses), settings, update)
    if kept < len(losses):
        losses = losses.topk(kept, largest=False).values
    return losses.sum() * settings.weight


def n_right(logits: torch.Tensor, labels: torch.Tensor) -> int:
    """Tokens whose most likely id is the label: `report_accuracy`."""
    return int(((logits.argmax(-1) == labels) & (labels != IGNORED)).sum())


def _kept(n: int, settings: LossSettings, update: int) -> int:
    if settings.drop_worst_ratio > 0 and update > settings.drop_worst_after:
        return max(1, int(n * (1 - settings.drop_worst_ratio))) if n else 0
    return n
