"""Plans for the batches of a training: fitted while it collects, cached, corrected by what is measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from train.memory.fit import Features, Fit, determined, fit
from train.memory.greedy import bucket_greedy, quadratic, rounded_up
from train.memory.plan import unequal_peak

MIB = 2**20
ROWS = 64  # distinct feature rows a fit is made of, the last ones
OFF = 0.02  # share of a measured peak that a prediction may miss before everything is fitted again
MARGIN = 0.01  # share of the budget that is always left free where the margin is automatic
WIDER = 2.0  # times the margin, for sizes outside of what was collected


@dataclass(frozen=True)
class Collected:
    """What one step under collection kept, bytes."""

    kind: int  # which kind of block was probed
    kept: float  # a: by that block
    stash: float  # h: by a recomputed one of its kind
    largest: float  # the largest single tensor in `kept`
    shared: float  # s: once, if any block is recomputed
    outside: float  # o: by all else at the peak


@dataclass(frozen=True)
class Choice:
    """The plan of one step, and what is known of it before it runs."""

    blocks: tuple[int, ...]  # indices of those that are recomputed
    predicted: float  # peak with the static part, bytes
    margin: float
    least_budget: float  # the smallest budget under which some plan fits, bytes
    fits: bool
    extrapolated: bool = False
    cached: bool = False
    fresh: bool = False  # the step allocates its gradients


class Planner:
    """What is known of the blocks of a model, and the plan it gives for a batch.

    kinds: of each block, in order of execution; blocks of a kind keep the same bytes.
    budget: bytes of the process. margin: bytes kept free; None: found by itself.
    gradients: bytes of each block's, which a `fresh` step allocates and others have already.
    """

    def __init__(
        self,
        kinds: Sequence[int],
        budget: float,
        margin: float | None = None,
        collect_steps: int = 8,
        planner: Literal["prefix", "bucket_greedy"] = "prefix",
        gradients: Sequence[float] = (),
    ) -> None:
        self.gradients = tuple(gradients)
        self.kinds, self.budget, self.given_margin = tuple(kinds), budget, margin
        self.collect_steps, self.planner = collect_steps, planner
        self.steps = 0  # collected so far
        self.solved, self.hits, self.refits = 0, 0, 0
        self.fragmented = 0.0  # largest reserved minus allocated
        self.missed = 0.0  # largest measured minus predicted peak
        self.rows: dict[str, dict[Features, float]] = {}
        self.fits: dict[str, Fit] = {}
        self.cache: dict[tuple[Features | int, int, bool], Choice] = {}

    # -- collecting --------------------------------------------------------------------------------

    @property
    def collecting(self) -> bool:
        """Whether the next step is to be collected: the sizes so far do not suffice for a fit."""
        if self.steps < self.collect_steps:
            return True
        known = all(determined(list(self.rows.get(f"kept {k}", ()))) for k in set(self.kinds))
        return not known and self.steps < max(3 * self.collect_steps, len(set(self.kinds)))

    @property
    def probe(self) -> int:
        """The block to keep in a collected step: the last of its kind, kinds in turn."""
        kinds = sorted(set(self.kinds))
        kind = kinds[self.steps % len(kinds)]
        return max(i for i, own in enumerate(self.kinds) if own == kind)

    def collect(self, features: Features, found: Collected) -> None:
        """Take what a step under collection has shown."""
        self.steps += 1
        for part in ("kept", "stash", "largest"):
            self._keep(f"{part} {found.kind}", features, getattr(found, part))
        self._keep("shared", features, found.shared)
        self._keep("outside", features, found.outside)
        self._forget()

    def _keep(self, part: str, features: Features, value: float) -> None:
        rows = self.rows.setdefault(part, {})
        rows.pop(features, None)  # a row seen again becomes the newest
        rows[features] = value
        if len(rows) > ROWS:
            del rows[next(iter(rows))]

    def _forget(self) -> None:
        self.fits.clear()
        self.cache.clear()

    def outside(
        self,
        kind: int,
        held: Mapping[int, float],
        kept: float,
        shared: float,
        peak: float,
        fresh: bool,
    ) -> float:
        """Bytes outside the blocks, from the peak of a collected step without its static part.

        held: of each block, its input. kept: of the probe, whose kind is `kind`.
        """
        latest = {k: [*self.rows.get(f"kept {k}", {0: 0.0}).values()][-1] for k in set(self.kinds)}
        latest[kind] = kept
        known = [latest[own] for own in self.kinds]
        n = range(len(self.kinds))
        stash = [held.get(i, 0.0) for i in n]
        others = [i for i in n if i != self.probe]
        gradients = self.gradients if fresh else ()
        own = unequal_peak(known, stash, [0.0] * len(n), others, 0.0, shared, gradients)
        return max(0.0, peak - own)

    def fit_of(self, part: str) -> Fit:
        if part not in self.fits:
            rows = self.rows[part]
            self.fits[part] = fit([*rows], [*rows.values()])
        return self.fits[part]

    # -- planning ----------------------------------------------------------------------------------

    def margin(self, extrapolated: bool) -> float:
        """Bytes of the budget that a plan leaves free."""
        if self.given_margin is not None:
            found = self.given_margin
        else:
            found = max(MARGIN * self.budget, self.fragmented, self.missed)
        return found * (WIDER if extrapolated else 1.0)

    def least_budget(self, peak: float, extrapolated: bool) -> float:
        """The smallest budget that leaves its margin free above a peak, bytes."""
        times = WIDER if extrapolated else 1.0
        if self.given_margin is not None:
            return peak + self.given_margin * times
        share = peak / (1 - MARGIN * times)  # the margin grows with the budget
        return max(share, peak + max(self.fragmented, self.missed) * times)

    def plan(self, features: Features, size: int, static: float, fresh: bool = False) -> Choice:
        """The plan of a batch with these features. static: bytes allocated before the step.

        size: tokens of a sequence, all that the reference planner sees of a batch.
        """
        shape = features if self.planner == "prefix" else rounded_up(size)
        key = (shape, int(static // MIB), fresh)  # gradients come and go with accumulation
        if key in self.cache:
            self.hits += 1
            return replace(self.cache[key], cached=True)
        self.solved += 1
        self.cache[key] = self._solve(features, size, static, fresh)
        return self.cache[key]

    def predicted(self, features: Features, blocks: Collection[int], fresh: bool = False) -> float:
        """The peak with these blocks recomputed, static part excluded, bytes."""
        kept, stash, largest = (
            [self.fit_of(f"{part} {kind}").predict(features) for kind in self.kinds]
            for part in ("kept", "stash", "largest")
        )
        if len(set(self.kinds)) == 1:  # exact without it: no block is wider than another
            largest = [0.0] * len(kept)
        outside, shared = (self.fit_of(part).predict(features) for part in ("outside", "shared"))
        gradients = self.gradients if fresh else ()
        return unequal_peak(kept, stash, largest, blocks, outside, shared, gradients)

    def _solve(self, features: Features, size: int, static: float, fresh: bool) -> Choice:
        parts = [f"kept {kind}" for kind in set(self.kinds)] + ["outside"]
        unsure = any(
            self.fit_of(part).extrapolates(features) or not self.fit_of(part).exact
            for part in parts
        )
        margin = self.margin(unsure)
        peaks = [
            static + self.predicted(features, range(k), fresh)
            for k in range(max(1, len(self.kinds)))
        ]
        least = min(peaks)
        fitting = [k for k, peak in enumerate(peaks) if peak <= self.budget - margin]
        if self.planner == "bucket_greedy":
            blocks = self._greedy(features, rounded_up(size), static, margin)
            peak = static + self.predicted(features, blocks, fresh)
            fits = peak <= self.budget
        else:
            k = fitting[0] if fitting else peaks.index(least)
            blocks, peak, fits = tuple(range(k)), peaks[k], bool(fitting)
        enough = self.least_budget(least, unsure)
        return Choice(blocks, peak, margin, enough, fits, unsure, fresh=fresh)

    def _greedy(
        self, features: Features, size: int, static: float, margin: float
    ) -> tuple[int, ...]:
        """Mimose's choice: bytes of degree 2 in the size alone, and blocks in its order."""
        rows = [*self.rows["outside"]]
        lengths = [row[1] / row[2] for row in rows]
        whole = [self.predicted(row, ()) for row in rows]
        at = [self._at(lengths, whole, size)]
        for kind in self.kinds:
            own = [self.fit_of(f"kept {kind}").predict(row) for row in rows]
            at.append(self._at(lengths, own, size))
        step, *block_bytes = at
        return tuple(bucket_greedy(block_bytes, step - (self.budget - margin - static)))

    @staticmethod
    def _at(lengths: Sequence[float], measured: Sequence[float], size: int) -> float:
        second, first, constant = quadratic(lengths, measured)
        return second * size**2 + first * size + constant

    # -- correcting --------------------------------------------------------------------------------

    def measured(
        self, features: Features, choice: Choice, peak: float, reserved: float, static: float
    ) -> bool:
        """Take the measured peak of a planned step; whether everything is fitted again for it."""
        self.fragmented = max(self.fragmented, reserved - peak)
        off = (peak - static) - self.predicted(features, choice.blocks, choice.fresh)
        if abs(off) <= OFF * peak:
            self.missed = max(self.missed, off)
            return False
        outside = self.fit_of("outside").predict(features)
        self._keep("outside", features, max(0.0, outside + off))
        self._forget()
        self.refits += 1
        return True
