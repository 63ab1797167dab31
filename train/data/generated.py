"""Rows of classes of tasks that bring their own: taken from scikit-learn, or made by rule at run time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from train.data.tables import Row


@cache
def digits() -> tuple[Any, Any]:
    """All 1797 images (n x 8 x 8, float32 in [-1, 1]) and their labels (int64)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 8 - 1).astype(np.float32).reshape(-1, 8, 8)
    return images, labels.astype(np.int64)


def _digit_rows(labels: Sequence[str]) -> list[Row]:
    images, truth = digits()
    pairs = zip(images, map(str, truth), strict=True)
    return [{"image": image, "label": label} for image, label in pairs if label in labels]


WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WORDS += ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"]


def _arithmetic_rows(labels: Sequence[str]) -> list[Row]:
    """Sums and differences of numbers up to nine whose result is a label."""
    rows: list[Row] = []
    for a, word, b in itertools.product(range(10), ("plus", "minus"), range(10)):
        result = a + b if word == "plus" else a - b
        if result >= 0 and (not labels or WORDS[result] in labels):
            question = f"{WORDS[a]} {word} {WORDS[b]}"
            rows.append({"question": question, "answer": WORDS[result]})
    return rows


def _parity_rows(labels: Sequence[str]) -> list[Row]:
    """Sequences of three to eight bits in words: is the number of ones even or odd?"""
    return [
        {"bits": " ".join(WORDS[bit] for bit in bits), "answer": "odd" if sum(bits) % 2 else "even"}
        for length in range(3, 9)
        for bits in itertools.product((0, 1), repeat=length)
    ]


def _sentiment_rows(labels: Sequence[str]) -> list[Row]:
    """Short reviews whose judgement is an adjective, turned round by 'not'."""
    things = ("film", "book", "song", "play", "meal", "show", "game", "story")
    openings = ("the {} was", "i found the {}", "we all thought the {} was", "that {} is")
    degrees = ("", "very ", "not ", "really ", "not very ")
    good = ("good", "lovely", "clever", "funny", "brilliant")
    bad = ("bad", "awful", "boring", "weak", "terrible")
    return [
        {
            "review": f"{opening.format(thing)} {degree}{word}",
            "label": "positive" if (word in good) != degree.startswith("not") else "negative",
        }
        for thing, opening, degree, word in itertools.product(things, openings, degrees, good + bad)
    ]


MAKERS: Mapping[str, Callable[[Sequence[str]], list[Row]]] = {
    "arithmetic": _arithmetic_rows,
    "digits": _digit_rows,
    "parity": _parity_rows,
    "sentiment": _sentiment_rows,
}
