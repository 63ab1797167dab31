"""The nine problems' functions and protocol, against published optima and hand arithmetic."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from support.installed import ROOT


@pytest.fixture(scope="module")
def bench():
    file = ROOT / "benchmarks/search/problems.py"
    spec = importlib.util.spec_from_file_location("nine_problems", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    path = [*sys.path]
    spec.loader.exec_module(module)
    sys.path[:] = path
    yield module
    del sys.modules[spec.name]


S = np.array([0.3, -0.2])
# Surjanovic and Bingham's library of test functions has these minima.
MINIMA = [
    ("sphere", S, 0.0),
    ("rastrigin", S, 0.0),
    ("ackley", S, 0.0),
    ("rosen", [0.5, 0.5, 0.5], 0.0),
    ("branin", [(-np.pi + 5) / 7.5 - 1, 12.275 / 7.5 - 1], 0.397887),
    ("branin", [(np.pi + 5) / 7.5 - 1, 2.275 / 7.5 - 1], 0.397887),
    ("branin", [(9.42478 + 5) / 7.5 - 1, 2.475 / 7.5 - 1], 0.397887),
    (
        "hartmann",
        2 * np.array([0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573]) - 1,
        -3.32237,
    ),
]


@pytest.mark.parametrize(("name", "x", "value"), MINIMA)
def test_a_function_has_its_published_minimum_where_it_is_published(bench, name, x, value):
    assert getattr(bench, name)(np.array(x), S) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "n", "median"),
    [("rosen", 3, 630.911717), ("branin", 2, 34.655743), ("hartmann", 6, -0.101712)],
)
def test_a_median_random_point_has_the_value_that_counts_as_1(bench, name, n, median):
    points = np.random.RandomState(0).uniform(-1, 1, (8000, n))
    values = [getattr(bench, name)(x, None) for x in points]
    assert np.median(values) == pytest.approx(median, abs=2e-6)


def test_regret_follows_the_first_best_point_and_is_1_at_a_random_one(bench):
    problem = bench.Problem("line", 1, lambda x, s: float(x[0]), best=-1.0, random=0.0)
    instance = bench.Instance(problem, seed=0)
    seen = [instance.evaluate([u]) for u in (0.0, 0.5, -0.5, -7.0)]  # the last one is clipped
    assert seen == [0.0, 0.5, -0.5, -1.0]
    assert instance.regrets == [1.0, 1.0, 0.5, 0.0]


def test_noise_decides_who_is_the_incumbent_and_not_how_it_is_scored(bench):
    # The deviations of the first draws of RandomState(5000), which decide which of two is seen better.
    draws = np.random.RandomState(5000).randn(2)
    table = bench.Table(lambda u: 0.5, lambda u: 0.1, (0.0,), 0.0, 1.0)
    values = {0.0: 0.4, 1.0: 0.5}  # without noise the first point is better
    problem = bench.Problem("noisy", 1, lambda x, s: values[float(x[0])], 0.0, 1.0, table=table)
    instance = bench.Instance(problem, seed=0)
    seen = [instance.evaluate([u]) for u in (0.0, 1.0)]
    assert seen == pytest.approx([0.4 - 0.1 * draws[0], 0.5 - 0.1 * draws[1]])
    assert instance.regrets == [0.4, 0.4 if seen[0] <= seen[1] else 0.5]


def test_the_summary_is_the_geometric_mean_of_medians_with_a_floor(bench):
    # Medians .04, .01 and 0, which counts as 1e-4: (4e-2 * 1e-2 * 1e-4) ** (1/3)
    regrets = np.array([[0.01, 0.04, 0.9], [0.01, 0.01, 0.01], [0.0, 0.0, 1.0]])
    mean, low, high = bench.summary(regrets)
    assert mean == pytest.approx((0.04 * 0.01 * 1e-4) ** (1 / 3))
    assert low < mean < high


def test_all_particles_of_the_released_pshe2_move_with_one_velocity(bench):
    swarm = bench.ReleasedPSHE2((0.1, -0.1), 3, seed=0)
    draws = np.random.RandomState(0)
    r = draws.uniform(-1, 1, (3, 2))
    x = np.array([[0.1, -0.1]] * 3)
    x = x + r * np.where(r >= 0, 1 - x, 1 + x)
    assert np.allclose(swarm.ask(), x)
    swarm.tell(x, [1.0, 0.0, 2.0])
    # a = 1 - 1.5 / 1; a^3 = -1/8; G of the last particle: twice on its own best point, less the swarm's.
    velocity = -(1 / 3) * (1 + 1 / 8) * (x[2] - x[1])
    moved = x + 0.5 * velocity
    r = draws.uniform(-1, 1, (3, 2))
    assert np.allclose(swarm.ask(), moved + 0.2 * r * np.where(r >= 0, 1 - moved, 1 + moved))
