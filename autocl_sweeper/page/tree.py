"""The lineage of a sweep as a chart: a column a stage, the best trial on top, links to parents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autocl_sweeper.overview import Overview
from autocl_sweeper.page.scale import LIT, STEP_SCALE, Scale, config, var
from autocl_sweeper.page.words import clean, counted, score, short_score
from autocl_sweeper.types import State, Trial, is_skipped

WIDTH = 1018.0
ROW = 25.0
TOP = 58.0  # the middle of the first row
LEFT, BAND = 5.0, 100.0
# A column is wider by this for each digit of a number beyond two, of a score beyond three.
DIGIT = 8.0
NODE = 17.0  # from a column's left edge to its nodes
CLOSEST, FARTHEST = 128.0, 240.0  # of two columns
LINK = 20.0  # between them, at least
LEAST_ROWS = 12

DONE, BEST_RING, FAILED, GIVEN_UP, PRUNED, RUNNING = (
    "done",
    "best",
    "failed",
    "given up",
    "pruned",
    "running",
)
CROSS = "M-1,-1L1,1M1,-1L-1,1"


@dataclass(frozen=True)
class Place:
    """A trial in the chart."""

    trial: Trial
    column: int
    row: int


@dataclass(frozen=True)
class Layout:
    """What of a sweep is drawn, and where."""

    places: Mapping[int, Place]
    columns: Sequence[Sequence[Trial]]
    hidden: Sequence[Sequence[Trial]]  # of each column, what is not drawn

    @cached_property
    def band(self) -> float:
        """Width of a column: a node, its score and its number."""
        numbers = max((len(str(number)) for number in self.places), default=0)
        scores = (len(short_score(place.trial.score)) for place in self.places.values())
        return BAND + DIGIT * (max(0, numbers - 2) + max(0, max(scores, default=0) - 4))

    @property
    def rows(self) -> int:
        more = any(self.hidden)
        return max((len(column) for column in self.columns), default=0) + more

    @property
    def step(self) -> float:
        """Pixels from a column to the next."""
        gaps = max(1, len(self.columns) - 1)
        return min(FARTHEST, max(self.closest, (WIDTH - self.band - 2 * LEFT) / gaps))

    @property
    def closest(self) -> float:
        return max(CLOSEST, self.band + LINK)

    @staticmethod
    def y(row: int) -> float:
        return TOP + row * ROW


def layout(sweep: Overview) -> Layout:
    """Beam in its order, then by score, failed last; trials of the best chain always."""
    best = {trial.number for trial in sweep.chain}
    beam_width = max((len(beam) for beam in sweep.history.beams.values()), default=0)
    most = max(LEAST_ROWS, beam_width + 8)
    places: dict[int, Place] = {}
    columns, hidden = [], []
    for stage in range(1, sweep.stages + 1):
        ranked = sweep.ranked(stage)
        drawn = ranked[:most] if len(ranked) <= most + 1 else ranked[: most - 1]
        drawn = [*drawn, *(t for t in ranked[len(drawn) :] if t.number in best)]
        known = {trial.number for trial in drawn}
        columns.append(drawn)
        hidden.append([trial for trial in ranked if trial.number not in known])
        for row, trial in enumerate(drawn):
            places[trial.number] = Place(trial, stage - 1, row)
    return Layout(places, columns, hidden)


def kind_of(sweep: Overview, trial: Trial) -> str:
    if trial.number in sweep.history.given_up or is_skipped(trial):
        return GIVEN_UP
    return {
        State.RUNNING: RUNNING,
        State.FAIL: FAILED,
        State.PRUNED: PRUNED,
        State.COMPLETE: DONE,
    }[trial.state]


def scale_of(sweep: Overview) -> Scale:
    """From the 2nd percentile of the scores to the best."""
    scores = [trial.score for trial in sweep.history if trial.score is not None]
    return Scale.of(scores, sweep.maximize, below=0.02)


def tree(sweep: Overview) -> dict[str, Any]:
    """The Vega specification."""
    drawn = layout(sweep)
    best = {trial.number for trial in sweep.chain}
    beams = sweep.history.beams
    in_beam = {number for beam in beams.values() for number in beam}
    scale = scale_of(sweep)
    nodes, links = [], []
    for number, place in sorted(drawn.places.items(), key=lambda one: one[0] in best):
        trial, y = place.trial, drawn.y(place.row)
        kind = kind_of(sweep, trial)
        text = short_score(trial.score) if kind in (DONE, PRUNED) else kind
        nodes.append(
            {
                "t": number, "c": place.column, "y": y, "s": max(0, scale.step(trial.score)),
                "k": kind, "b": int(number in best), "m": int(number in in_beam),
                "text": text, "tip": _tip(trial, kind),
            }
        )  # fmt: skip
        parent = None if trial.parent is None else drawn.places.get(trial.parent)
        if parent is not None:
            wide = parent.trial.number in in_beam
            side = drawn.band if wide else drawn.band - 20
            links.append(
                {
                    "t": number, "c1": parent.column, "side": side, "y1": drawn.y(parent.row),
                    "c": place.column, "y2": y,
                    "b": int(number in best and parent.trial.number in best),
                }
            )  # fmt: skip
    bands, heads, more = [], [], []
    for column, trials in enumerate(drawn.columns):
        stage = column + 1
        everything = sweep.history.stage(stage)
        heads.append(
            {
                "c": column,
                "title": f"{stage} · {clean(everything[0].task) or 'trials'}",
                "sub": counted(len(everything), "trial"),
            }
        )
        chosen = stage in beams
        size = len(beams.get(stage, ())) or _open_beam(sweep, trials)
        if size:
            bands.append({"c": column, "h": size * ROW + 4, "open": int(not chosen)})
        if hidden := drawn.hidden[column]:
            scores = [t.score for t in hidden if t.score is not None]
            to = f",\nto {score((min if sweep.maximize else max)(scores))}" if scores else ""
            y = drawn.y(len(trials))
            more.append({"c": column, "y": y, "text": f"{len(hidden):,} more{to}"})
    rest = 2 * LEFT + drawn.band
    return {
        "$schema": "https://vega.github.io/schema/vega/v6.json",
        "description": "Lineage: each column is a stage, its best trial on top; lines lead from"
        " parents to the trials that start from them.",
        "height": math.ceil(TOP + max(1, drawn.rows) * ROW),
        "padding": {"left": 4, "right": 4, "top": 2, "bottom": 4},
        "autosize": "none",
        "config": config(),
        "signals": [
            *LIT,
            {"name": "apart", "value": round(drawn.step, 1)},
            {"name": "width", "update": f"{rest} + apart * {len(drawn.columns) - 1}"},
        ],
        "usermeta": {"columns": len(drawn.columns), "rest": rest + 10, "closest": drawn.closest},
        "data": [
            {"name": "bands", "values": bands, "transform": [_x("x")]},
            {"name": "heads", "values": heads, "transform": [_x("x")]},
            {"name": "more", "values": more, "transform": [_x("x", NODE - 6)]},
            {"name": "nodes", "values": nodes, "transform": [_x("x", NODE)]},
            {
                "name": "links",
                "values": links,
                "transform": [
                    _x("x1", "datum.side", of="c1"),
                    _x("x2", NODE - 8),
                    {
                        "type": "linkpath", "orient": "horizontal", "shape": "diagonal",
                        "sourceX": "x1", "sourceY": "y1", "targetX": "x2", "targetY": "y2",
                    }
                ],
            },
        ],
        "scales": [STEP_SCALE],
        "marks": [*_backs(drawn.band), *_links(), *_nodes(drawn.band), *_texts(drawn.band)],
    }  # fmt: skip


def _open_beam(sweep: Overview, trials: Sequence[Trial]) -> int:
    """How many trials of an open stage would be its beam if it were over now."""
    widest = sweep.fingerprint.get("hydra.sweeper.top_k") or 0
    ranked = [t for t in trials if t.state is State.COMPLETE and t.score is not None]
    return min(int(widest), len(ranked)) if sweep.status != "finished" else 0


def _tip(trial: Trial, kind: str) -> str:
    parent = "" if trial.parent is None else f", from trial {trial.parent}"
    told = f"score {score(trial.score)}" if trial.score is not None else kind
    return f"trial {trial.number}, stage {trial.stage} {clean(trial.task)}, {told}{parent}"


def _x(name: str, offset: float | str = 0, of: str = "c") -> dict[str, Any]:
    """Where a row lies, from its column: their distance is a signal, so that a narrow page narrows it."""
    return {"type": "formula", "as": name, "expr": f"{LEFT} + apart * datum.{of} + {offset}"}


def _backs(band: float) -> list[dict[str, Any]]:
    return [
        {
            "type": "rect", "from": {"data": "bands"}, "interactive": False, "aria": False,
            "encode": {"update": {
                "x": {"field": "x"}, "width": {"value": band}, "y": {"value": TOP - ROW / 2 - 2},
                "height": {"field": "h"}, "cornerRadius": {"value": 8},
                "fill": {"value": var("band")}, "stroke": {"value": var("line")},
                "strokeWidth": {"value": 0.75},
                "strokeDash": [{"test": "datum.open", "value": [4, 3]}, {"value": [1, 0]}],
            }},
        },
        _text("heads", "title", 13, y=13, weight=600),
        _text("heads", "sub", 11.5, y=30, colour="soft"),
        {
            "type": "text", "from": {"data": "more"}, "interactive": False, "aria": False,
            "encode": {"update": {
                "x": {"field": "x"}, "y": {"field": "y", "offset": 4}, "text": {"field": "text"},
                "lineBreak": {"value": "\n"}, "fontSize": {"value": 11.5}, "fill": {"value": var("soft")},
            }},
        },
    ]  # fmt: skip


def _text(
    data: str, field: str, size: float, y: float, weight: int = 400, colour: str = "ink"
) -> dict[str, Any]:
    return {
        "type": "text", "from": {"data": data}, "interactive": False, "aria": False,
        "encode": {"update": {
            "x": {"field": "x"}, "y": {"value": y}, "text": {"field": field},
            "limit": {"signal": "min(apart - 10, width - datum.x)"}, "fontSize": {"value": size},
            "fontWeight": {"value": weight}, "fill": {"value": var(colour)},
        }},
    }  # fmt: skip


def _links() -> list[dict[str, Any]]:
    lit = "indexof(line, datum.t) >= 0"
    return [
        {
            "type": "path", "from": {"data": "links"}, "interactive": False, "aria": False,
            "encode": {"update": {
                "path": {"field": "path"},
                "stroke": [
                    {"test": "datum.b", "value": var("best")},
                    {"test": lit, "value": var("ink")},
                    {"value": var("line")},
                ],
                "strokeWidth": [
                    {"test": "datum.b", "value": 3}, {"test": lit, "value": 2}, {"value": 1.1},
                ],
                "zindex": {"signal": "datum.b ? 2 : 0"},
            }},
        },
    ]  # fmt: skip


def _nodes(band: float) -> list[dict[str, Any]]:
    filled = "datum.k === 'done' || datum.k === 'pruned'"
    return [
        {  # what the pointer meets: the whole row of a trial
            "type": "rect", "from": {"data": "nodes"}, "aria": False,
            "encode": {"update": {
                "x": {"field": "x", "offset": -12}, "y": {"field": "y", "offset": -ROW / 2},
                "width": {"value": band - 4}, "height": {"value": ROW}, "cornerRadius": {"value": 6},
                "fill": {"value": "transparent"}, "cursor": {"value": "pointer"},
                "tooltip": {"field": "tip"},
                "stroke": [{"test": "datum.t === lit", "value": var("ink")}, {"value": "transparent"}],
            }},
        },
        {
            "type": "symbol", "from": {"data": "nodes"}, "interactive": False,
            "encode": {"update": {
                "x": {"field": "x"}, "y": {"field": "y"},
                "description": {"field": "tip"},
                "shape": [
                    {"test": "datum.k === 'failed'", "value": CROSS},
                    {"test": "datum.k === 'pruned'", "value": "triangle-down"},
                    {"value": "circle"},
                ],
                "size": [{"test": "datum.b", "value": 120}, {"test": "datum.k === 'failed'", "value": 70},
                    {"value": 108},],
                "fill": [
                    {"test": filled, "scale": "step", "field": "s"}, {"value": "transparent"},
                ],
                "stroke": [
                    {"test": "datum.b", "value": var("best")},
                    {"test": filled, "value": var("s5")},
                    {"value": var("fail")},
                ],
                "strokeWidth": [
                    {"test": "datum.b", "value": 2.6}, {"test": filled, "value": 1}, {"value": 1.6},
                ],
                "strokeDash": [{"test": "datum.k === 'given up'", "value": [2.5, 2]}, {"value": [1, 0]}],
                "opacity": [{"test": "datum.k === 'pruned'", "value": 0.7}, {"value": 1}],
            }},
        },
        {  # a running trial: a ring with a dot
            "type": "symbol", "from": {"data": "nodes"}, "interactive": False, "aria": False,
            "encode": {"update": {
                "x": {"field": "x"}, "y": {"field": "y"}, "size": {"value": 22},
                "fill": {"value": var("link")},
                "opacity": {"signal": "datum.k === 'running' ? 1 : 0"},
            }},
        },
    ]  # fmt: skip


def _texts(band: float) -> list[dict[str, Any]]:
    colour = [
        {"test": "datum.b", "value": var("best")},
        {"test": "datum.k !== 'done'", "value": var("fail")},
        {"value": var("ink")},
    ]
    return [
        {
            "type": "text", "from": {"data": "nodes"}, "interactive": False, "aria": False,
            "encode": {"update": {
                "x": {"field": "x", "offset": 13}, "y": {"field": "y", "offset": 4},
                "text": {"field": "text"}, "fontSize": {"value": 12}, "fill": colour,
                "fontWeight": [{"test": "datum.b", "value": 700}, {"value": 400}],
            }},
        },
        {
            "type": "text", "from": {"data": "nodes"}, "interactive": False, "aria": False,
            "encode": {"update": {
                "x": {"field": "x", "offset": band - NODE - 8}, "y": {"field": "y", "offset": 4},
                "text": {"signal": "datum.m || datum.b ? '#' + datum.t : ''"},
                "align": {"value": "right"}, "fontSize": {"value": 11},
                "fill": [{"test": "datum.b", "value": var("best")}, {"value": var("soft")}],
            }},
        },
    ]  # fmt: skip
