"""Matrix and importances as charts, for files: the page has tables of them."""

from __future__ import annotations

from collections.abc import Sequence

from autocl_sweeper.page.scale import STEP_SCALE, Scale, Spec, chart, var
from autocl_sweeper.page.words import score

FLIP = 4  # from this step on, text is that of the card


def heat(
    rows: Sequence[tuple[str, Sequence[float]]], columns: Sequence[str], scale: Scale, title: str
) -> Spec:
    """A coloured table of scores. rows: name and scores, as many as there are."""
    cells = [
        {
            "row": n,
            "column": m,
            "s": scale.step(v),
            "text": score(v),
            "flip": int(scale.step(v) >= FLIP),
        }
        for n, (_, values) in enumerate(rows)
        for m, v in enumerate(values)
    ]
    names = [name for name, _ in rows]
    longest = max(map(len, names), default=0)
    wide = max([58, *(8 * len(name) + 8 for name in columns)])
    place = {
        "x": {"scale": "x", "field": "column"}, "width": {"scale": "x", "band": 1},
        "y": {"scale": "y", "field": "row"}, "height": {"scale": "y", "band": 1},
    }  # fmt: skip
    labels = {"labelColor": var("ink"), "domain": False, "ticks": False, "labelFontSize": 13}
    return chart(
        title,
        34 * len(rows),
        width=wide * len(columns),
        title={"text": title, "anchor": "start", "color": var("ink"), "fontSize": 14, "offset": 10},
        padding=10,
        data=[{"name": "cells", "values": cells}],
        scales=[
            STEP_SCALE,
            {"name": "x", "type": "band", "domain": list(range(len(columns))), "range": "width"},
            {"name": "y", "type": "band", "domain": list(range(len(rows))), "range": "height"},
            {"name": "columns", "type": "ordinal", "domain": list(range(len(columns))), "range": list(columns)},
            {"name": "rows", "type": "ordinal", "domain": list(range(len(rows))), "range": names},
        ],
        axes=[
            {"scale": "x", "orient": "top", **labels, "labelPadding": 6,
             "encode": {"labels": {"update": {"text": {"signal": "scale('columns', datum.value)"}}}}},
            {"scale": "y", "orient": "left", **labels, "labelPadding": 8, "labelLimit": 9 * longest + 20,
             "encode": {"labels": {"update": {"text": {"signal": "scale('rows', datum.value)"}}}}},
        ],
        marks=[
            {
                "type": "rect", "from": {"data": "cells"},
                "encode": {"update": {
                    **place, "fill": {"scale": "step", "field": "s"}, "cornerRadius": {"value": 4},
                    "stroke": {"value": var("card")}, "strokeWidth": {"value": 2},
                }},
            },
            {
                "type": "text", "from": {"data": "cells"},
                "encode": {"update": {
                    "x": {"scale": "x", "field": "column", "band": 0.5},
                    "y": {"scale": "y", "field": "row", "band": 0.5, "offset": 1},
                    "align": {"value": "center"}, "baseline": {"value": "middle"},
                    "text": {"field": "text"},
                    "fill": [{"test": "datum.flip", "value": var("card")}, {"value": var("ink")}],
                }},
            },
        ],
    )  # fmt: skip


def bars(values: Sequence[tuple[str, float]], title: str) -> Spec:
    """Shares of 1 as bars, the largest first."""
    rows = [{"name": name, "v": round(v, 4), "text": f"{v:.0%}"} for name, v in values]
    y = {"scale": "y", "field": "name"}
    most = max((v for _, v in values), default=1.0)
    return chart(
        title,
        28 * len(rows),
        width=520,
        title={"text": title, "anchor": "start", "color": var("ink"), "fontSize": 14, "offset": 10},
        padding=10,
        data=[{"name": "rows", "values": rows}],
        scales=[
            {"name": "x", "type": "linear", "domain": [0, most], "range": "width"},
            {"name": "y", "type": "band", "domain": [name for name, _ in values], "range": "height",
             "padding": 0.25},
        ],
        axes=[{"scale": "y", "orient": "left", "domain": False, "ticks": False, "labelColor": var("ink"),
               "labelFontSize": 13, "labelPadding": 8, "labelLimit": 260}],
        marks=[
            {
                "type": "rect", "from": {"data": "rows"},
                "encode": {"update": {
                    "x": {"scale": "x", "value": 0}, "x2": {"scale": "x", "field": "v"}, "y": y,
                    "height": {"scale": "y", "band": 1}, "fill": {"value": var("s5")},
                    "cornerRadius": {"value": 3},
                }},
            },
            {
                "type": "text", "from": {"data": "rows"},
                "encode": {"update": {
                    "x": {"scale": "x", "field": "v", "offset": 6}, "text": {"field": "text"},
                    "y": {**y, "band": 0.5}, "baseline": {"value": "middle"}, "fill": {"value": var("soft")},
                }},
            },
        ],
    )  # fmt: skip
