"""HAZero, PSHE2 and CMA-ES alone in their cube: hand arithmetic and the libraries are the oracle."""

from __future__ import annotations

import logging
import warnings

import cmaes
import numpy as np
import pytest

from autocl_sweeper.search.cmaes import CMAES
from autocl_sweeper.search.hazero import HAZero
from autocl_sweeper.search.pshe2 import PSHE2

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Could not import matplotlib")
    import cma


def bowl(x):
    return sum((u - 0.3) ** 2 for u in x)


def told(population, rounds, loss=bowl):
    """Every point of so many rounds."""
    points = []
    for _ in range(rounds):
        asked = population.ask()
        population.tell(asked, [loss(x) for x in asked])
        points += asked
    return points


# -- all three ------------------------------------------------------------------------------------

ALL = [HAZero, PSHE2, CMAES]


@pytest.mark.parametrize("make", ALL)
def test_a_population_begins_at_its_centre_and_finds_the_bottom_of_a_bowl(make):
    population = make((-0.5, 0.9, 0.0), 6, seed=1)
    points = told(population, 40)
    assert points[0] == (-0.5, 0.9, 0.0)
    assert min(map(bowl, points)) < 0.01 < bowl(points[0])


@pytest.mark.parametrize("make", ALL)
def test_a_population_that_does_not_begin_at_its_centre_never_tries_it(make):
    points = told(make((0.5, 0.5), 6, seed=1, begin=False), 3)
    assert (0.5, 0.5) not in points


@pytest.mark.parametrize("make", ALL)
def test_no_population_touches_the_generator_of_numpy(make):
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    told(make((0.0, 0.0), 5, seed=1), 3)
    assert np.random.rand() == expected


@pytest.mark.parametrize("make", ALL)
def test_a_round_without_a_loss_changes_nothing_but_the_draw(make, caplog):
    """The points after it have the distribution of those before: the same mean, over many seeds."""
    caplog.set_level(logging.INFO)
    first, second = [], []
    for seed in range(200):
        population = make((0.5, -0.5), 6, seed=seed)
        first += population.ask()[1:]
        population.tell([(0.0, 0.0)] * 6, [None] * 6)
        second += population.ask()
    assert "has a loss" in caplog.text
    assert first[0] != second[0]
    # 1000 and 1200 points of standard deviation below 0.6: means within 5 of their errors.
    assert np.allclose(np.mean(first, axis=0), np.mean(second, axis=0), atol=5 * 0.6 * 0.043)
    assert np.allclose(np.std(first, axis=0), np.std(second, axis=0), atol=0.05)


# -- HAZero ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("popsize", [5, 10])
@pytest.mark.parametrize("n", [2, 6])
def test_hazero_is_cma_with_its_three_options(popsize, n):
    centre = [0.6, -0.3, 0.0, 0.1, -0.9, 0.2][:n]
    options = {"popsize": popsize, "bounds": [-1, 1], "AdaptSigma": True, "seed": 4}
    strategy = cma.CMAEvolutionStrategy(centre, 0.2, {**options, "verbose": -9})
    strategy.inject([centre])
    ours = HAZero(centre, popsize, seed=4)
    for _ in range(25):
        expected = strategy.ask()
        points = ours.ask()
        assert np.array_equal(np.array(points), np.array(expected))
        strategy.tell(expected, [bowl(x) for x in expected])
        ours.tell(points, [bowl(x) for x in points])


def test_a_centre_on_the_bounds_is_tried_as_it_is():
    # `cma` smooths its bounds, so that a plain injection of 1 would try 0.9875.
    assert HAZero((1.0, -1.0), 5, seed=0).ask()[0] == (1.0, -1.0)


def test_equal_losses_end_no_search_and_are_logged(caplog):
    caplog.set_level(logging.INFO)
    population = HAZero((0.0, 0.0), 5, seed=0, restart=False)
    told(population, 50, loss=lambda x: 0.5)
    assert population.ask() is not None
    assert caplog.text.count("all losses of round") == 50
    # The same without our options: `cma` stops after the first round.
    strategy = cma.CMAEvolutionStrategy([0, 0], 0.2, {"popsize": 5, "seed": 1, "verbose": -9})
    strategy.tell(strategy.ask(), [0.5] * 5)
    assert "tolfun" in strategy.stop()


def test_a_reason_to_stop_is_logged_and_the_search_begins_again_at_its_best_point(caplog):
    caplog.set_level(logging.INFO)
    population = HAZero((0.9, -0.9), 10, seed=0)
    before: list = []
    while "begins again" not in caplog.text:
        before += told(population, 1)
        assert len(before) < 3000
    assert "tolx" in caplog.text
    best = min(before, key=bowl)
    after = population.ask()
    assert np.allclose(np.mean(after, axis=0), best, atol=0.2)  # 0.2 / sqrt(10), three times
    assert np.std(after, axis=0).min() > 0.05  # sigma is 0.2 again; it was below 1e-10


def test_with_on_stop_end_the_search_ends_with_its_reason(caplog):
    caplog.set_level(logging.INFO)
    population = HAZero((0.9, -0.9), 10, seed=0, restart=False)
    rounds = 0
    while (points := population.ask()) is not None:
        population.tell(points, [bowl(x) for x in points])
        rounds += 1
        assert rounds < 300
    assert f"it ends after round {rounds}: " in caplog.text and "tolx" in caplog.text


