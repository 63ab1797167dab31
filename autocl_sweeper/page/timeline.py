"""Each job on its device over time."""

from __future__ import annotations

from autocl_sweeper.device.probe import short
from autocl_sweeper.overview import Overview
from autocl_sweeper.page.load import load
from autocl_sweeper.page.scale import var
from autocl_sweeper.page.vega import Spec, cases, chart, mark
from autocl_sweeper.page.words import clean
from autocl_sweeper.types import State

PARTED = 4  # pixels from which on a job has an edge
MOST_SPOKEN = 2000  # at most so many jobs get a label of their own for screen readers
JOB, STRIP = 17, 22  # pixels of a job and, below it, of what was sampled of its device
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
    gone = sweep.open_s(sweep.as_of)
    unit, name = next((size, word) for least, size, word in UNITS if gone >= least)
    history = sweep.history
    jobs, waits = [], []
    for lane, attempts in lanes.items():
        for one in attempts:
            trial = history[one.trial]
            end = sweep.as_of if one.end is None else one.end
            kind = trial.stage % 2
            lost = one.failed or (trial.state is State.FAIL and one.number == trial.attempt)
            if one.trial in sweep.best and not lost:
                kind = 2
            elif lost:
                kind = 3
            elif one.trial in history.given_up:
                kind = 4
            row = {"t": one.trial, "lane": lane_name(lane), "k": kind}
            begin_u, end_u = sweep.open_s(one.began) / unit, sweep.open_s(end) / unit
            jobs.append({**row, "x": round(begin_u, 4), "x2": round(end_u, 4)})
            if one.began - one.asked > max(0.5, gone / 400):
                asked_u = round(sweep.open_s(one.asked) / unit, 4)
                waits.append({"lane": lane_name(lane), "x": asked_u, "x2": round(begin_u, 4)})
    sampled = [
        {
            "lane": lane_name(device),
            "x": round(max(0.0, sweep.open_s(one.begin)) / unit, 4),
            "x2": round(min(gone, sweep.open_s(one.end)) / unit, 4),
            "u": one.utilisation,
            "m": one.memory,
        }
        for device, stretches in load(sweep).items()
        for one in stretches
    ]
    ends = (sweep.open_s(end) for _, end in sweep.pauses if end < sweep.as_of)
    paused = [round(end / unit, 4) for end in ends if end < gone]
    since = f"{name} since the sweep began{', without pauses (dashed)' if paused else ''}"
    height = {"value": JOB} if sampled else {"scale": "lane", "band": 1}
    jobs.sort(key=lambda job: job["k"] == 2)  # drawn last
    names = [lane_name(lane) for lane in lanes]
    band = {"scale": "lane", "field": "lane"}
    x, x2 = ({"scale": "x", "field": field} for field in ("x", "x2"))
    lit = "datum.t === lit"
    wide = f"scale('x', datum.x2) - scale('x', datum.x) > {PARTED}"
    return chart(
        "Timeline: each job on its device, from its start to its end; gaps are idle time.",
        (JOB + STRIP + 12 if sampled else 24) * len(names),
        usermeta={"margin": 84, "least": 240},
        padding={"left": 4, "right": 4, "top": 4, "bottom": 4},
        data=[
            {"name": "jobs", "values": jobs},
            {"name": "waits", "values": waits},
            {"name": "sampled", "values": sampled},
            {"name": "pauses", "values": [{"x": place} for place in paused]},
        ],
        scales=[
            {"name": "lane", "type": "band", "domain": names, "range": "height",
             "paddingInner": 0.2 if sampled else 0.3, "paddingOuter": 0.1 if sampled else 0.3},
            {"name": "x", "type": "linear", "domain": [0, max(gone / unit, 1e-3)], "range": "width"},
            {
                "name": "kind", "type": "ordinal", "domain": [0, 1, 2, 3, 4],
                "range": [var("s3"), var("s5"), var("best"), var("fail"), var("line")],
            },
        ],
        axes=[
            {"scale": "x", "orient": "bottom", "title": since, "tickCount": 8, "labelOverlap": True},
            {"scale": "lane", "orient": "left", "domain": False, "ticks": False, "labelPadding": 8},
        ],
        marks=[
            *(_of_samples(x, x2) if sampled else ()),
            mark("rule", "pauses", aria=False, x=x, y=0, y2={"signal": "height"},
                 stroke=var("soft"), strokeDash={"value": [3, 3]}, tooltip="stopped and continued"),
            mark("rect", "waits", aria=False, interactive=False, x=x, x2=x2, height=2,
                 y={**band, "offset": JOB / 2 - 1 if sampled else {"signal": "bandwidth('lane') / 2 - 1"}},
                 fill=var("line")),
            mark("rect", "jobs", aria=len(jobs) <= MOST_SPOKEN, x=x, x2=x2, y=band, height=height,
                 cornerRadius=2, fill={"scale": "kind", "field": "k"},
                 stroke=cases((lit, var("ink")), otherwise=var("card")),
                 strokeWidth=cases((lit, 2), (wide, 0.7), otherwise=0), cursor="pointer",
                 tooltip={"signal": "'trial ' + datum.t"},
                 description={"signal": "'trial ' + datum.t + ' on ' + datum.lane"}),
        ],
    )  # fmt: skip


def _of_samples(x: Spec, x2: Spec) -> list[Spec]:
    """Utilisation as an area, memory as a line, in the strip below the jobs of a device."""
    base = f"scale('lane', datum.lane) + {JOB + 2 + STRIP}"
    told = {
        "signal": "datum.lane + (datum.u == null ? '' : ', utilisation ' + format(datum.u, '.0%'))"
        " + (datum.m == null ? '' : ', memory ' + format(datum.m, '.0%'))"
    }
    return [
        mark("rect", "sampled", aria=False, x=x, x2=x2, fill=var("s2"), tooltip=told,
             y={"signal": f"{base} - {STRIP} * (datum.u || 0)"}, y2={"signal": base}),
        mark("rect", "sampled", aria=False, interactive=False, x=x, x2=x2, height=1.5,
             y={"signal": f"{base} - {STRIP} * (datum.m || 0) - 1"}, fill=var("link"),
             opacity=cases(("datum.m == null", 0), otherwise=1)),
    ]  # fmt: skip
