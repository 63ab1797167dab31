"""Seven steps of colour for scores, finer towards the best, and the colours themselves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

STEPS = 7

LIGHT = {
    "paper": "#fcfcfa", "card": "#ffffff", "band": "#eef3f8",
    "ink": "#1a2028", "soft": "#566070", "rule": "#dde2e8", "line": "#c3cbd5",
    "best": "#b8450b", "link": "#0b5394", "fail": "#6b7280",
    "s0": "#e6edf4", "s1": "#cbdbe9", "s2": "#a5c3dd", "s3": "#73a2ca", "s4": "#3b76a8",
    "s5": "#255f96", "s6": "#0d4375",
}  # fmt: skip
DARK = {
    "paper": "#11151a", "card": "#171c23", "band": "#1d2630",
    "ink": "#e8ecf1", "soft": "#9aa6b4", "rule": "#2a323c", "line": "#424d5a",
    "best": "#ff9a5c", "link": "#7db8ee", "fail": "#8d98a5",
    "s0": "#1d2a37", "s1": "#223c54", "s2": "#295174", "s3": "#336b98", "s4": "#4a8abb",
    "s5": "#7db0d8", "s6": "#bfdcf3",
}  # fmt: skip
FONT = "system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, Liberation Sans, sans-serif"


@dataclass(frozen=True)
class Scale:
    """From the worst score that has a step of its own to the best one."""

    worst: float
    best: float

    @classmethod
    def of(cls, scores: Iterable[float], maximize: bool, below: float = 0.0) -> Scale:
        """below: the share of scores that may lie under the worst step."""
        ordered = sorted((s for s in scores if math.isfinite(s)), reverse=not maximize)
        if not ordered:
            return cls(0.0, 0.0)
        return cls(ordered[int(below * (len(ordered) - 1))], ordered[-1])

    def step(self, score: float | None) -> int:
        """0 to 6: floor(7 (1 - sqrt((best - score) / (best - worst)))). -1: it has no score."""
        if score is None or not math.isfinite(score):
            return -1
        if self.best == self.worst:
            return STEPS - 1
        behind = min(1.0, max(0.0, (self.best - score) / (self.best - self.worst)))
        return min(STEPS - 1, math.floor(STEPS * (1 - math.sqrt(behind))))


def variables(colours: Mapping[str, str]) -> str:
    """CSS custom properties."""
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def var(name: str) -> str:
    """A colour that the page's theme decides, and `painted` for files."""
    return f"var(--{name})"


def painted(spec: Mapping[str, Any], colours: Mapping[str, str]) -> dict[str, Any]:
    """A chart whose colours are values, for files."""
    text = json.dumps(spec, allow_nan=False)
    for name, value in colours.items():
        text = text.replace(f'"var(--{name})"', f'"{value}"')
    found: dict[str, Any] = json.loads(text)
    return found


STEP_SCALE = {
    "name": "step", "type": "ordinal", "domain": list(range(STEPS)),
    "range": [var(f"s{n}") for n in range(STEPS)],
}  # fmt: skip
