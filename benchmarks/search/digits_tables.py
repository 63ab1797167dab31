"""Accuracy of a small network on scikit-learn's digits by its hyper-parameters: tables of real fits.

Three landscapes on the cube [-1, 1]^n: learning rate and weight decay, both logarithmic; the same on
linear axes; and with the batch size and beta_1 besides. Computed once and kept in a folder.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILE = "digits.npz"
TRAINED = 500  # rows; the other 1297 validate
LR, ALPHA = (-5.0, 0.0), (-6.0, 1.0)  # decimal logarithms
BATCH, BETA = (8, 128), (0.5, 0.99)
GRID2, GRID4 = (21, 13), (26, 9, 6, 5)
FITS4 = 1200
DIVERGED = 0.1


@dataclass(frozen=True)
class Table:
    """A landscape: accuracy without noise and the noise's deviation, both at a point of the cube."""

    accuracy: Callable[[Any], float]
    deviation: Callable[[Any], float]
    init: tuple[float, ...]
    best: float  # 1 - accuracy of the best point
    random: float  # that of a median random point


def tables_in(folder: Path) -> tuple[Table, Table, Table]:
    """Digits with two hyper-parameters on logarithmic and on linear axes, and with four."""
    file = folder / FILE
    if not file.exists():
        fitted = {"two": _fits2(), "four": _surface4()}
        np.savez(file.with_suffix(".new.npz"), **fitted)
        file.with_suffix(".new.npz").replace(file)
    with np.load(file) as kept:
        two, four = kept["two"], kept["four"]
    log2, lin2 = _tables2(two)
    return log2, lin2, _table4(four)


def _data() -> tuple[Any, Any, Any, Any]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    x, y = digits.data[order] / 16, digits.target[order]
    return x[:TRAINED], y[:TRAINED], x[TRAINED:], y[TRAINED:]


def _fit(data: tuple[Any, Any, Any, Any], lr: float, alpha: float, **others: Any) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x, y, x_dev, y_dev = data
    settings = {"batch_size": 32, "beta_1": 0.9, **others}
    network = MLPClassifier(
        (32,),
        solver="adam",
        learning_rate_init=lr,
        alpha=alpha,
        max_iter=8,
        n_iter_no_change=100,
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # overflow, where it diverges
        try:
            return float(network.fit(x, y).score(x_dev, y_dev))
        except ValueError:
            return DIVERGED


def _fits2() -> Any:
    """Accuracies, learning rate x weight decay x seed."""
    data = _data()
    return np.array(
        [
            [
                [_fit(data, 10**lr, 10**alpha, random_state=k) for k in range(3)]
                for alpha in _axis(ALPHA, 13)
            ]
            for lr in _axis(LR, 21)
        ]
    )


def _axis(ends: tuple[float, float], count: int) -> Any:
    return np.linspace(*ends, count)


def _surface4() -> Any:
    """A smooth accuracy on a grid of the unit cube, learned from real fits."""
    from scipy.ndimage import gaussian_filter
    from sklearn.ensemble import ExtraTreesRegressor

    data, rng = _data(), np.random.RandomState(1)
    drawn, reached = [], []
    for index in range(FITS4):
        lr, alpha = rng.uniform(*LR), rng.uniform(*ALPHA)
        batch, beta = rng.randint(BATCH[0], BATCH[1] + 1), rng.uniform(*BETA)
        others = {"batch_size": int(batch), "beta_1": beta, "random_state": index}
        reached.append(_fit(data, 10**lr, 10**alpha, **others))
        scaled = [(lr, LR), (alpha, ALPHA), (batch, BATCH), (beta, BETA)]
        drawn.append([(value - low) / (high - low) for value, (low, high) in scaled])
    trees = ExtraTreesRegressor(300, min_samples_leaf=2, random_state=0).fit(drawn, reached)
    axes = [np.linspace(0, 1, count) for count in GRID4]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    grid = trees.predict(points.reshape(-1, len(GRID4))).reshape(GRID4)
    return gaussian_filter(grid, sigma=0.7, mode="nearest")


def _tables2(fits: Any) -> tuple[Table, Table]:
    from scipy.interpolate import RegularGridInterpolator
    from scipy.ndimage import gaussian_filter

    mean = fits.mean(axis=2)
    smooth = gaussian_filter(fits.std(axis=2, ddof=1), sigma=1) + 0.003
    spread = np.minimum(smooth, 0.006 + 0.15 * np.clip(0.93 - mean, 0, 1))
    axes = (_axis(LR, GRID2[0]), _axis(ALPHA, GRID2[1]))
    accuracy, deviation = (RegularGridInterpolator(axes, values) for values in (mean, spread))

    def log(u: Any) -> Any:
        v = (np.asarray(u) + 1) / 2
        return LR[0] + 5 * v[..., 0], ALPHA[0] + 7 * v[..., 1]

    def lin(u: Any) -> Any:
        v = (np.asarray(u) + 1) / 2
        ends = [(10.0 ** axis[0], 10.0 ** axis[1]) for axis in (LR, ALPHA)]
        return tuple(np.log10(a + v[..., i] * (b - a)) for i, (a, b) in enumerate(ends))

    def at(grid: Any, places: Callable[[Any], Any], u: Any) -> Any:
        return grid(np.clip(np.stack(places(u), axis=-1), [LR[0], ALPHA[0]], [LR[1], ALPHA[1]]))

    best = 1 - float(mean.max())
    points = np.random.RandomState(0).uniform(-1, 1, (30000, 2))
    random = float(np.median(1 - at(accuracy, log, points)))
    tables = []
    for places, init in (
        (log, _places((-3, LR), (-4, ALPHA))),
        (lin, _places((1e-3, (1e-5, 1.0)), (1e-4, (1e-6, 10.0)))),
    ):
        tables.append(
            Table(
                lambda u, p=places: at(accuracy, p, u).item(),
                lambda u, p=places: at(deviation, p, u).item(),
                init,
                best,
                random,
            )
        )
    return tables[0], tables[1]


def _places(*values: tuple[float, Sequence[float]]) -> tuple[float, ...]:
    return tuple(2 * (value - low) / (high - low) - 1 for value, (low, high) in values)


def _table4(grid: Any) -> Table:
    from scipy.interpolate import RegularGridInterpolator

    smooth = RegularGridInterpolator([np.linspace(0, 1, count) for count in GRID4], grid)

    def accuracies(u: Any) -> Any:
        v = np.array((np.asarray(u) + 1) / 2)
        v[..., 2] = np.floor(120.999 * v[..., 2]) / 120  # whole examples
        return smooth(np.clip(v, 0, 1))

    def accuracy(u: Any) -> float:
        return float(accuracies(u).item())

    points = np.random.RandomState(0).uniform(-1, 1, (30000, 4))
    return Table(
        accuracy,
        lambda u: 0.008 if accuracy(u) > 0.8 else 0.03,
        _places((-3, LR), (math.log10(1e-4), ALPHA), (32, BATCH), (0.9, BETA)),
        1 - float(grid.max()),
        float(np.median(1 - accuracies(points))),
    )
