"""Merge rules: pure functions from the tensors of several deltas to those of one.

Every rule acts tensor by tensor, in float64, and returns new tensors of the first state's dtype. States map
names to tensors and have names and shapes in common (`refuse_different` checks it). A task vector is a delta minus
its initial state; for LoRA that is the delta weight (`train.merge.lora`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch

State: TypeAlias = Mapping[str, torch.Tensor]
Merged: TypeAlias = dict[str, torch.Tensor]
Majority = Literal["total", "frequency"]
Tensors: TypeAlias = Sequence[torch.Tensor]

PARALLEL = 1e-6  # radians; below it slerp is linear


class MergeError(ValueError):
    """Deltas that cannot be merged, or a weight that means nothing; the message names both sides."""


def refuse_different(states: Sequence[State], names: Sequence[str]) -> None:
    """Raises MergeError, which has their names, where states differ in tensors, shapes or dtypes."""
    first = states[0]
    for name, state in zip(names, states, strict=True):
        if lacking := sorted(first.keys() - state.keys()):
            raise MergeError(f"'{name}' lacks the tensor '{lacking[0]}' that '{names[0]}' has")
        if extra := sorted(state.keys() - first.keys()):
            raise MergeError(f"'{name}' has the tensor '{extra[0]}' that '{names[0]}' lacks")
        for key, value in state.items():
            for what, own, other in (
                ("shape", tuple(value.shape), tuple(first[key].shape)),
                ("dtype", value.dtype, first[key].dtype),
            ):
                if own != other:
                    raise MergeError(
                        f"tensor '{key}': '{name}' has {what} {own}, '{names[0]}' has {other}"
                    )


def refuse_weights(weights: Sequence[float]) -> None:
    """Raises MergeError for a weight that is not finite."""
    if wrong := [w for w in weights if not math.isfinite(w)]:
        raise MergeError(f"weights={list(weights)}: {wrong[0]} is not a finite number")


def _by_tensor(states: Sequence[State], rule: Callable[[str, Tensors], torch.Tensor]) -> Merged:
    """`rule` on the name of each tensor and what the states have there."""
    return {
        key: rule(key, [state[key].double() for state in states]).to(like.dtype)
        for key, like in states[0].items()
    }


def weighted_sum(parts: Tensors, weights: Sequence[float]) -> torch.Tensor:
    return torch.stack([w * p for w, p in zip(weights, parts, strict=True)]).sum(0)


def linear(states: Sequence[State], weights: Sequence[float]) -> Merged:
    """sum_j w_j theta_j. The weights need not sum to 1: on task vectors this is task arithmetic."""
    return _by_tensor(states, lambda _, parts: weighted_sum(parts, weights))


def _refuse_density(density: float) -> None:
    if not 0 < density <= 1:
        raise MergeError(f"density={density}: must be above 0 and at most 1")


def trimmed(values: torch.Tensor, density: float) -> torch.Tensor:
    """`values` with all but the floor(density * n) entries of largest size set to 0.

    Of equally large entries the first ones stay.
    """
    _refuse_density(density)
    flat = values.flatten()
    # 0.29 * 100 is 28.999999999999996 in floating point, and 29 entries are meant.
    kept = math.floor(density * len(flat) + 1e-9)
    chosen = flat.abs().argsort(descending=True, stable=True)[:kept]
    made = torch.zeros_like(flat)
    made[chosen] = flat[chosen]
    return made.reshape(values.shape)


def magnitude_prune(
    states: Sequence[State], weights: Sequence[float], density: float = 1.0
) -> Merged:
    """Weighted sum of the trimmed task vectors."""
    return _by_tensor(
        states, lambda _, parts: weighted_sum([trimmed(p, density) for p in parts], weights)
    )


def ties(
    states: Sequence[State],
    weights: Sequence[float],
    density: float = 1.0,
    majority: Majority = "total",
) -> Merged:
    """TIES (arXiv 2306.01708): trim, elect a sign per entry, add up what agrees with it.

    The sign is + where sum_j t_j >= 0 (`total`) or sum_j sign(t_j) >= 0 (`frequency`); weights play no part
    there. The sum over agreeing j of w_j t_j is divided by the number of those that agree: weights of 1 give
    their mean.
    """
    return _by_tensor(
        states, lambda _, parts: _elected([trimmed(p, density) for p in parts], weights, majority)
    )


def _elected(parts: Tensors, weights: Sequence[float], majority: Majority) -> torch.Tensor:
    stacked = torch.stack(list(parts))
    votes = stacked if majority == "total" else stacked.sign()
    sign = torch.where(votes.sum(0) >= 0, 1.0, -1.0)
    agree = stacked.sign() == sign
    count = agree.sum(0).clamp(min=1)
    return weighted_sum([p * a for p, a in zip(stacked, agree, strict=True)], weights) / count


def keep_mask(state: State, density: float, seed: int) -> Merged:
    """A mask per tensor, 1 with probability `density`, else 0; the same for the same seed."""
    _refuse_density(density)
    generator = torch.Generator().manual_seed(seed)
    draws = {
        key: torch.rand(state[key].shape, generator=generator, dtype=torch.float64)
        for key in sorted(state)
    }
    return {key: (draw < density).double() for key, draw in draws.items()}


def dare(
    states: Sequence[State],
    weights: Sequence[float],
    density: float,
    masks: Sequence[State],
    majority: Majority | None = None,
) -> Merged:
    """DARE (arXiv 2311.03099): what the masks keep, divided by `density`.

    It is added up (`dare_linear`) or, with a `majority`, merged by TIES' election. masks: one per state, of
    `keep_mask` or given.
    """

    def rule(key: str, parts: Tensors) -> torch.Tensor:
        kept = [p * mask[key] / density for p, mask in zip(parts, masks, strict=True)]
        if majority is None:
            return weighted_sum(kept, weights)
        return _elected(kept, weights, majority)

    return _by_tensor(states, rule)


def slerp(states: Sequence[State], steps: Sequence[float]) -> Merged:
    """The point at t = `steps[0]` on the arc from the first state to the second, tensor by tensor.

    Norms stay as they are: sin((1-t)o)/sin(o) a + sin(t o)/sin(o) b, o = angle between a and b; linear where
    o < 1e-6, and where the two are opposite, which has no shortest arc. More than two: the result so far with
    the next, in the order given, with the next step.
    """

    def rule(_: str, parts: Tensors) -> torch.Tensor:
        so_far = parts[0]
        for part, step in zip(parts[1:], steps, strict=True):
            so_far = _on_arc(so_far, part, step)
        return so_far

    return _by_tensor(states, rule)


def _on_arc(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    norms = a.norm() * b.norm()
    if not norms > 0:
        return (1 - t) * a + t * b
    angle = math.acos(max(-1.0, min(1.0, float((a * b).sum() / norms))))
    if angle < PARALLEL or math.pi - angle < PARALLEL:
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def shares_to_steps(weights: Sequence[float]) -> list[float]:
    """The steps of a slerp such that small angles give each state its share of the weights."""
    total, steps = weights[0], []
    for weight in weights[1:]:
        total += weight
        if not total > 0 or min(weights) < 0:
            raise MergeError(f"weights={list(weights)}: slerp needs weights of 0 or more")
        steps.append(weight / total)
    return steps


def model_stock(states: Sequence[State], clamp: bool = True) -> Merged:
    """Model Stock (arXiv 2403.19522) on task vectors: t * mean, t = N c / (1 + (N-1) c).

    c: mean cosine of all pairs, per tensor. clamp: keep t within [0, 1], with a warning where it is not.
    """

    def rule(key: str, parts: Tensors) -> torch.Tensor:
        stacked = torch.stack([*parts])
        t = interpolation(stacked.reshape(len(stacked), -1))
        if clamp and not 0 <= t <= 1:
            warnings.warn(
                f"tensor '{key}': Model Stock's t is {t:.4g}, outside [0, 1]: the sources point away from "
                "each other; it is cut to the nearest bound (clamp=false keeps it)",
                stacklevel=4,
            )
            t = max(0.0, min(1.0, t))
        return t * stacked.mean(0)

    return _by_tensor(states, rule)


def interpolation(vectors: torch.Tensor) -> float:
    """Model Stock's t of n vectors; 1 for one."""
    n = len(vectors)
    if n == 1:
        return 1.0
    unit = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-300)
    cosines = unit @ unit.T
    # Rounding may leave it above 1, and t with it.
    c = min(1.0, float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1))))
    below = 1 + (n - 1) * c
    if below <= 0:
        raise MergeError(f"Model Stock has no t for a mean cosine of {c:.4g} of {n} sources")
    return n * c / below


