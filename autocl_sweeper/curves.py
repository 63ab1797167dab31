"""What the trials of a stage reported, and what rules of early stopping ask of all of them.

A question costs about the same with ten trials as with ten thousand: answers are kept up to date.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean

from autocl_sweeper.ranks import Agreement

KEPT = 256  # steps that running means are kept for


@dataclass(frozen=True)
class Curve:
    """What a trial reported so far, as (step, loss) with rising steps; nan: it was not finite."""

    reports: list[tuple[int, float]]
    favoured: bool = False  # its suggestion did well before: it is not judged at the first rung
    final: float | None = None  # loss of a complete trial


class Rung:
    """The losses of the trials that reached one step, infinite where they were not finite."""

    def __init__(self, step: int) -> None:
        self.losses: list[float] = []  # rising
        self.completed: dict[int, tuple[float, float]] = {}  # trial -> loss here, final loss
        self._step = step
        self._agreement: Agreement | None = None
        self._changes = 0  # of completed trials since

    def agreement(self, limit: float) -> Agreement:
        """How the losses here and the final ones of completed trials agree in their order.

        It may be that of some trials ago, where the correlation cannot have crossed `limit` since.
        """
        if self._agreement is None or not self._agreement.decides(limit, self._changes):
            pairs = self.completed.values()
            self._agreement = Agreement.of([one for one, _ in pairs], [last for _, last in pairs])
            self._changes = 0
        return self._agreement

    def enter(self, number: int, curve: Curve) -> None:
        if (loss := self._loss(curve)) is None:
            return
        insort(self.losses, loss)
        if curve.final is not None:
            self.completed[number] = loss, curve.final
            self._changes += 1

    def leave(self, number: int, curve: Curve) -> None:
        if (loss := self._loss(curve)) is None:
            return
        del self.losses[bisect_left(self.losses, loss)]
        if self.completed.pop(number, None) is not None:
            self._changes += 1

    def reached(self, before: int, step: int, loss: float) -> None:
        """A running trial, at `before` so far, reports a loss at a step."""
        if before < self._step <= step:
            insort(self.losses, _ranked(loss))

    def _loss(self, curve: Curve) -> float | None:
        place = bisect_left(curve.reports, (self._step, -math.inf))
        return _ranked(curve.reports[place][1]) if place < len(curve.reports) else None


class Curves(MutableMapping[int, Curve]):
    """The curves of one stage by trial."""

    def __init__(self, curves: Mapping[int, Curve] | None = None) -> None:
        self._curves: dict[int, Curve] = {}
        self._rungs: dict[int, Rung] = {}
        self._completed: list[int] = []
        self._means: dict[int, tuple[list[float], int]] = {}  # step -> means, completed trials seen
        self.update(curves or {})

    def __getitem__(self, number: int) -> Curve:
        return self._curves[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._curves)

    def __len__(self) -> int:
        return len(self._curves)

    def __setitem__(self, number: int, curve: Curve) -> None:
        self.pop(number, None)
        self._curves[number] = replace(curve, reports=[*curve.reports])
        for rung in self._rungs.values():
            rung.enter(number, curve)
        if curve.final is not None:
            self._completed.append(number)

    def __delitem__(self, number: int) -> None:
        curve = self._curves.pop(number)
        for rung in self._rungs.values():
            rung.leave(number, curve)
        if curve.final is not None:
            self._completed.remove(number)
            self._means.clear()

    def report(self, number: int, step: int, loss: float) -> None:
        """A running trial reports, at a larger step than before."""
        points = self._curves[number].reports
        before = points[-1][0] if points else -1
        points.append((step, loss))
        for rung in self._rungs.values():
            rung.reached(before, step, loss)

    def at(self, step: int) -> Rung:
        if step not in self._rungs:
            rung = self._rungs[step] = Rung(step)
            for number, curve in self.items():
                rung.enter(number, curve)
        return self._rungs[step]

    def means(self, step: int) -> Sequence[float]:
        """What each completed trial had on average up to a step, rising; nothing finite: not in it."""
        if step not in self._means and len(self._means) == KEPT:
            self._means.clear()
        means, seen = self._means.get(step, ([], 0))
        for place in range(seen, len(self._completed)):
            if (mean := _mean(self[self._completed[place]], step)) is not None:
                insort(means, mean)
        self._means[step] = means, len(self._completed)
        return means


def _ranked(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _mean(curve: Curve, step: int) -> float | None:
    upto = islice(curve.reports, bisect_left(curve.reports, (step + 1, -math.inf)))
    found = [loss for _, loss in upto if math.isfinite(loss)]
    return fmean(found) if found else None
