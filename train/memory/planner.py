"""Plans for the batches of a training: fitted while it collects, cached, corrected by what is measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from train.memory.fit import Features, Fit, Rows, determined
from train.memory.greedy import bucket_greedy, quadratic, rounded_up
from train.memory.peaks import KEPT, PARTLY, RECOMPUTED, Levels, Peaks, in_backward

MIB = 2**20
OFF = 0.02  # share of a measured peak that a prediction may miss before everything is fitted again
MARGIN = 0.01  # share of the budget that is always left free where the margin is automatic
WIDER = 2.0  # times the margin, for sizes outside of what was collected
UNLIKE = 0.02  # share added to first values of blocks that differ: they were up to 0.7 % low


@dataclass(frozen=True)
class Collected:
    """Bytes of a step under collection, static part excluded.

    Of its peaks None or empty: parts of the step were not told apart.
    """

    probe: int  # the block that was kept; all others were recomputed
    kept: float  # a: by that block
    held: Mapping[int, float]  # h: of each block, when recomputed
    largest: float  # the largest single tensor in `kept`
    shared: float  # s: once, if any block is recomputed
    peak: float
    head: float | None = None  # peak until the backward pass comes to the blocks
    backward: Sequence[float] = ()  # while it is in each block
    tail: float | None = None  # once it has left them
    partly: Mapping[str, float] = field(default_factory=dict)  # b: recomputed in part, by tier
    fresh: bool = False  # the step allocated its gradients


@dataclass(frozen=True)
class Tier:
    """Blocks may be recomputed in part: what that costs beside recomputing them whole, in any unit."""

    name: str  # key of Collected.partly
    cost: float
    full_cost: float


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
    selective: tuple[int, ...] = ()  # indices of those that are recomputed in part
    offload: bool = False  # inputs of recomputed blocks wait in the machine's memory


@dataclass(frozen=True)
class _Parts:
    """Bytes of a step with some features, by what keeps them."""

    held: list[tuple[float, ...]]  # of each block, by level
    largest: list[float]  # of each block
    outside: float
    shared: float
    head: float
    backward: list[float]  # by block; empty: parts of steps were not told apart
    tail: float


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
        self.distinct = sorted(set(kinds))
        self.collect_steps, self.planner = collect_steps, planner
        self.steps = 0  # collected so far
        self.solved, self.hits, self.refits = 0, 0, 0
        self.fragmented = 0.0  # largest reserved minus allocated
        self.missed = 0.0  # largest measured minus predicted peak
        self.rows: dict[str, Rows] = {}  # by what keeps the bytes
        self.pending: list[tuple[Features, Collected]] = []  # to be taken apart
        self.peaks = Peaks()
        self.tier: Tier | None = None  # set where blocks of one kind may be recomputed in part
        self.cache: dict[tuple[Features | int, int, bool], Choice] = {}

    # -- collecting --------------------------------------------------------------------------------

    @property
    def collecting(self) -> bool:
        """Whether the next step is to be collected: the sizes so far do not suffice for a fit."""
        if self.steps < self.collect_steps:
            return True
        probed = (self.rows.get(f"kept {kind}", Rows()).measured for kind in self.distinct)
        known = all(determined([*rows]) for rows in probed)
        return not known and self.steps < max(3 * self.collect_steps, len(self.distinct))

    @property
    def probe(self) -> int:
        """The block to keep in a collected step: the last of its kind, kinds in turn."""
        kind = self.distinct[self.steps % len(self.distinct)]
        return max(i for i, own in enumerate(self.kinds) if own == kind)

    def collect(self, features: Features, found: Collected) -> None:
        """Take what a step under collection has shown."""
        probe = found.probe
        levels = self._levels([i for i in range(len(self.kinds)) if i != probe])
        self.peaks.add(levels, found.fresh, features, found.peak)
        self.pending.append((features, found))
        self.steps += 1
        own = {"kept": found.kept, "stash": found.held[probe], "largest": found.largest}
        for part, value in {**own, **found.partly}.items():
            self._keep(f"{part} {self.kinds[probe]}", features, value)
        self._keep("shared", features, found.shared)

    def _keep(self, part: str, features: Features, value: float) -> None:
        self.rows.setdefault(part, Rows()).add(features, value)
        self.cache.clear()

    def _derive(self) -> None:
        """Bytes outside the blocks in collected steps, from what the blocks of each keep, once all is known."""
        if any(f"kept {kind}" not in self.rows for kind in self.kinds):
            return  # the training ended before each kind was probed
        pending, self.pending = self.pending, []
        n = range(len(self.kinds))
        for features, found in pending:
            known = self._of_blocks("kept", features)
            held = [found.held.get(i, 0.0) for i in n]
            again = [stash + kept for stash, kept in zip(held, known, strict=True)]
            for own in (known, held, again):
                own[found.probe] = found.kept
            shared = self._predict("shared", features)
            gradients = self.gradients if found.fresh else ()
            inside = shared * (len(n) > 1) + max(sum(held), *in_backward(held, again, gradients))
            self._keep("outside", features, max(0.0, found.peak - inside))
            if found.head is not None:
                self._keep("head", features, max(0.0, found.head - sum(held) - shared))
            for i, one in enumerate(in_backward(held, known, gradients) if found.backward else ()):
                rest = max(0.0, found.backward[i] - one - shared)
                self._keep(f"backward {i}", features, rest)
            if found.tail is not None:
                self._keep("tail", features, max(0.0, found.tail - sum(gradients)))

    def _of_blocks(self, part: str, features: Features) -> list[float]:
        by_kind = {k: self._predict(f"{part} {k}", features) for k in self.distinct}
        return [by_kind[kind] for kind in self.kinds]

    def _predict(self, part: str, features: Features) -> float:
        return self.rows[part].fit.predict(features)

    def all_fits(self) -> dict[str, Fit]:
        """The fit of each part of which something is known."""
        self._derive()
        return {part: rows.fit for part, rows in self.rows.items()}

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

    def predicted(
        self,
        features: Features,
        blocks: Collection[int],
        fresh: bool = False,
        selective: Collection[int] = (),
    ) -> float:
        """The peak with these blocks recomputed, static part excluded, bytes."""
        parts = self._parts(features, fresh)
        return self._peak(features, parts, self._levels(blocks, selective), fresh)

    def _levels(self, blocks: Collection[int], selective: Collection[int] = ()) -> Levels:
        return tuple(
            RECOMPUTED if i in blocks else PARTLY if i in selective else KEPT
            for i in range(len(self.kinds))
        )

    def _parts(self, features: Features, fresh: bool) -> _Parts:
        self._derive()
        of_blocks = partial(self._of_blocks, features=features)

        def at(part: str) -> float:
            return self._predict(part, features) + self.rows[part].fit.residual

        kept = of_blocks("kept")
        partly = of_blocks(self.tier.name) if self.tier is not None else kept
        return _Parts(
            [*zip(of_blocks("stash"), partly, kept, strict=True)],
            # Exact without it where no block is wider than another.
            of_blocks("largest") if len(self.distinct) > 1 else [0.0] * len(kept),
            self._predict("outside", features),
            self._predict("shared", features),
            self._predict("head", features) if "head" in self.rows else 0.0,
            [at(f"backward {i}") for i in range(len(kept))] if "backward 0" in self.rows else [],
            at("tail") + fresh * sum(self.gradients) if "tail" in self.rows else 0.0,
        )

    def _peak(self, features: Features, parts: _Parts, levels: Levels, fresh: bool) -> float:
        """As measured, if this plan ran with these features; else no more than others' peaks allow."""
        known = self.peaks.of(levels, fresh, features)
        if known is not None:
            return known
        bounds = self.peaks.bounds(levels, fresh, features, parts.held)
        return min([self._first_value(parts, levels, fresh), *bounds])

    def _first_value(self, parts: _Parts, levels: Levels, fresh: bool) -> float:
        gradients = self.gradients if fresh else ()
        blocks = [*zip(parts.held, levels, parts.largest, strict=True)]
        held = [own[level] for own, level, _ in blocks]
        shared = parts.shared * any(level != KEPT for level in levels)
        if parts.backward:
            again = [max(own[level], own[KEPT]) for own, level, _ in blocks]
            inside = in_backward(held, again, gradients)
            found = max(
                # What recomputed blocks share is there in any forward pass.
                parts.head + parts.shared + sum(held),
                shared + max(map(sum, zip(parts.backward, inside, strict=True))),
                parts.tail,
            )
        else:
            again = [
                own[KEPT] if level == KEPT else own[RECOMPUTED] + own[KEPT] + largest
                for own, level, largest in blocks
            ]
            inside = in_backward(held, again, gradients)
            found = parts.outside + shared + max(sum(held), *inside)
        return found * (1 + UNLIKE) if len(self.distinct) > 1 else found

    def _plans(
        self, peak_of: Callable[[Levels], float], available: float
    ) -> Iterator[tuple[float, float, Levels]]:
        """Cost, peak and levels of plans: first blocks whole, the next in part, the last always kept.

        In part are as few as fit beside those that are whole; more of them would only cost more.
        """
        n, tier = len(self.kinds), self.tier

        def at(full: int, partly: int) -> tuple[float, float, Levels]:
            levels = (RECOMPUTED,) * full + (PARTLY,) * partly + (KEPT,) * (n - full - partly)
            cost = float(full) if tier is None else full * tier.full_cost + partly * tier.cost
            return cost, peak_of(levels), levels

        partly = 0 if tier is None else n - 1
        for full in range(max(1, n)):
            partly = max(0, min(partly, n - 1 - full))
            one = at(full, partly)
            yield one
            while partly and one[1] <= available:
                one = at(full, partly - 1)
                yield one
                partly -= one[1] <= available

    def _solve(self, features: Features, size: int, static: float, fresh: bool) -> Choice:
        parts = self._parts(features, fresh)
        used = [self.rows[f"kept {kind}"].fit for kind in self.distinct]
        used.append(self.rows["outside"].fit)
        unsure = any(one.extrapolates(features) or not one.exact for one in used)
        margin = self.margin(unsure)
        available = self.budget - margin

        def peak_of(levels: Levels) -> float:
            return static + self._peak(features, parts, levels, fresh)

        plans = [*self._plans(peak_of, available)]
        least = min(plans, key=lambda one: one[1])
        fitting = [one for one in plans if one[1] <= available]
        if self.planner == "bucket_greedy":
            blocks = self._greedy(rounded_up(size), static, margin)
            peak = peak_of(self._levels(blocks))
            fits, selective = peak <= self.budget, tuple[int, ...]()
        else:
            fewest = min(  # of equal costs
                fitting or [least], key=lambda one: (one[0], sum(n != KEPT for n in one[2]), one[1])
            )
            _, peak, levels = fewest
            blocks, selective = (
                tuple(i for i, own in enumerate(levels) if own == level)
                for level in (RECOMPUTED, PARTLY)
            )
            fits = bool(fitting)
        enough = self.least_budget(least[1], unsure)
        return Choice(blocks, peak, margin, enough, fits, unsure, fresh=fresh, selective=selective)

    def _greedy(self, size: int, static: float, margin: float) -> tuple[int, ...]:
        """Mimose's choice: bytes of degree 2 in the size alone, and blocks in its order."""
        rows = [*self.rows["outside"].measured]

        def at(measured: Sequence[float]) -> float:
            second, first, constant = quadratic([row[1] / row[2] for row in rows], measured)
            return second * size**2 + first * size + constant

        step = at([self.predicted(row, ()) for row in rows])
        blocks = [at([self._predict(f"kept {kind}", row) for row in rows]) for kind in self.kinds]
        return tuple(bucket_greedy(blocks, step - (self.budget - margin - static)))

    def held_by(self, block: int, tiers: Sequence[str]) -> dict[str, float]:
        """Bytes of a block in the last collected step: `kept`, recomputed `whole`, or in a tier."""
        parts = {"kept": "kept", "whole": "stash", **{tier: tier for tier in tiers}}
        kind = self.kinds[block]
        rows = {name: self.rows[f"{part} {kind}"] for name, part in parts.items()}
        return {name: [*own.measured.values()][-1] for name, own in rows.items()}

    def offloaded(self, choice: Choice, features: Features, static: float, fresh: bool) -> Choice:
        """The plan of the smallest peak with its blocks' inputs on the machine, if that fits; else as is."""
        n = len(self.kinds)
        blocks = tuple(range(n - 1))
        parts = self._parts(features, fresh)
        last = parts.held[-1][KEPT]
        # Blocks one at a time: nothing is held before.
        pairs = zip(parts.held[:-1], parts.largest, strict=False)
        again = [own[KEPT] + own[RECOMPUTED] + largest for own, largest in pairs]
        own = in_backward([0.0] * n, [*again, last], self.gradients if fresh else ())
        outside = parts.backward or [parts.outside] * n
        peak = static + max(
            parts.head + parts.shared + last,
            parts.shared + max(map(sum, zip(outside, own, strict=True))),
            parts.tail,
        )
        if peak > self.budget - choice.margin:
            return replace(choice, predicted=peak)
        return replace(choice, blocks=blocks, selective=(), predicted=peak, offload=True)

    # -- correcting --------------------------------------------------------------------------------

    def measured(
        self, features: Features, choice: Choice, peak: float, reserved: float, static: float
    ) -> bool:
        """Take the measured peak of a planned step; whether everything is fitted again for it."""
        self.fragmented = max(self.fragmented, reserved - peak)
        levels = self._levels(choice.blocks, choice.selective)
        parts = self._parts(features, choice.fresh)
        own = peak - static
        off = own - self._peak(features, parts, levels, choice.fresh)
        if abs(off) <= OFF * peak:
            self.missed = max(self.missed, off)
            return False
        if off > 0:  # what bounded it no longer holds, and something outside the blocks has grown
            self.peaks.rows.clear()
            more = own - self._first_value(parts, levels, choice.fresh)
            grown = [part for part in self.rows if part.startswith(("outside", "head", "backward"))]
            for part in grown:
                self._keep(part, features, self._predict(part, features) + max(0.0, more))
        self.peaks.add(levels, choice.fresh, features, own)
        self.cache.clear()
        self.refits += 1
        return True
