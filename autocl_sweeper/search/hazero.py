"""AutoDL Finetuner's HAZero: CMA-ES from the package `cma`, started from the app's configuration."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from autocl_sweeper.distributions import Distribution
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search import space_of
from autocl_sweeper.search.cube import Cube, Point, seed_of
from autocl_sweeper.search.rounds import RoundsSearch, check_popsize
from autocl_sweeper.types import Value

log = logging.getLogger(__name__)

ON_STOP = ("restart", "end")
# A round of equal losses is common on small dev sets and says nothing: it must not end the search.
NOT_FLAT = {"tolfun": 0, "tolfunhist": 0, "tolflatfitness": math.inf}


def hazero_search(
    space: Mapping[str, Distribution],
    seed: int,
    stage_name: str,
    popsize: int | None = None,
    sigma: float = 0.2,
    on_stop: str = "restart",
    rounds_are_stages: bool = False,
) -> RoundsSearch:
    """HAZero over a space of two numbers or more. Raises ConfigurationError for any other."""
    own = space_of(space)
    cube = Cube(own, "hazero", least=2)
    size = check_popsize(popsize, "hazero", 2)
    if not sigma > 0:
        raise ConfigurationError(f"hydra.sweeper.search.sigma={sigma}, but it must be above 0.")
    check_on_stop(on_stop)
    centre, given = start_of(cube, own.initial)

    def make(number: int) -> HAZero:
        return HAZero(centre, size, number, sigma, begin=given, restart=on_stop == "restart")

    return RoundsSearch(own, cube, make, size, seed, stage_name, rounds_are_stages)


def start_of(cube: Cube, initial: Mapping[str, Value] | None) -> tuple[Point, bool]:
    """Where a population begins, and whether that point is tried: it is the app's configuration."""
    point = None if initial is None else cube.point(initial)
    return (point, True) if point is not None else ((0.0,) * cube.dimensions, False)


def check_on_stop(on_stop: str) -> None:
    if on_stop not in ON_STOP:
        raise ConfigurationError(
            f"hydra.sweeper.search.on_stop={on_stop!r} is not one of: {', '.join(ON_STOP)}."
        )


class HAZero:
    """CMA-ES in [-1, 1]^n with a small population; minimises.

        search = HAZero(centre=(0.5, 0.5), popsize=5, seed=0)
        while (points := search.ask()) is not None:
            search.tell(points, [loss(x) for x in points])

    `begin`: the centre is the first point. A failed trial has the loss None and ranks last; a round
    without any loss changes nothing, the next one is drawn from the same distribution. When `cma`
    has a reason to stop, it begins again at the best point so far, or ends.
    """

    def __init__(
        self,
        centre: Sequence[float],
        popsize: int,
        seed: int,
        sigma: float = 0.2,
        begin: bool = True,
        restart: bool = True,
    ) -> None:
        self._popsize = popsize
        self._seed = seed
        self._sigma = sigma
        self._restart = restart
        self._best: tuple[float, Point] | None = None
        self._rounds = 0
        self._restarts = 0
        self._over = False
        self._strategy = self._begin(centre, seed)
        if begin:
            self._strategy.inject([self._strategy.mean])  # the centre, as `cma` holds it

    def ask(self) -> list[Point] | None:
        if self._over:
            return None
        return [tuple(map(float, point)) for point in self._strategy.ask()]

    def tell(self, points: Sequence[Point], losses: Sequence[float | None]) -> None:
        from numpy import array, errstate

        self._rounds += 1
        known = [
            (loss, tuple(x)) for x, loss in zip(points, losses, strict=True) if loss is not None
        ]
        if not known:
            log.info(
                "hazero: no trial of round %d has a loss; the next is drawn alike", self._rounds
            )
            return
        best = min(known, key=lambda one: one[0])
        if self._best is None or best[0] <= self._best[0]:
            self._best = best
        if len(known) > 1 and len({loss for loss, _ in known}) == 1:
            log.info("hazero: all losses of round %d are %g; it goes on", self._rounds, best[0])
        told = [math.inf if loss is None else loss for loss in losses]
        with errstate(invalid="ignore"):  # inf - inf, in the rules that stop it
            self._strategy.tell([array(point) for point in points], told)
            reasons = dict(self._strategy.stop())
        if reasons:
            self._stop(", ".join(sorted(reasons)))

    def _stop(self, reasons: str) -> None:
        if not self._restart:
            log.info("hazero: it ends after round %d: %s", self._rounds, reasons)
            self._over = True
            return
        assert self._best is not None
        log.info(
            "hazero: it begins again at its best point after round %d: %s", self._rounds, reasons
        )
        self._restarts += 1
        self._strategy = self._begin(self._best[1], seed_of(self._seed, self._restarts))

    def _begin(self, centre: Sequence[float], seed: int) -> Any:
        from numpy import nan
        from numpy.random import RandomState

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Could not import matplotlib")
            from cma import CMAEvolutionStrategy

        options = {
            "popsize": self._popsize,
            "bounds": [-1, 1],
            "AdaptSigma": True,
            "verbose": -9,
            "seed": nan,  # it would seed numpy's global generator; this one is its own
            "randn": RandomState(seed).randn,
            "signals_filename": "",  # it would look for commands in the working directory
            **NOT_FLAT,
        }
        return CMAEvolutionStrategy([min(max(u, -1.0), 1.0) for u in centre], self._sigma, options)
