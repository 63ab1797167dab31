"""What a job would need that differs from a finished one in micro-batch or length limit alone.

A job that trains under a memory plan leaves `memory_model.json`: bytes as linear functions of
features, [B*L^2, B*L, B, 1] and, of an encoder-decoder, [B*Lt^2, B*Lt, B*L*Lt].
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "memory_model.json"
MIB = 2**20
POWERS = (2, 1, 0, 0, 2, 1, 2)  # of the lengths in each feature; all but the constant grow with B
CONSTANT = 3


@dataclass(frozen=True)
class SizeModel:
    """Bytes of one step: outside of the blocks, kept and stashed by each block, shared, margin."""

    largest: tuple[float, ...]  # of each feature, in the batches that were seen
    outside: tuple[float, ...]
    shared: tuple[float, ...]
    kept: tuple[tuple[float, ...], ...]  # by block, in their order
    stash: tuple[tuple[float, ...], ...]
    margin: float

    def peak_mib(
        self,
        more_rows: float = 1.0,
        limits: tuple[float | None, float | None] = (None, None),
        budget_mib: float | None = None,
    ) -> float:
        """MiB at the peak of the largest batch, static part excluded.

        more_rows: times as many sequences in it. limits: of their length, before and now.
        budget_mib: what is left for the step, of a job that plans for that.
        """
        stretch = self._stretch(*limits)
        features = [
            seen * (1.0 if place == CONSTANT else more_rows * stretch ** POWERS[place])
            for place, seen in enumerate(self.largest)
        ]
        kept = [_bytes(one, features) for one in self.kept]
        stash = [_bytes(one, features) for one in self.stash]
        outside, shared = _bytes(self.outside, features), _bytes(self.shared, features)
        peaks = [
            outside + (shared if k else 0.0) + sum(stash[:k]) + sum(kept[k:])
            for k in range(max(1, len(kept)))
        ]
        if budget_mib is None:
            return peaks[0] / MIB
        fitting = (peak for peak in peaks if peak <= budget_mib * MIB - self.margin)
        return next(fitting, min(peaks)) / MIB

    def _stretch(self, before: float | None, now: float | None) -> float:
        """How much longer the longest sequence is: only what was cut at the limit grows with it."""
        rows = self.largest[2]
        seen = self.largest[1] / rows if rows else 0.0
        if not seen or not before or not now:
            return 1.0
        return now / seen if now < seen or seen >= before else 1.0


def _bytes(coefficients: Sequence[float], features: Sequence[float]) -> float:
    return max(0.0, sum(c * f for c, f in zip(coefficients, features, strict=True)))


def read_model(folder: Path) -> SizeModel | None:
    """The model that a job left in its folder; None where there is none, or none of this kind."""
    try:
        found = json.loads((folder / NAME).read_text("utf-8"))
        fits, kinds = found["fits"], found["kinds"]
        return SizeModel(
            largest=_numbers(fits["outside"]["high"]),
            outside=_numbers(fits["outside"]["coefficients"]),
            shared=_numbers(fits["shared"]["coefficients"]),
            kept=tuple(_numbers(fits[f"kept {kind}"]["coefficients"]) for kind in kinds),
            stash=tuple(_numbers(fits[f"stash {kind}"]["coefficients"]) for kind in kinds),
            margin=float(found["margin_bytes"]),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _numbers(found: Sequence[Any]) -> tuple[float, ...]:
    values = tuple(map(float, found))
    if len(values) not in (4, len(POWERS)) or not all(map(math.isfinite, values)):
        raise ValueError(f"{found} are not {len(POWERS)} numbers")
    return values
