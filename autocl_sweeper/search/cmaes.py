"""CMA-ES from the package `cmaes`, its generations replayed from the stage's trials."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from autocl_sweeper.distributions import Distribution
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search import space_of
from autocl_sweeper.search.cube import Cube, Point, seed_of
from autocl_sweeper.search.hazero import check_on_stop, start_of
from autocl_sweeper.search.rounds import RoundsSearch, check_popsize

log = logging.getLogger(__name__)


def cmaes_search(
    space: Mapping[str, Distribution],
    seed: int,
    stage_name: str,
    popsize: int | None = None,
    sigma: float = 0.2,
    on_stop: str = "restart",
    rounds_are_stages: bool = False,
) -> RoundsSearch:
    """CMA-ES over a space of numbers. Raises ConfigurationError for any other.

    `popsize`: of a generation; by default the library's, 4 + floor(3 ln n).
    """
    own = space_of(space)
    cube = Cube(own, "cmaes", least=1)
    default = 4 + math.floor(3 * math.log(cube.dimensions))
    size = check_popsize(default if popsize is None else popsize, "cmaes", 4)
    if not sigma > 0:
        raise ConfigurationError(f"hydra.sweeper.search.sigma={sigma}, but it must be above 0.")
    check_on_stop(on_stop)
    centre, given = start_of(cube, own.initial)

    def make(number: int) -> CMAES:
        return CMAES(centre, size, number, sigma, begin=given, restart=on_stop == "restart")

    return RoundsSearch(own, cube, make, size, seed, stage_name, rounds_are_stages)


class CMAES:
    """Generations of the library's CMA in [-1, 1]^n; minimises. Used as HAZero is.

    `begin`: the centre stands in the place of the first point of the first generation.
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
        self._first: Point | None = tuple(centre) if begin else None
        self._restart = restart
        self._best: tuple[float, Point] | None = None
        self._generations = 0
        self._restarts = 0
        self._over = False
        self._optimizer = self._begin(centre, seed)

    def ask(self) -> list[Point] | None:
        if self._over:
            return None
        drawn = [self._optimizer.ask() for _ in range(self._popsize)]
        points: list[Point] = [tuple(map(float, x)) for x in drawn]
        if self._first is not None:
            points[0], self._first = self._first, None
        return points

    def tell(self, points: Sequence[Point], losses: Sequence[float | None]) -> None:
        from numpy import array

        self._generations += 1
        known = [
            (loss, tuple(x)) for x, loss in zip(points, losses, strict=True) if loss is not None
        ]
        if not known:
            log.info(
                "cmaes: no trial of generation %d has a loss; the next is drawn alike",
                self._generations,
            )
            return
        best = min(known, key=lambda one: one[0])
        if self._best is None or best[0] <= self._best[0]:
            self._best = best
        self._optimizer.tell(
            [
                (array(x), math.inf if loss is None else loss)
                for x, loss in zip(points, losses, strict=True)
            ]
        )
        if not self._optimizer.should_stop():
            return
        if not self._restart:
            log.info("cmaes: it has converged and ends after generation %d", self._generations)
            self._over = True
            return
        log.info(
            "cmaes: it has converged after generation %d and begins again at its best point",
            self._generations,
        )
        self._restarts += 1
        self._optimizer = self._begin(self._best[1], seed_of(self._seed, self._restarts))

    def _begin(self, centre: Sequence[float], seed: int) -> Any:
        from cmaes import CMA
        from numpy import array

        mean = array([min(max(u, -1.0), 1.0) for u in centre])
        bounds = array([[-1.0, 1.0]] * len(centre))
        return CMA(mean, self._sigma, bounds, seed=seed, population_size=self._popsize)
