"""What a search may choose from: distributions of values, and the space they span together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias, TypeGuard

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.types import Value


@dataclass(frozen=True)
class Choice:
    """Finitely many values, in order. Raises ConfigurationError when there is none."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigurationError("a choice without values: name at least one")

    def __str__(self) -> str:
        shown = [*map(str, self.values[:4]), *(["..."] if len(self.values) > 4 else [])]
        return f"choice({','.join(shown)})"

    @cached_property
    def ordered(self) -> bool:
        """Whether neighbours mean something: numbers, each once. Searches then go by their rank."""
        numbers = all(is_number(value) for value in self.values)
        return numbers and len(set(self.values)) == len(self.values)

    @cached_property
    def ranked(self) -> tuple[Value, ...]:
        """The values by size where they are `ordered`, else as they are."""
        return tuple(sorted(self.values)) if self.ordered else self.values  # type: ignore[type-var]

    def place(self, value: Value) -> int | None:
        """Where a value stands in `ranked`; None: it is not among them. True is not 1 here."""
        places = (place for place, one in enumerate(self.ranked) if same(one, value))
        return next(places, None)

    def at(self, u: float) -> Value:
        """The value at a place in [0, 1]: each has an equal share, in the order of `ranked`."""
        count = len(self.values)
        return self.ranked[min(int(min(max(u, 0.0), 1.0) * count), count - 1)]

    def position(self, value: Value) -> float | None:
        """The middle of a value's share: `at(position(v)) == v`. None: it is not among them."""
        place = self.place(value)
        return None if place is None else (place + 0.5) / len(self.values)


@dataclass(frozen=True)
class Interval:
    """Every number from low to high, both included; whole numbers only when `integer`.

    `log`: equal ratios are equally likely. Raises ConfigurationError for bounds that cannot be.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __str__(self) -> str:
        return f"interval({self.low:g},{self.high:g})"

    def __post_init__(self) -> None:
        bounds = str(self)
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ConfigurationError(f"{bounds} is not bounded: both ends must be finite numbers")
        if self.low > self.high:
            raise ConfigurationError(f"{bounds} is empty: the lower end comes first")
        if self.log and self.low <= 0:
            raise ConfigurationError(f"{bounds} cannot be logarithmic: its low end must be above 0")
        if self.integer and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ConfigurationError(f"{bounds} of integers must begin and end with whole numbers")

    @property
    def values(self) -> Sequence[Value] | None:
        """All values of an interval of whole numbers; None: of floats there is no end."""
        return range(int(self.low), int(self.high) + 1) if self.integer else None

    @property
    def _ends(self) -> tuple[float, float]:
        # Each whole number owns the unit around it, so both ends are as likely as the others.
        half = 0.5 if self.integer else 0.0
        return self.low - half, self.high + half

    def at(self, u: float) -> int | float:
        """The value at a place in [0, 1] (a place outside is moved to the nearer end)."""
        u = min(max(u, 0.0), 1.0)
        low, high = self._ends
        if self.log:
            value = math.exp((1 - u) * math.log(low) + u * math.log(high))
        else:
            value = (1 - u) * low + u * high
        if self.integer:
            return min(max(math.floor(value + 0.5), int(self.low)), int(self.high))
        return min(max(value, low), high)

    def position(self, value: Value) -> float | None:
        """The place of a value: `at(position(v)) == v`, floats up to rounding. None: it lies outside."""
        if not is_number(value) or not self.low <= value <= self.high:
            return None
        if self.integer and not float(value).is_integer():
            return None
        scale = math.log if self.log else float
        low, high, place = map(scale, (*self._ends, value))
        return (place - low) / (high - low) if high > low else 0.5


Distribution: TypeAlias = Choice | Interval


def same(one: Value, other: Value) -> bool:
    """Whether two values are the same hyper-parameter: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return isinstance(one, bool) is isinstance(other, bool) and one == other


def is_number(value: Value) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Space(Mapping[str, Distribution]):
    """The search space of a task: axis -> distribution, in order.

    An axis is an override key, or several that are zipped: their names joined by commas, its values
    lists with one element for each. A *point* gives axes values; *params* give override keys values.

    `when`: key -> {other key: values}: the key is there only where every other one has one of those
    values (and is there itself). `init`: what the app's own configuration has, by override
    key without prefix.
    """

    axes: Mapping[str, Distribution]
    when: Mapping[str, Mapping[str, Sequence[Value]]] = field(default_factory=dict)
    zips: Mapping[str, Sequence[str]] = field(default_factory=dict)  # axis -> its keys
    init: Mapping[str, Value] = field(default_factory=dict)

    def __getitem__(self, axis: str) -> Distribution:
        return self.axes[axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self.axes)

    def __len__(self) -> int:
        return len(self.axes)

    def keys_of(self, axis: str) -> Sequence[str]:
        """The override keys of an axis: itself, unless it is zipped."""
        return self.zips.get(axis, (axis,))

    @property
    def finite(self) -> bool:
        return all(isinstance(distribution, Choice) for distribution in self.axes.values())

    def params(self, point: Mapping[str, Value]) -> dict[str, Value]:
        """What a point sets: the keys of its axes, without those whose conditions do not hold."""
        everything = self._by_key(point)
        return {key: value for key, value in everything.items() if self._holds(key, everything)}

    def draw(self, place: Callable[[str], float]) -> dict[str, Value]:
        """The params at a place in the unit cube: `place` gives each axis a number in [0, 1)."""
        return self.params({axis: one.at(place(axis)) for axis, one in self.axes.items()})

    def point(self, params: Mapping[str, Value]) -> dict[str, Value]:
        """The axes that params set, with values that may lie outside; the others are left out."""
        found: dict[str, Value] = {}
        for axis in self.axes:
            keys = self.keys_of(axis)
            if all(key in params for key in keys):
                values = [params[key] for key in keys]
                found[axis] = values if axis in self.zips else values[0]
        return found

    @cached_property
    def initial(self) -> dict[str, Value] | None:
        """What the app's own configuration sets; None where it does not lie in the space."""
        names = {key: key.lstrip("+") for axis in self.axes for key in self.keys_of(axis)}
        own = {key: self.init[name] for key, name in names.items() if name in self.init}
        inside: dict[str, Value] = {}
        for axis, value in self.point(own).items():
            one = self.axes[axis]
            if (place := one.position(value)) is not None:
                # A choice as the user wrote it: 1 where the app has 1.0.
                inside[axis] = one.at(place) if isinstance(one, Choice) else value
        there = self._by_key(inside)
        needed = {key for key in names if self._holds(key, there)}
        if not self.axes or not needed <= there.keys():
            return None
        return {key: value for key, value in there.items() if key in needed}

    def _by_key(self, point: Mapping[str, Value]) -> dict[str, Value]:
        """The values of a point's axes by override key."""
        found: dict[str, Value] = {}
        for axis in self.axes:
            if axis in point:
                value: Any = point[axis]
                found |= zip(
                    self.keys_of(axis), value if axis in self.zips else [value], strict=True
                )
        return found

    def _holds(self, key: str, params: Mapping[str, Value]) -> bool:
        return all(
            other in params
            and any(same(params[other], value) for value in values)
            and self._holds(other, params)
            for other, values in self.when.get(key, {}).items()
        )
