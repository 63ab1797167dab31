"""AutoDL Finetuner's PSHE2: a particle swarm with friction 3/t and uniform noise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from autocl_sweeper.distributions import Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search.cube import Cube, Point
from autocl_sweeper.search.rounds import RoundsSearch, check_popsize

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    Array = NDArray[float64]

log = logging.getLogger(__name__)


def pshe2_search(
    space: Space,
    seed: int,
    stage_name: str,
    popsize: int | None = None,
    alpha: float = 0.5,
    epsilon: float = 0.2,
    anneal: float = 0.5,
    rounds_are_stages: bool = False,
) -> RoundsSearch:
    """PSHE2 over a space of numbers. Raises ConfigurationError for any other."""
    cube = Cube(space, "pshe2", least=1)
    size = check_popsize(popsize, "pshe2", 1)
    for name, value in (("alpha", alpha), ("epsilon", epsilon), ("anneal", anneal)):
        if not value >= 0:
            raise ConfigurationError(
                f"hydra.sweeper.search.{name}={value}, but it must be 0 or more."
            )
    make = partial(PSHE2, alpha=alpha, epsilon=epsilon, anneal=anneal)
    return RoundsSearch(cube, make, size, seed, stage_name, rounds_are_stages)


class PSHE2:
    """A swarm in [-1, 1]^n; minimises. Positions may leave the cube, values are clipped.

        search = PSHE2(centre=(0.5, 0.5), popsize=5, seed=0)
        while True:
            points = search.ask()
            search.tell(points, [loss(x) for x in points])

    Round t = 1, 2, ... with p_i the best point of particle i and g that of the swarm (of equal ones
    the newer), v_i = 0 at the start, r uniform in [-1, 1] for each coordinate:

        start    x_i = c + noise(c; 1)
        v_i <- (1 - 3 alpha / t) v_i - alpha (x_i - p_i) - alpha (x_i - g)
        x_i <- x_i + alpha v_i;   x_i <- x_i + noise(x_i; epsilon / t^anneal)
        noise(x; s) = s r (1 - x) where r >= 0, else s r (1 + x)

    With `anneal` 0 the noise stays as large as it was and the swarm cannot resolve finely; 0.5 was
    no worse with 50 evaluations and clearly better with 200 (benchmarks/search/problems.py).

    `begin`: the first particle starts at c itself. A failed trial has the loss None: it is no best
    point, and a particle that has none yet is drawn to g alone. After a round without any loss the
    same round is drawn again.
    """

    def __init__(
        self,
        centre: Sequence[float],
        popsize: int,
        seed: int,
        alpha: float = 0.5,
        epsilon: float = 0.2,
        anneal: float = 0.5,
        begin: bool = True,
    ) -> None:
        from numpy import array, tile, zeros
        from numpy.random import RandomState

        self._random = RandomState(seed)
        self._alpha = alpha
        self._epsilon = epsilon
        self._anneal = anneal
        self._begin = begin
        self._round = 0  # t of the rule: rounds that had a loss
        self._from: Array = tile(array(centre, dtype=float), (popsize, 1))  # positions before noise
        self._velocity: Array = zeros((popsize, len(centre)))
        self._scale = 1.0
        self._own: list[tuple[float, Any] | None] = [None] * popsize  # p_i with its loss
        self._best: tuple[float, Any] | None = None  # g with its loss

    def ask(self) -> list[Point]:
        from numpy import where

        r = self._random.uniform(-1.0, 1.0, self._from.shape)
        x = self._from + self._scale * r * where(r >= 0, 1 - self._from, 1 + self._from)
        if self._begin:
            x[0] = self._from[0]
            self._begin = False
        return [tuple(map(float, row)) for row in x]

    def tell(self, points: Sequence[Point], losses: Sequence[float | None]) -> None:
        from numpy import array

        if all(loss is None for loss in losses):
            log.info("pshe2: no trial of the round has a loss; it is drawn again")
            return
        self._round += 1
        x = array(points, dtype=float)
        for i, loss in enumerate(losses):
            if loss is None:
                continue
            own = self._own[i]
            if own is None or loss <= own[0]:
                self._own[i] = (loss, x[i].copy())
            if self._best is None or loss <= self._best[0]:
                self._best = (loss, x[i].copy())
        assert self._best is not None
        alpha, g = self._alpha, self._best[1]
        p = array([x[i] if one is None else one[1] for i, one in enumerate(self._own)])
        self._velocity = (
            (1 - 3 * alpha / self._round) * self._velocity - alpha * (x - p) - alpha * (x - g)
        )
        self._from = x + alpha * self._velocity
        self._scale = self._epsilon / self._round**self._anneal
