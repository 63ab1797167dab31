"""What the CMA-ES of two libraries has in common: a best point, and a new beginning there."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search.cube import Point, seed_of

log = logging.getLogger(__name__)

ON_STOP = ("restart", "end")


class Restarting(ABC):
    """CMA-ES of a library in [-1, 1]^n, in rounds; minimises.

        search = HAZero(centre=(0.5, 0.5), popsize=5, seed=0)
        while (points := search.ask()) is not None:
            search.tell(points, [loss(x) for x in points])

    `begin`: the centre is the first point. A failed trial has the loss None and ranks last; a round
    without any loss changes nothing, the next one is drawn from the same distribution. When the
    library has a reason to stop, it begins again at the best point so far, or ends.
    """

    name: ClassVar[str]

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
        self._first: list[Point] = [tuple(centre)] if begin else []  # to be tried as it is
        self._best: tuple[float, Point] | None = None
        self._rounds = 0
        self._restarts = 0
        self._over = False
        self._library = self._begin(centre, seed)

    def ask(self) -> list[Point] | None:
        if self._over:
            return None
        drawn: list[Point] = [tuple(map(float, point)) for point in self._draw()]
        points = [*self._first, *drawn[len(self._first) :]]
        self._first = []
        return points

    def tell(self, points: Sequence[Point], losses: Sequence[float | None]) -> None:
        self._rounds += 1
        both = zip(points, losses, strict=True)
        known = [(loss, tuple(point)) for point, loss in both if loss is not None]
        if not known:
            told = "%s: no trial of round %d has a loss; the next is drawn alike"
            log.info(told, self.name, self._rounds)
            return
        best = min(known, key=lambda one: one[0])
        if self._best is None or best[0] <= self._best[0]:
            self._best = best
        reasons = self._tell(points, [math.inf if loss is None else loss for loss in losses])
        if not reasons:
            return
        self._over = not self._restart
        does = "begins again at its best point" if self._restart else "ends"
        log.info("%s: it %s after round %d: %s", self.name, does, self._rounds, reasons)
        if self._restart:
            self._restarts += 1
            self._library = self._begin(self._best[1], seed_of(self._seed, self._restarts))

    @abstractmethod
    def _begin(self, centre: Sequence[float], seed: int) -> Any:
        """The library's search; a centre outside the cube is moved to its bounds."""

    @abstractmethod
    def _draw(self) -> Sequence[Any]:
        """The points of a round."""

    @abstractmethod
    def _tell(self, points: Sequence[Point], losses: Sequence[float]) -> str:
        """How the round went; says why the library would stop now, empty: it would not."""


def restart_options(sigma: float, on_stop: str) -> dict[str, Any]:
    """The options of such a search. Raises ConfigurationError."""
    if not sigma > 0:
        raise ConfigurationError(f"hydra.sweeper.search.sigma={sigma}, but it must be above 0.")
    if on_stop not in ON_STOP:
        raise ConfigurationError(
            f"hydra.sweeper.search.on_stop={on_stop!r} is not one of: {', '.join(ON_STOP)}."
        )
    return {"sigma": sigma, "restart": on_stop == "restart"}
