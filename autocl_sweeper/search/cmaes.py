"""CMA-ES from the package `cmaes`, its generations replayed from the stage's trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from autocl_sweeper.distributions import Space
from autocl_sweeper.search.cube import Cube, Point
from autocl_sweeper.search.restarts import Restarting, restart_options
from autocl_sweeper.search.rounds import RoundsSearch, check_popsize


def cmaes_search(
    space: Space,
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
    cube = Cube(space, "cmaes", least=1)
    default = 4 + math.floor(3 * math.log(cube.dimensions))
    size = check_popsize(default if popsize is None else popsize, "cmaes", 4)
    make = partial(CMAES, **restart_options(sigma, on_stop))
    return RoundsSearch(cube, make, size, seed, stage_name, rounds_are_stages)


class CMAES(Restarting):
    """Generations of the library's CMA: the centre stands in the place of the first point."""

    name = "cmaes"

    def _begin(self, centre: Sequence[float], seed: int) -> Any:
        from cmaes import CMA
        from numpy import array, clip

        bounds = array([[-1.0, 1.0]] * len(centre))
        mean = clip(array(centre, dtype=float), -1.0, 1.0)
        return CMA(mean, self._sigma, bounds, seed=seed, population_size=self._popsize)

    def _draw(self) -> Sequence[Any]:
        return [self._library.ask() for _ in range(self._popsize)]

    def _tell(self, points: Sequence[Point], losses: Sequence[float]) -> str:
        from numpy import array

        self._library.tell([(array(x), loss) for x, loss in zip(points, losses, strict=True)])
        return "it has converged" if self._library.should_stop() else ""