@pytest.mark.parametrize("make", [HAZero, CMAES])
def test_a_failed_trial_ranks_behind_all_others_whatever_their_losses(make):
    """Failures are told as the library is told infinity: like a loss above all others."""
    failing, high = make((0.1, 0.2), 6, seed=2), make((0.1, 0.2), 6, seed=2)
    for _ in range(10):
        points = failing.ask()
        assert points == high.ask()
        losses = [1e3 + bowl(x) for x in points]
        failing.tell(points, [None, *losses[1:]])
        high.tell(points, [1e6, *losses[1:]])


# -- CMA-ES ---------------------------------------------------------------------------------------


def test_cmaes_is_the_library_generation_by_generation():
    bounds = np.array([[-1.0, 1.0]] * 3)
    mean = np.array([0.4, -0.2, 0.7])
    expected = cmaes.CMA(mean, 0.2, bounds, seed=9, population_size=7)
    ours = CMAES((0.4, -0.2, 0.7), 7, seed=9, begin=False)
    for _ in range(20):
        points = [expected.ask() for _ in range(7)]
        asked = ours.ask()
        assert np.array_equal(np.array(asked), np.array(points))
        expected.tell([(x, bowl(x)) for x in points])
        ours.tell(asked, [bowl(x) for x in asked])


# -- PSHE2 ----------------------------------------------------------------------------------------


def noise(x, r, s):
    return s * r * (1 - x) if r >= 0 else s * r * (1 + x)


def test_pshe2_takes_the_steps_of_its_rule_worked_out_by_hand():
    """Two particles on one axis, alpha = 1/2, epsilon = 1/5; r comes from the same generator."""
    r = np.random.RandomState(3).uniform(-1, 1, (3, 2))
    swarm = PSHE2((0.2,), 2, seed=3, anneal=0.0)
    a1, b1 = 0.2, 0.2 + noise(0.2, r[0, 1], 1.0)  # the first particle starts at the centre
    assert swarm.ask() == [(a1,), (pytest.approx(b1),)]

    # t = 1: both are their own best points, the second one is the swarm's. 1 - 3/2 times v = 0.
    swarm.tell([(a1,), (b1,)], [2.0, 1.0])
    va = -0.5 * (a1 - b1)
    a2, b2 = a1 + 0.5 * va, b1
    a2, b2 = a2 + noise(a2, r[1, 0], 0.2), b2 + noise(b2, r[1, 1], 0.2)
    assert swarm.ask() == [(pytest.approx(a2),), (pytest.approx(b2),)]

    # t = 2: the first ties with the swarm's best, and the newer counts; the second got worse.
    swarm.tell([(a2,), (b2,)], [1.0, 5.0])
    va = (1 - 1.5 / 2) * va
    vb = -0.5 * (b2 - b1) - 0.5 * (b2 - a2)
    a3, b3 = a2 + 0.5 * va, b2 + 0.5 * vb
    a3, b3 = a3 + noise(a3, r[2, 0], 0.2), b3 + noise(b3, r[2, 1], 0.2)
    assert swarm.ask() == [(pytest.approx(a3),), (pytest.approx(b3),)]


def test_a_failed_particle_is_drawn_to_the_best_of_the_swarm_alone():
    swarm = PSHE2((0.0,), 2, seed=0, epsilon=0.0)
    swarm.ask()
    swarm.tell([(0.4,), (-0.4,)], [None, 1.0])
    # v = -1/2 (0.4 - -0.4), x = 0.4 + v / 2; the other stands on both of its best points.
    assert swarm.ask() == [(pytest.approx(0.2),), (pytest.approx(-0.4),)]
    swarm.tell([(0.2,), (-0.4,)], [3.0, 2.0])  # its first best point is its own, worse than g
    # t = 2: v = 1/4 (-0.4) - 1/2 (0.2 - -0.4) = -0.4
    assert swarm.ask()[0] == (pytest.approx(0.0),)


def test_the_swarm_keeps_away_from_the_bounds_to_which_the_released_one_is_driven():
    """Where all particles share a velocity 87 % of the coordinates sit on one by round 20; here 1 %."""
    on_a_bound = 0
    for seed in range(20):
        rng = np.random.RandomState(seed)
        bottom = rng.uniform(-0.7, 0.7, 4)
        swarm = PSHE2(tuple(rng.uniform(-1, 1, 4)), 10, seed=seed, anneal=0.0)
        points = told(swarm, 20, loss=lambda x, b=bottom: float(sum((np.array(x) - b) ** 2)))
        on_a_bound += sum(abs(u) >= 1 for x in points[-10:] for u in x)
    assert on_a_bound < 0.05 * 20 * 10 * 4


def test_annealed_noise_is_divided_by_a_power_of_the_round():
    r = np.random.RandomState(3).uniform(-1, 1, (3, 2))
    swarm = PSHE2((0.2,), 2, seed=3, anneal=0.5)
    for _ in range(2):  # all losses equal: both best points are the last one, only noise moves
        x = swarm.ask()
        swarm.tell(x, [0.0, 0.0])
    # t = 2: the last of equal ones is the swarm's best, so only the first particle is drawn to it.
    (_,), (b,) = x
    ((_,), (second,)) = swarm.ask()
    assert second == pytest.approx(b + noise(b, r[2, 1], 0.2 / np.sqrt(2)))
