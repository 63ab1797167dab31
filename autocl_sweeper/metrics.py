"""The numbers of continual learning, from the accuracy matrix of one chain.

R[i][j] is the score on task j after training on task i, for j <= i; higher is better. The formulas
are those of GEM (arXiv 1706.08840, section 2) and, for forgetting, of Chaudhry et al.
(arXiv 1801.10112, section 3), as the O-LoRA paper reports them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Matrix = Sequence[Sequence[float]]


def accuracy_matrix(
    tasks: Sequence[str], chain: Sequence[Mapping[str, float]]
) -> list[list[float]]:
    """R of a chain whose i-th trial, trained on `tasks[i]`, has the scores `chain[i]` by task.

    Raises KeyError when a trial has no score for a task it has seen.
    """
    return [[scores[task] for task in tasks[: stage + 1]] for stage, scores in enumerate(chain)]


def average_accuracy(R: Matrix) -> float:
    """Mean over all tasks after the last one. Raises ValueError for an empty matrix."""
    if not R:
        raise ValueError("average accuracy needs at least one task")
    return sum(R[-1]) / len(R[-1])


def backward_transfer(R: Matrix) -> float:
    """Mean change on earlier tasks after the last one; negative means forgetting.

    Raises ValueError for fewer than two tasks.
    """
    earlier = _earlier(R)
    return sum(R[-1][j] - R[j][j] for j in earlier) / len(earlier)


def forgetting(R: Matrix) -> float:
    """Mean drop from the best score a task ever had before the last step to its last score.

    The maximum leaves out the last step, so it is negative when the last step improved a task.
    Raises ValueError for fewer than two tasks.
    """
    earlier = _earlier(R)
    last = len(R) - 1
    drops = (max(R[i][j] for i in range(j, last)) - R[last][j] for j in earlier)
    return sum(drops) / len(earlier)


def forward_transfer(R: Matrix, before: Sequence[float]) -> float:
    """Mean gain on each later task from the tasks before it, before it was trained on itself.

    Here R needs the next task's score as well: R[i][i + 1]. before[j]: score on task j of the model that
    the chain began with. GEM (arXiv 1706.08840), section 2. Raises ValueError for fewer than two tasks.
    """
    later = range(1, len(R))
    if not later:
        raise ValueError("transfer and forgetting need at least two tasks")
    return sum(R[j - 1][j] - before[j] for j in later) / len(later)


def _earlier(R: Matrix) -> range:
    if len(R) < 2:
        raise ValueError("transfer and forgetting need at least two tasks")
    return range(len(R) - 1)
