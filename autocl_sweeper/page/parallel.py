"""Parallel coordinates: a line a trial, through its parameters to its score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autocl_sweeper.overview import Overview
from autocl_sweeper.page.scale import STEP_SCALE, var
from autocl_sweeper.page.tree import scale_of
from autocl_sweeper.page.vega import WIDTH, Spec, chart, mark, trial_lines
from autocl_sweeper.page.words import bare_key, score, setting
from autocl_sweeper.types import State, Value

MOST_LINES = 400
APART = 110  # pixels between two axes, at least
SPREAD = 0.012  # of an axis, between trials of equal values
LOG_FROM = 30  # an axis whose largest value is so many times its smallest is logarithmic
ABSENT = -0.12  # where lines pass that have no value: below the axis


@dataclass(frozen=True)
class _Axis:
    """One parameter from its lowest to its highest value: 0 to 1, None for a value that is not set."""

    name: str
    at: Mapping[int, float | None]  # trial -> place
    low: str
    high: str

    @property
    def gaps(self) -> bool:
        return None in self.at.values()


def parallel(sweep: Overview) -> Spec | None:
    """The best trials as lines over their parameters. None: no two of them differ."""
    found = [t for t in sweep.history if t.state is State.COMPLETE and t.score is not None]
    kept = sorted(found, key=sweep.loss)[:MOST_LINES]
    keys = list(dict.fromkeys(key for trial in kept for key in trial.suggestion.params))
    axes = [
        axis
        for key in keys
        if (axis := _axis(bare_key(key), {t.number: t.suggestion.params.get(key) for t in kept},
                          {t.number for t in kept if key not in t.suggestion.params}))
    ]  # fmt: skip
    if len(kept) < 2 or not axes:
        return None
    if len({trial.stage for trial in kept}) > 1:
        stages = _axis("stage", {t.number: t.stage for t in kept}, set())
        axes = [*([stages] if stages else []), *axes]
    scores = {t.number: t.score for t in kept}
    last = _axis("score", scores, set(), of_score=True)
    axes = [*axes, *([last] if last else [])]
    scale = scale_of(sweep)
    order = sorted(kept, key=lambda t: (t.number in sweep.best, -sweep.loss(t)))
    points = [
        {
            "t": t.number, "a": n, "y": round(place if place is not None else ABSENT, 4),
            "s": scale.step(t.score), "b": int(t.number in sweep.best),
        }
        for t in order
        for n, axis in enumerate(axes)
        for place in [axis.at[t.number]]
    ]  # fmt: skip
    heads = [
        {"a": n, "name": a.name, "low": a.low, "high": a.high, "gap": "not set" if a.gaps else ""}
        for n, a in enumerate(axes)
    ]
    gap = any(axis.gaps for axis in axes)
    x = {"scale": "x", "field": "a"}
    return chart(
        "Parallel coordinates: a line a trial, from axis to axis through its parameters to its score.",
        250 if gap else 220,
        width=max(WIDTH - 80, APART * len(axes)),
        usermeta={"margin": 108, "least": APART * len(axes)},
        padding={"left": 40, "right": 40, "top": 4, "bottom": 4},
        data=[{"name": "points", "values": points}, {"name": "heads", "values": heads}],
        scales=[
            STEP_SCALE,
            {"name": "x", "type": "point", "domain": list(range(len(axes))), "range": "width"},
            {
                "name": "y", "type": "linear", "domain": [ABSENT if gap else 0, 1],
                "range": [{"signal": "height - 24"}, 42],
            },
        ],
        marks=[
            mark("rule", "heads", aria=False, x=x, y={"scale": "y", "value": 0},
                 y2={"scale": "y", "value": 1}, stroke=var("line")),
            trial_lines("points", x, (3.5, 2.4, 1.3)),
            *(
                mark("text", "heads", aria=False, interactive=False, x=x, y=y,
                     text={"field": field}, limit=APART - 6, align="center", fontSize=size,
                     fontWeight=weight, fill=var(colour))
                for field, size, weight, colour, y in (
                    ("name", 13, 600, "ink", 14), ("high", 11.5, 400, "soft", 32),
                    ("low", 11.5, 400, "soft", {"scale": "y", "value": 0, "offset": 16}),
                    ("gap", 11.5, 400, "soft", {"scale": "y", "value": ABSENT, "offset": 16}),
                )
            ),
        ],
    )  # fmt: skip


def _axis(
    name: str, values: Mapping[int, Value], absent: set[int], of_score: bool = False
) -> _Axis | None:
    """None where all trials have the same value."""
    present = {t: value for t, value in values.items() if t not in absent}
    distinct = {str(value) for value in present.values()}
    if len(distinct) < 2 and not (distinct and absent):
        return None
    numbers = {
        t: v for t, v in present.items()
        if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
    }  # fmt: skip
    if len(numbers) == len(present):
        least, most = min(numbers.values()), max(numbers.values())
        measure = math.log if least > 0 and most / least > LOG_FROM else float
        span = (measure(most) - measure(least)) or 1.0
        at = {t: (measure(v) - measure(least)) / span for t, v in numbers.items()}
        low, high = map(score if of_score else setting, (least, most))
    else:
        texts = sorted({setting(value) for value in present.values()})
        at = {t: texts.index(setting(v)) / max(1, len(texts) - 1) for t, v in present.items()}
        low, high = texts[0], texts[-1]
        if len(texts) > 2:
            low, high = f"{low}, …", f"… {high}"
    groups: dict[float, list[int]] = {}
    for t in sorted(at):
        groups.setdefault(at[t], []).append(t)
    places: dict[int, float | None] = dict.fromkeys(absent)
    for where, same in groups.items():
        for n, t in enumerate(same):
            # Spread towards the middle of the axis, so that no line leaves it.
            off = 0.0 if of_score else SPREAD * min(n, 6)
            places[t] = where + (off if where < 0.5 else -off)
    return _Axis(name, places, low, high)