def regmean(
    layers: Sequence[torch.Tensor], grams: Sequence[torch.Tensor], scale: float = 1.0
) -> torch.Tensor:
    """RegMean (arXiv 2212.09849): one linear layer, d_out x d_in, that answers as each does on its inputs.

    W^T = (sum_j G_j)^-1 sum_j G_j W_j^T. grams: G = X^T X of each layer's inputs, d_in x d_in; their
    off-diagonals are multiplied by `scale` (0.9 is usual). Raises MergeError where the sum is singular.
    """
    first = layers[0]
    if len(layers) == 1:
        return first.clone()
    shaped = []
    for gram in grams:
        own = gram.double()
        shaped.append(own * scale + torch.diag(own.diagonal()) * (1 - scale))
    total = torch.stack(shaped).sum(0)
    right = torch.stack([g @ w.double().T for g, w in zip(shaped, layers, strict=True)]).sum(0)
    if int(torch.linalg.matrix_rank(total, hermitian=True)) < len(total):
        raise MergeError(
            f"RegMean: the sum of the {len(grams)} Gram matrices is singular: too few inputs for "
            f"{len(total)} dimensions. Give more rows, or scale=0.9"
        )
    solved: torch.Tensor = torch.linalg.solve(total, right)
    return solved.T.contiguous().to(first.dtype)


def lorahub_objective(loss: float, weights: Sequence[float], alpha: float = 0.05) -> float:
    """LoraHub's objective (arXiv 2307.13269): few-shot loss + alpha * mean |w_j|."""
    return loss + alpha * sum(abs(w) for w in weights) / len(weights)
