"""Each job on its device over time."""

from __future__ import annotations

from autocl_sweeper.device.probe import short
from autocl_sweeper.overview import Overview
from autocl_sweeper.page.scale import Spec, chart, var
from autocl_sweeper.page.words import clean
from autocl_sweeper.types import State

PARTED = 4  # pixels from which on a job has an edge
MOST_SPOKEN = 2000  # at most so many jobs get a label of their own for screen readers
UNITS = ((7200.0, 3600.0, "hours"), (300.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def lane_name(device: str) -> str:
    """`slot 1` for `cpu-0`; a GPU by the beginning of its id."""
    if device.startswith("cpu-") and device[4:].isdigit():
        return f"slot {int(device[4:]) + 1}"
    return clean(short(device))


def timeline(sweep: Overview) -> Spec | None:
    """Each job on its device over time. None: no job has begun."""
    lanes = sweep.lanes
    if not lanes:
        return None
    gone = sweep.as_of - sweep.begun
    unit, name = next((size, word) for least, size, word in UNITS if gone >= least)
    best = {trial.number for trial in sweep.chain}
    history = sweep.history
    jobs, waits = [], []
    for lane, attempts in lanes.items():
        for one in attempts:
            trial = history[one.trial]
            end = sweep.as_of if one.end is None else one.end
            kind = trial.stage % 2
            lost = one.failed or (trial.state is State.FAIL and one.number == trial.attempt)
            if one.trial in best and not lost:
                kind = 2
            elif lost:
                kind = 3
            elif one.trial in history.given_up:
                kind = 4
            row = {"t": one.trial, "lane": lane_name(lane), "k": kind}
            begin_u, end_u = (one.began - sweep.begun) / unit, (end - sweep.begun) / unit
            jobs.append({**row, "x": round(begin_u, 4), "x2": round(end_u, 4)})
            if one.began - one.asked > max(0.5, gone / 400):
                asked = (one.asked - sweep.begun) / unit
                waits.append(
                    {"lane": lane_name(lane), "x": round(asked, 4), "x2": round(begin_u, 4)}
                )
    jobs.sort(key=lambda job: job["k"] == 2)  # drawn last
    names = [lane_name(lane) for lane in lanes]
    band = {"scale": "lane", "field": "lane"}
    return chart(
        "Timeline: each job on its device, from its start to its end; gaps are idle time.",
        24 * len(names),
        usermeta={"margin": 84, "least": 240},
        padding={"left": 4, "right": 4, "top": 4, "bottom": 4},
        data=[
            {"name": "jobs", "values": jobs},
            {"name": "waits", "values": waits},
        ],
        scales=[
            {"name": "lane", "type": "band", "domain": names, "range": "height", "padding": 0.3},
            {
                "name": "x", "type": "linear", "domain": [0, max(gone / unit, 1e-3)],
                "range": "width",
            },
            {
                "name": "kind", "type": "ordinal", "domain": [0, 1, 2, 3, 4],
                "range": [var("s3"), var("s5"), var("best"), var("fail"), var("line")],
            },
        ],
        axes=[
            {
                "scale": "x", "orient": "bottom", "title": f"{name} since the sweep began",
                "tickCount": 8, "labelOverlap": True,
            },
            {"scale": "lane", "orient": "left", "domain": False, "ticks": False, "labelPadding": 8},
        ],
        marks=[
            {
                "type": "rect", "from": {"data": "waits"}, "aria": False, "interactive": False,
                "encode": {"update": {
                    "x": {"scale": "x", "field": "x"}, "x2": {"scale": "x", "field": "x2"},
                    "y": {**band, "offset": {"signal": "bandwidth('lane') / 2 - 1"}},
                    "height": {"value": 2}, "fill": {"value": var("line")},
                }},
            },
            {
                "type": "rect", "from": {"data": "jobs"}, "aria": len(jobs) <= MOST_SPOKEN,
                "encode": {"update": {
                    "x": {"scale": "x", "field": "x"}, "x2": {"scale": "x", "field": "x2"},
                    "y": band, "height": {"scale": "lane", "band": 1},
                    "cornerRadius": {"value": 2}, "fill": {"scale": "kind", "field": "k"},
                    "stroke": [
                        {"test": "datum.t === lit", "value": var("ink")}, {"value": var("card")},
                    ],
                    "strokeWidth": [{"test": "datum.t === lit", "value": 2},
                        {"test": f"scale('x', datum.x2) - scale('x', datum.x) > {PARTED}", "value": 0.7},
                        {"value": 0},],
                    "cursor": {"value": "pointer"},
                    "tooltip": {"signal": "'trial ' + datum.t"},
                    "description": {"signal": "'trial ' + datum.t + ' on ' + datum.lane"},
                }},
            },
        ],
    )  # fmt: skip
