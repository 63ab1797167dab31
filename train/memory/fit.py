"""Bytes as a linear function of features, fitted to what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import nnls

Features = tuple[float, ...]
ROWS = 64  # distinct feature rows a fit is made of, the last ones
CONSTANT = 3  # index of the feature 1
SAME = 1e-9  # relative difference of ratios that count as one


@dataclass(frozen=True)
class Fit:
    """A linear model of bytes and the box of features it has seen."""

    coefficients: tuple[float, ...]
    residual: float  # largest of measured minus predicted, bytes; 0 where none is above
    exact: bool  # the rows determine every coefficient
    low: Features
    high: Features
    ties: tuple[tuple[int, int, float], ...]  # i, j, ratio: feature j was ratio times feature i

    def predict(self, features: Features) -> float:
        """Bytes, never below 0."""
        pairs = zip(self.coefficients, features, strict=True)
        return max(0.0, sum(c * f for c, f in pairs))

    def extrapolates(self, features: Features) -> bool:
        """Whether a feature lies outside of all that was measured, or breaks a ratio that all had."""
        box = zip(self.low, features, self.high, strict=True)
        outside = any(not low <= f <= high for low, f, high in box)
        free = (abs(features[j] - r * features[i]) > SAME * features[j] for i, j, r in self.ties)
        return outside or any(free)


@dataclass
class Rows:
    """What was measured of one quantity, by features, oldest first; and its fit."""

    measured: dict[Features, float] = field(default_factory=dict)
    fitted: Fit | None = None

    def add(self, features: Features, value: float) -> None:
        self.measured.pop(features, None)  # a row seen again becomes the newest
        self.measured[features] = value
        if len(self.measured) > ROWS:
            del self.measured[next(iter(self.measured))]
        self.fitted = None

    @property
    def fit(self) -> Fit:
        if self.fitted is None:
            self.fitted = fit([*self.measured], [*self.measured.values()])
        return self.fitted


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
        tuple(ties(table)),
    )


def determined(rows: Sequence[Features]) -> bool:
    """Whether the rows determine a coefficient for each feature.

    A feature with the same value in all rows, such as a fixed number of rows in a batch, counts as
    part of the constant: another value of it is extrapolated. So is a feature that is always the same
    multiple of another, such as the tokens of answers of one length.
    """
    if not rows:
        return False
    table = np.asarray(rows, float)
    used = table[:, varying(table)]
    rank = int(np.linalg.matrix_rank(used / np.abs(used).max(axis=0)))
    return rank == used.shape[1] and rank >= 2


def varying(table: np.ndarray) -> list[int]:
    """Columns that are not the same in all rows nor a multiple of one before, and the constant."""
    tied = {j for _, j, _ in ties(table)}
    n = range(table.shape[1])
    return [i for i in n if i == CONSTANT or (np.ptp(table[:, i]) > 0 and i not in tied)]


def ties(table: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs of columns that vary with one ratio in all rows: first, later, later / first."""
    found: list[tuple[int, int, float]] = []
    for j in range(table.shape[1]):
        for i in range(j):
            if (
                np.ptp(table[:, i]) == 0
                or not table[:, i].all()
                or any(i == k for _, k, _ in found)
            ):
                continue
            ratios = table[:, j] / table[:, i]
            if np.ptp(ratios) <= SAME * abs(ratios).max():
                found.append((i, j, float(ratios[0])))
                break
    return found
