"""Weights of sources: softmax of their scores at a temperature, averages and hand-made groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from train.merge.rules import MergeError


def softmax(scores: Mapping[str, float], sign: int, temperature: float) -> dict[str, float]:
    """Source -> exp(sign * score / T), normalised to the sum 1.

    Raises MergeError for a score that is not finite, which names its source.
    """
    refuse_scores(scores)
    best = max(sign * s for s in scores.values())
    raised = {name: math.exp((sign * s - best) / temperature) for name, s in scores.items()}
    total = math.fsum(raised.values())
    return {name: value / total for name, value in raised.items()}


def refuse_scores(scores: Mapping[str, float]) -> None:
    if not scores:
        raise MergeError("there are no scores: no source is left")
    if wrong := [name for name, s in scores.items() if not math.isfinite(s)]:
        raise MergeError(
            f"the score of source '{wrong[0]}' is {scores[wrong[0]]}, no finite number"
        )


def ess(weights: Sequence[float]) -> float:
    """Effective number of sources: 1 / sum w^2, of weights that sum to 1; scaled so for others."""
    squares = math.fsum(w * w for w in weights)
    return math.fsum(weights) ** 2 / squares if squares > 0 else 0.0


def temperature_for(scores: Mapping[str, float], sign: int, wanted: float) -> float:
    """The temperature at which the weights have this ESS, by bisection: ESS rises with it.

    Raises MergeError unless `wanted` lies between the number of sources with the best score and all.
    """
    refuse_scores(scores)
    best = max(sign * s for s in scores.values())
    ties = sum(sign * s == best for s in scores.values())
    if not ties <= wanted <= len(scores):
        raise MergeError(
            f"target_ess={wanted:g}: with {len(scores)} sources, {ties} of them with the best score, it "
            f"must be from {ties} to {len(scores)}"
        )
    spread = max(abs(best - sign * s) for s in scores.values()) or 1.0
    low, high = spread * 1e-6, spread * 1e9
    for _ in range(200):
        middle = math.sqrt(low * high)
        if ess([*softmax(scores, sign, middle).values()]) < wanted:
            low = middle
        else:
            high = middle
    return high


def average(names: Sequence[str]) -> dict[str, float]:
    """The same weight for all, of sum 1."""
    return {name: 1 / len(names) for name in names}


def manual(
    names: Sequence[str], target: str, groups: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """The average within the target's group; 0 for the others. Raises MergeError."""
    own = [group for group, members in groups.items() if target in members]
    if len(own) != 1:
        told = ", ".join(groups) or "none"
        raise MergeError(
            f"the target '{target}' is in {len(own)} of the groups merge.groups has ({told}): "
            "manual needs exactly one"
        )
    used = average([name for name in names if name in groups[own[0]]])
    if not used:
        raise MergeError(
            f"group '{own[0]}' of the target '{target}' has no source but the target's own. Its tasks: "
            f"{', '.join(groups[own[0]])}; the sources: {', '.join(names)}"
        )
    return {name: used.get(name, 0.0) for name in names}


def best_single(scores: Mapping[str, float], sign: int) -> dict[str, float]:
    """Weight 1 on the best source; of equally good ones the first."""
    refuse_scores(scores)
    best = max(scores, key=lambda name: sign * scores[name])
    return {name: float(name == best) for name in scores}
