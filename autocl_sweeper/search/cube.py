"""A space of numbers as the cube [-1, 1]^n, for searches that move through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias

from autocl_sweeper.distributions import Choice, Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.types import Value

Point: TypeAlias = "tuple[float, ...]"
"""A place in the cube; a search may leave it, then it is clipped."""


class Cube:
    """The axes of a space that have more than one value, each stretched over [-1, 1].

    Linear where the axis is, logarithmic where it is `log`; an integer or a number of a list has
    an equal share, so `params(point(p)) == p`. Raises ConfigurationError for a space that is no
    cube: one with conditions, or with a choice of names.
    """

    def __init__(self, space: Space, search: str, least: int = 1) -> None:
        """`search`: its name in messages, which needs at least so many axes."""
        refuse_conditions(space, f"and the search '{search}' moves through all keys at once")
        for axis, one in space.items():
            if isinstance(one, Choice) and not one.ordered and len(one.values) > 1:
                raise ConfigurationError(
                    f"{axis!r}: {one} has no order, and the search '{search}' moves along"
                    " numbers.\n  Give it numbers, each once, or choose a search that takes names:"
                    " hydra/sweeper/search=relay, tpe, gp, qmc, random or grid."
                )
        self.space = space
        self._axes = [axis for axis, one in space.items() if one.at(0) != one.at(1)]
        self.dimensions = len(self._axes)
        if self.dimensions < least:
            given = ", ".join(self._axes) or "none"
            raise ConfigurationError(
                f"The search '{search}' needs at least {least} parameters with more than one value;"
                f" there are {self.dimensions}: {given}.\n"
                "  Search another parameter too, or choose hydra/sweeper/search=relay or tpe."
            )

    def params(self, point: Sequence[float]) -> dict[str, Value]:
        """The hyper-parameters at a point, which is clipped."""
        places = dict(zip(self._axes, point, strict=True))
        return self.space.draw(lambda axis: (places.get(axis, 0.0) + 1) / 2)

    def point(self, params: Mapping[str, Value]) -> Point | None:
        """Where hyper-parameters are; None: not in the space."""
        values = self.space.point(params)
        found = [
            self.space[axis].position(values[axis]) if axis in values else None
            for axis in self._axes
        ]
        inside = [2 * place - 1 for place in found if place is not None]
        return tuple(inside) if len(inside) == len(found) else None


def refuse_conditions(space: Space, why: str) -> None:
    """Raise ConfigurationError for a space with conditions."""
    for key in space.when:
        raise ConfigurationError(
            f"hydra.sweeper.when: {key!r} is there only for some values of another key, {why}.\n"
            "  Searches that can: hydra/sweeper/search=relay, tpe, qmc, random or grid."
        )


def seed_of(*parts: object) -> int:
    """A seed of 32 bits, as numpy's generators take, from whatever names the draw."""
    text = "/".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=4).digest(), "big")


def sobol(dimensions: int, seed: int) -> Any:
    """A scrambled Sobol sequence of scipy."""
    from numpy.random import default_rng
    from scipy.stats.qmc import Sobol

    # `seed` has another name in newer SciPys; a generator is taken by position in none of them.
    return Sobol(dimensions, seed=default_rng(seed))
