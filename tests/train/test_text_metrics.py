"""Exact match as O-LoRA's published code has it, against its golden cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from train.config.task import MetricSettings
from train.data.task_metrics import compute, exact_match, normalise

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/olora_text.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["normalise"], ids=lambda case: case["prediction"])
def test_answers_are_compared_as_the_published_code_compares_them(case: Any) -> None:
    assert normalise(case["prediction"]) == case["normalised_prediction"]
    assert normalise(case["reference"]) == case["normalised_reference"]
    assert exact_match(case["prediction"], case["reference"]) is case["exact_match"]


def test_an_empty_answer_does_not_match_a_label_of_punctuation_alone() -> None:
    assert not exact_match("", "-")
    assert not exact_match(" ", "...")
    assert exact_match("-", " - ")


def test_the_metric_counts_normalised_matches_and_accuracy_those_letter_by_letter() -> None:
    answers, truths = ["true.", "very  Positive", "no"], ["True", "very positive", "yes"]
    settings = MetricSettings("answer")
    assert compute("exact_match", settings, answers, truths) == {"exact_match": 2 / 3}
    assert compute("accuracy", settings, answers, truths) == {"acc": 0}
