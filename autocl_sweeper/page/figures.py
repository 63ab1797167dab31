"""Matrix and importances as charts, for files: the page has tables of them."""

from __future__ import annotations

from collections.abc import Sequence

from autocl_sweeper.page.scale import STEP_SCALE, Scale, var
from autocl_sweeper.page.vega import Spec, cases, chart, mark
from autocl_sweeper.page.words import score

FLIP = 4  # from this step on, text is that of the card


def heat(
    rows: Sequence[tuple[str, Sequence[float]]], columns: Sequence[str], scale: Scale, title: str
) -> Spec:
    """A coloured table of scores. rows: name and scores, as many as there are."""
    cells = [
        {"row": n, "column": m, "s": step, "text": score(v), "flip": int(step >= FLIP)}
        for n, (_, values) in enumerate(rows)
        for m, v in enumerate(values)
        for step in [scale.step(v)]
    ]
    names = [name for name, _ in rows]
    longest = max(map(len, names), default=0)
    wide = max([58, *(8 * len(name) + 8 for name in columns)])
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
            mark("rect", "cells", x={"scale": "x", "field": "column"}, width={"scale": "x", "band": 1},
                 y={"scale": "y", "field": "row"}, height={"scale": "y", "band": 1},
                 fill={"scale": "step", "field": "s"}, cornerRadius=4, stroke=var("card"),
                 strokeWidth=2),
            mark("text", "cells", x={"scale": "x", "field": "column", "band": 0.5},
                 y={"scale": "y", "field": "row", "band": 0.5, "offset": 1}, align="center",
                 baseline="middle", text={"field": "text"},
                 fill=cases(("datum.flip", var("card")), otherwise=var("ink"))),
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
            mark("rect", "rows", x={"scale": "x", "value": 0}, x2={"scale": "x", "field": "v"}, y=y,
                 height={"scale": "y", "band": 1}, fill=var("s5"), cornerRadius=3),
            mark("text", "rows", x={"scale": "x", "field": "v", "offset": 6}, text={"field": "text"},
                 y={**y, "band": 0.5}, baseline="middle", fill=var("soft")),
        ],
    )  # fmt: skip
