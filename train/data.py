"""The digits of scikit-learn as tasks, divided into train, dev and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from train.settings import CLASSES, EvaluationSettings, Task

IMAGE_SIZE = 8


class DataOverlap(RuntimeError):
    """The same image is in two of train, dev and test."""


@dataclass(frozen=True)
class Split:
    """Row numbers into the digits; no row, and no copy of an image, is in two of the parts."""

    train: NDArray[np.int64]
    dev: NDArray[np.int64]
    test: NDArray[np.int64]

    def __post_init__(self) -> None:
        images, _ = digits()
        parts = {"train": self.train, "dev": self.dev, "test": self.test}
        seen: dict[bytes, str] = {}
        for name, rows in parts.items():
            for row in rows:
                where = seen.setdefault(images[row].tobytes(), name)
                if where != name:
                    raise DataOverlap(
                        f"image {row} of the digits is in '{where}' and in '{name}': training, "
                        "selection and the final test must not share images"
                    )


class Examples(torch.utils.data.Dataset[Mapping[str, torch.Tensor]]):
    """Images of one task; each comes with its options, the digits it may be."""

    def __init__(self, task: Task, rows: NDArray[np.int64]) -> None:
        images, labels = digits()
        self.images = torch.from_numpy(images[rows][:, None])  # n x channel x height x width
        self.labels = torch.from_numpy(labels[rows])
        self.options = torch.zeros(CLASSES, dtype=torch.bool)
        self.options[list(task.options)] = True

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Mapping[str, torch.Tensor]:
        return {"pixel_values": self.images[i], "options": self.options, "labels": self.labels[i]}


def collate(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


@cache
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All 1797 images (n x 8 x 8, in [-1, 1]) and their labels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 8 - 1).astype(np.float32).reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
    return images, labels.astype(np.int64)


def split(task: Task, settings: EvaluationSettings) -> Split:
    """Every digit is divided by itself, so the parts are stratified, and an image stays in its part
    whichever tasks its digit occurs in."""
    _, labels = digits()
    parts: dict[str, list[NDArray[np.int64]]] = {"train": [], "dev": [], "test": []}
    for digit in task.options:
        rows = np.flatnonzero(labels == digit)
        rows = np.random.default_rng([settings.split_seed, digit]).permutation(rows)
        dev_end = round(len(rows) * settings.dev_share)
        test_end = dev_end + round(len(rows) * settings.test_share)
        for name, part in zip(
            ("dev", "test", "train"), np.split(rows, [dev_end, test_end]), strict=True
        ):
            parts[name].append(part)
    return Split(**{name: np.concatenate(rows) for name, rows in parts.items()})
