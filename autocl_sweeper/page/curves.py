"""What jobs reported on their way, a panel a stage."""

from __future__ import annotations

import math

from autocl_sweeper.overview import Overview
from autocl_sweeper.page.scale import STEP_SCALE
from autocl_sweeper.page.tree import scale_of
from autocl_sweeper.page.vega import WIDTH, Spec, chart, trial_lines
from autocl_sweeper.page.words import clean

MOST_CURVES, MOST_POINTS = 200, 50


def curves(sweep: Overview) -> Spec | None:
    """What jobs reported on their way, a panel a stage. None: nothing was reported."""
    history = sweep.history
    told = [t for t in history if len(history.reports(t.number)) > 1]
    if not told:
        return None
    told.sort(key=lambda t: (t.number not in sweep.best, sweep.loss(t)))
    told = told[:MOST_CURVES][::-1]
    stages = sorted({trial.stage for trial in told})
    scale = scale_of(sweep)
    points = []
    for trial in told:
        reports = [r for r in history.reports(trial.number) if math.isfinite(r.score)]
        every = max(1, math.ceil(len(reports) / MOST_POINTS))
        for report in [*reports[::every], *reports[-1:]]:
            points.append(
                {
                    "t": trial.number, "stage": trial.stage, "x": report.step,
                    "y": float(f"{report.score:.5g}"), "s": max(0, scale.step(trial.score)),
                    "b": int(trial.number in sweep.best),
                }
            )  # fmt: skip
    names = {str(s): f"{s} · {clean(history.stage(s)[0].task) or 'trials'}" for s in stages}
    gap, wide = 24, (WIDTH - 60) / len(stages)
    return chart(
        "Learning curves: reported scores by step, a panel a stage.",
        200,
        usermeta={"margin": 60, "least": 150 * len(stages)},
        padding={"left": 4, "right": 4, "top": 4, "bottom": 4},
        data=[{"name": "points", "values": points}],
        scales=[
            STEP_SCALE,
            {
                "name": "y", "type": "linear", "zero": False, "nice": True, "range": "height",
                "domain": {"data": "points", "field": "y"},
            },
            {
                "name": "panel", "type": "band", "domain": stages, "range": "width",
                "paddingInner": min(0.5, gap / max(wide, 1)),
            },
        ],
        axes=[{"scale": "y", "orient": "left", "grid": True, "tickCount": 5, "domain": False}],
        marks=[{
            "type": "group",
            "from": {"facet": {"name": "of_stage", "data": "points", "groupby": "stage"}},
            "encode": {"update": {
                "x": {"scale": "panel", "field": "stage"}, "y": {"value": 0},
                "width": {"scale": "panel", "band": 1}, "height": {"signal": "height"},
            }},
            "signals": [{"name": "width", "update": "bandwidth('panel')"}],
            "scales": [
                {"name": "names", "type": "ordinal", "domain": list(map(int, names)),
                 "range": list(names.values())},
                {"name": "x", "type": "linear", "zero": True, "range": "width",
                 "domain": {"data": "of_stage", "field": "x"}},
            ],
            "axes": [{
                "scale": "x", "orient": "bottom", "tickCount": 4, "titleLimit": {"signal": "width"},
                "title": {"signal": "scale('names', parent.stage) + ', step'"},
            }],
            "marks": [trial_lines("of_stage", {"scale": "x", "field": "x"}, (3, 2.6, 1.2))],
        }],
    )  # fmt: skip
