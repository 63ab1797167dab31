"""Bytes as a linear function of features, fitted to what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

Features = tuple[float, ...]


@dataclass(frozen=True)
class Fit:
    """A linear model of bytes and the box of features it has seen."""

    coefficients: tuple[float, ...]
    residual: float  # largest of measured minus predicted, bytes; 0 where none is above
    exact: bool  # the rows determine every coefficient
    low: Features
    high: Features

    def predict(self, features: Features) -> float:
        """Bytes, never below 0."""
        pairs = zip(self.coefficients, features, strict=True)
        return max(0.0, sum(c * f for c, f in pairs))

    def extrapolates(self, features: Features) -> bool:
        """Whether a feature lies outside of all that was measured."""
        box = zip(self.low, features, self.high, strict=True)
        return any(not low <= f <= high for low, f, high in box)


def fit(rows: Sequence[Features], measured: Sequence[float]) -> Fit:
    """Least squares with scaled columns; non-negative least squares where they leave a choice."""
    table, wanted = np.asarray(rows, float), np.asarray(measured, float)
    scale = np.abs(table).max(axis=0)
    scale[scale == 0] = 1.0
    exact = determined(rows)
    if exact:
        used = varying(table)
        found = np.zeros(table.shape[1])
        found[used] = np.linalg.lstsq(table[:, used] / scale[used], wanted, rcond=None)[0]
    else:
        found = nnls(table / scale, wanted)[0]
    coefficients = found / scale
    above = float((wanted - table @ coefficients).max(initial=0.0))
    return Fit(
        tuple(coefficients.tolist()),
        max(0.0, above),
        exact,
        tuple(table.min(axis=0).tolist()),
        tuple(table.max(axis=0).tolist()),
    )


def determined(rows: Sequence[Features]) -> bool:
    """Whether the rows determine a coefficient for each feature.

    A feature with the same value in all rows, such as a fixed number of rows in a batch, counts as
    part of the constant: another value of it is extrapolated.
    """
    if not rows:
        return False
    table = np.asarray(rows, float)
    used = table[:, varying(table)]
    scale = np.abs(used).max(axis=0)
    scale[scale == 0] = 1.0
    rank = int(np.linalg.matrix_rank(used / scale))
    return rank == len(scale) and rank >= 2


CONSTANT = 3  # index of the feature 1


def varying(table: np.ndarray) -> list[int]:
    """Columns that are not the same in all rows, and the constant."""
    return [i for i in range(table.shape[1]) if i == CONSTANT or np.ptp(table[:, i]) > 0]
