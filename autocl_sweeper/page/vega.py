"""What all charts have in common, as Vega (https://vega.github.io/vega/docs/) reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autocl_sweeper.page.scale import FONT, var

WIDTH = 1026  # of charts, in pixels
Spec = dict[str, Any]

CONFIG = {
    "axis": {
        "labelFont": FONT, "titleFont": FONT,
        "labelColor": var("soft"), "titleColor": var("soft"), "titleFontWeight": "normal",
        "domainColor": var("line"), "tickColor": var("line"), "gridColor": var("rule"),
        "labelFontSize": 12, "titleFontSize": 12,
    },
    "text": {"font": FONT, "fill": var("ink"), "fontSize": 13},
    "title": {"font": FONT},
}  # fmt: skip
# What lights one trial in every chart: its number, and the numbers of its lineage.
LIT: Sequence[Mapping[str, Any]] = ({"name": "lit", "value": -1}, {"name": "line", "value": []})


def chart(description: str, height: int, **parts: Any) -> Spec:
    """A whole specification; parts: what this chart has beside, or instead."""
    return {
        "$schema": "https://vega.github.io/schema/vega/v6.json",
        "description": description,
        "width": WIDTH,
        "height": height,
        "autosize": {"type": "pad", "contains": "padding"},
        "config": CONFIG,
        "signals": list(LIT),
        **parts,
    }


def mark(
    kind: str, data: str, aria: bool = True, interactive: bool = True, **channels: Any
) -> Spec:
    """A mark for each row of a table. Channels: constants, or references as Vega has them."""
    flags = {"aria": aria, "interactive": interactive}
    update = {
        name: one if isinstance(one, (dict, list)) else {"value": one}
        for name, one in channels.items()
    }
    return {
        "type": kind,
        "from": {"data": data},
        **{name: flag for name, flag in flags.items() if not flag},
        "encode": {"update": update},
    }


def cases(*tested: tuple[str, Any], otherwise: Any) -> list[Spec]:
    """The constant of the first expression that holds."""
    last = otherwise if isinstance(otherwise, dict) else {"value": otherwise}
    return [*({"test": test, "value": value} for test, value in tested), last]


def trial_lines(data: str, x: Spec, widths: tuple[float, float, float]) -> Spec:
    """A line for each trial in a table. widths: of the one that is lit, the best chain, others."""
    lit, best = "datum.t === lit", "datum.b"
    said = {"signal": "'trial ' + datum.t"}
    line = mark(
        "line", "line", x=x, y={"scale": "y", "field": "y"},
        stroke=cases(
            (lit, var("ink")), (best, var("best")), otherwise={"scale": "step", "field": "s"}
        ),
        strokeWidth=cases((lit, widths[0]), (best, widths[1]), otherwise=widths[2]),
        cursor="pointer", tooltip=said, description=said,
    )  # fmt: skip
    facet = {"name": "line", "data": data, "groupby": "t"}
    return {"type": "group", "from": {"facet": facet}, "marks": [line]}
