"""Metrics against hand arithmetic and against published matrices of O-LoRA's committed runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autocl_sweeper.metrics import (
    accuracy_matrix,
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
)

PUBLISHED = json.loads((Path(__file__).parents[1] / "golden/continual_metrics.json").read_text())


@pytest.mark.parametrize("run", PUBLISHED, ids=lambda run: run["source"].split("/")[3].split()[0])
def test_published_matrices_give_the_published_numbers(run):
    R = run["R_lower_triangular"]
    assert average_accuracy(R) == pytest.approx(run["average_accuracy"], abs=6e-5)
    assert backward_transfer(R) == pytest.approx(run["BWT"], abs=6e-5)
    assert forgetting(R) == pytest.approx(run["forgetting_max_minus_last"], abs=6e-5)


def test_a_matrix_small_enough_for_paper():
    # After a: a=0.8. After b: a=0.9, b=0.6. After c: a=0.5, b=0.7, c=1.0.
    R = accuracy_matrix(
        ["a", "b", "c"], [{"a": 0.8}, {"b": 0.6, "a": 0.9}, {"a": 0.5, "b": 0.7, "c": 1.0}]
    )
    assert R == [[0.8], [0.9, 0.6], [0.5, 0.7, 1.0]]
    assert average_accuracy(R) == pytest.approx((0.5 + 0.7 + 1.0) / 3)
    assert backward_transfer(R) == pytest.approx(((0.5 - 0.8) + (0.7 - 0.6)) / 2)
    # The best of a before the last step was 0.9; b improved, which counts as negative forgetting.
    assert forgetting(R) == pytest.approx(((0.9 - 0.5) + (0.6 - 0.7)) / 2)


def test_forward_transfer_is_the_gain_on_each_next_task_before_it_is_trained() -> None:
    # Before: b=0.5, c=0.4. After a: b=0.7. After b: c=0.3.
    R = [[0.8, 0.7, 0.2], [0.9, 0.6, 0.3], [0.5, 0.7, 1.0]]
    assert forward_transfer(R, [0.1, 0.5, 0.4]) == pytest.approx(((0.7 - 0.5) + (0.3 - 0.4)) / 2)
    with pytest.raises(ValueError, match="two tasks"):
        forward_transfer([[0.8]], [0.1])


@pytest.mark.parametrize("metric", [backward_transfer, forgetting])
def test_transfer_needs_two_tasks(metric):
    with pytest.raises(ValueError, match="two tasks"):
        metric([[0.5]])


def test_average_accuracy_needs_one_task():
    with pytest.raises(ValueError, match="at least one"):
        average_accuracy([])


def test_a_missing_score_is_named():
    with pytest.raises(KeyError, match="a"):
        accuracy_matrix(["a", "b"], [{"a": 1.0}, {"b": 1.0}])
