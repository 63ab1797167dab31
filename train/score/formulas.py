"""Scores as formulas on logits, gradients and weights. All sums are in float64.

p: softmax of the source model's logits at a token; y: one-hot label; P: the same of the model tuned on the
target's few rows from a random delta. A token counts where its label is not -100.

    method             score of one source                                          better is
    loss               -ln p[y], in nats                                            lower
    kl                 KL(P || p), in nats                                          lower
    el2n               2-norm of p - y                                              lower
    logits_labels_cos  cos(p, y) = p[y] / norm(p)                                   higher
    grand              per batch: norm of the gradient of its mean loss             lower
    hidden_cos         cos of hidden states with those of the target-tuned model    higher
    cosine             mean over named tensors of cos(target's delta, source)       higher
    euclidean          sum over named tensors of norm(before - after a tune pass)   lower
    performance        dev score after the tune pass minus that before              higher
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from train.merge.blocks import blocks_of

SIGNS: Mapping[str, int] = {
    "loss": -1, "kl": -1, "el2n": -1, "logits_labels_cos": 1, "grand": -1,
    "hidden_cos": 1, "cosine": 1, "euclidean": -1, "performance": 1,
}  # fmt: skip
UNITS: Mapping[str, str] = {"loss": "nats", "kl": "nats"}
OVER_TOKENS = ("loss", "kl", "el2n", "logits_labels_cos")
IGNORED = -100


def token_sums(
    logits: torch.Tensor, labels: torch.Tensor, tuned: torch.Tensor | None = None
) -> dict[str, float]:
    """Method -> sum over the tokens of a batch.

    logits: n x classes or n x length x vocabulary; labels likewise without the last dimension. tuned: those
    of the target-tuned model, for kl.
    """
    counts = labels.flatten() != IGNORED
    y = labels.flatten()[counts]
    logs = logits.flatten(0, -2)[counts].double().log_softmax(-1)
    p = logs.exp()
    right = p.gather(1, y.unsqueeze(1)).squeeze(1)
    square = p.square().sum(1)
    found = {
        "loss": -logs.gather(1, y.unsqueeze(1)).sum(),
        # ||p - y||^2 = ||p||^2 - 2 p[y] + 1, which rounding may leave below 0
        "el2n": (square - 2 * right + 1).clamp(min=0).sqrt().sum(),
        "logits_labels_cos": (right / square.sqrt()).sum(),
    }
    if tuned is not None:
        target = tuned.flatten(0, -2)[counts].double().log_softmax(-1)
        # A class that both rule out, with a logit of -inf, adds nothing; -inf - -inf would be nan.
        apart = torch.where(target == -torch.inf, 0.0, target - logs)
        found["kl"] = (target.exp() * apart).sum()
    return {name: float(value) for name, value in found.items()}


def gradient_norms(gradients: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Block -> norm of the gradients of its tensors; `all`: of all."""
    squares: dict[str, float] = {"all": 0.0}
    for name, gradient in gradients.items():
        own = float(gradient.double().square().sum())
        for key in ("all", *blocks_of(name)):
            squares[key] = squares.get(key, 0.0) + own
    return {key: value**0.5 for key, value in squares.items()}


def cosine(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> float:
    """Mean over named tensors of the cosine of both, flattened."""
    found = [
        torch.nn.functional.cosine_similarity(
            target[key].double().flatten(), source[key].double().flatten(), dim=0
        )
        for key in sorted(target)
    ]
    return float(torch.stack(found).mean())


def euclidean(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> float:
    """Sum over named tensors of the distance a tune pass moved them."""
    return sum(float((before[k].double() - after[k].double()).norm()) for k in sorted(before))


def added(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums of batches, added up."""
    made: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            made[key] = made.get(key, 0.0) + value
    return made
