"""AutoDL Finetuner's HAZero: CMA-ES from the package `cma`, started from the app's configuration."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from autocl_sweeper.distributions import Space
from autocl_sweeper.search.cube import Cube, Point
from autocl_sweeper.search.restarts import Restarting, restart_options
from autocl_sweeper.search.rounds import RoundsSearch, check_popsize

log = logging.getLogger(__name__)

# A round of equal losses is common on small dev sets and says nothing: it must not end the search.
NOT_FLAT = {"tolfun": 0, "tolfunhist": 0, "tolflatfitness": math.inf}


def hazero_search(
    space: Space,
    seed: int,
    stage_name: str,
    popsize: int | None = None,
    sigma: float = 0.2,
    on_stop: str = "restart",
    rounds_are_stages: bool = False,
) -> RoundsSearch:
    """HAZero over a space of two numbers or more. Raises ConfigurationError for any other."""
    cube = Cube(space, "hazero", least=2)
    size = check_popsize(popsize, "hazero", 2)
    make = partial(HAZero, **restart_options(sigma, on_stop))
    return RoundsSearch(cube, make, size, seed, stage_name, rounds_are_stages)


class HAZero(Restarting):
    """`cma` with a small population."""

    name = "hazero"

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
        inside = [min(max(u, -1.0), 1.0) for u in centre]
        strategy = CMAEvolutionStrategy(inside, self._sigma, options)
        if self._first:
            strategy.inject([strategy.mean])  # the centre, as `cma` holds it
            self._first = []
        return strategy

    def _draw(self) -> Sequence[Any]:
        return self._library.ask()  # type: ignore[no-any-return]

    def _tell(self, points: Sequence[Point], losses: Sequence[float]) -> str:
        from numpy import array, errstate

        known = [loss for loss in losses if loss < math.inf]
        if len(known) > 1 and len({*known}) == 1:
            log.info("hazero: all losses of round %d are %g; it goes on", self._rounds, known[0])
        with errstate(invalid="ignore"):  # inf - inf, in the rules that stop it
            self._library.tell([array(point) for point in points], losses)
            return ", ".join(sorted(self._library.stop()))
