"""The lineage of a sweep as a chart: a column a stage, the best trial on top, links to parents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autocl_sweeper.overview import Overview
from autocl_sweeper.page.scale import STEP_SCALE, Scale, var
from autocl_sweeper.page.vega import LIT, Spec, cases, chart, mark
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

DONE, FAILED, GIVEN_UP, PRUNED, RUNNING = KINDS = (
    "done",
    "failed",
    "given up",
    "pruned",
    "running",
)
KIND_OF = {State.COMPLETE: DONE, State.FAIL: FAILED, State.PRUNED: PRUNED, State.RUNNING: RUNNING}
CROSS = "M-1,-1L1,1M1,-1L-1,1"
X, Y = {"field": "x"}, {"field": "y"}
BEST = "datum.b"  # the expression for a trial of the best chain


@dataclass(frozen=True)
class Layout:
    """What of a sweep is drawn, and where."""

    columns: Sequence[Sequence[Trial]]
    hidden: Sequence[Sequence[Trial]]  # of each column, what is not drawn

    @cached_property
    def row_of(self) -> dict[int, int]:
        return {t.number: row for column in self.columns for row, t in enumerate(column)}

    @cached_property
    def band(self) -> float:
        """Width of a column: a node, its score and its number."""
        numbers = max((len(str(number)) for number in self.row_of), default=0)
        scores = (len(short_score(trial.score)) for column in self.columns for trial in column)
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
    beam_width = max((len(beam) for beam in sweep.history.beams.values()), default=0)
    most = max(LEAST_ROWS, beam_width + 8)
    columns, hidden = [], []
    for stage in range(1, sweep.stages + 1):
        ranked = sweep.ranked(stage)
        drawn = ranked[:most] if len(ranked) <= most + 1 else ranked[: most - 1]
        drawn = [*drawn, *(t for t in ranked[len(drawn) :] if t.number in sweep.best)]
        known = {trial.number for trial in drawn}
        columns.append(drawn)
        hidden.append([trial for trial in ranked if trial.number not in known])
    return Layout(columns, hidden)


def kind_of(sweep: Overview, trial: Trial) -> str:
    if trial.number in sweep.history.given_up or is_skipped(trial):
        return GIVEN_UP
    return KIND_OF[trial.state]


def scale_of(sweep: Overview) -> Scale:
    """From the 2nd percentile of the scores to the best."""
    scores = [trial.score for trial in sweep.history if trial.score is not None]
    return Scale.of(scores, sweep.maximize, below=0.02)


def tree(sweep: Overview) -> Spec:
    """The Vega specification."""
    drawn = layout(sweep)
    best, in_beam, beams = sweep.best, sweep.in_beams, sweep.history.beams
    scale = scale_of(sweep)
    nodes, links = [], []
    for number, row in sorted(drawn.row_of.items(), key=lambda one: one[0] in best):
        trial, y = sweep.history[number], drawn.y(row)
        column = trial.stage - 1
        kind = kind_of(sweep, trial)
        text = short_score(trial.score) if kind in (DONE, PRUNED) else kind
        nodes.append(
            {
                "t": number, "c": column, "y": y, "s": max(0, scale.step(trial.score)),
                "k": kind, "b": int(number in best), "m": int(number in in_beam),
                "text": text, "tip": _tip(trial, kind),
            }
        )  # fmt: skip
        if (parent := trial.parent) is not None and parent in drawn.row_of:
            side = drawn.band if parent in in_beam else drawn.band - 20
            links.append(
                {
                    "t": number, "c1": sweep.history[parent].stage - 1, "side": side,
                    "y1": drawn.y(drawn.row_of[parent]), "c": column, "y2": y,
                    "b": int(number in best and parent in best),
                }
            )  # fmt: skip
    bands, heads, more = [], [], []
    for column, trials in enumerate(drawn.columns):
        stage = column + 1
        everything = sweep.history.stage(stage)
        title = f"{stage} · {clean(everything[0].task) or 'trials'}"
        heads.append({"c": column, "title": title, "sub": counted(len(everything), "trial")})
        if size := len(beams.get(stage, ())) or _open_beam(sweep, trials):
            bands.append({"c": column, "h": size * ROW + 4, "open": int(stage not in beams)})
        if hidden := drawn.hidden[column]:
            scores = [t.score for t in hidden if t.score is not None]
            to = f",\nto {score((min if sweep.maximize else max)(scores))}" if scores else ""
            y = drawn.y(len(trials))
            more.append({"c": column, "y": y, "text": f"{len(hidden):,} more{to}"})
    rest = 2 * LEFT + drawn.band
    return chart(
        "Lineage: each column is a stage, its best trial on top; lines lead from parents to the"
        " trials that start from them.",
        math.ceil(TOP + max(1, drawn.rows) * ROW),
        padding={"left": 4, "right": 4, "top": 2, "bottom": 4},
        autosize="none",
        signals=[
            *LIT,
            {"name": "apart", "value": round(drawn.step, 1)},
            {"name": "width", "update": f"{rest} + apart * {len(drawn.columns) - 1}"},
        ],
        usermeta={"columns": len(drawn.columns), "rest": rest + 10, "closest": drawn.closest},
        data=[
            {"name": "bands", "values": bands, "transform": [_x("x")]},
            {"name": "heads", "values": heads, "transform": [_x("x")]},
            {"name": "more", "values": more, "transform": [_x("x", NODE - 6)]},
            {"name": "nodes", "values": nodes, "transform": [_x("x", NODE)]},
            {"name": "links", "values": links, "transform": [
                _x("x1", "datum.side", of="c1"),
                _x("x2", NODE - 8),
                {
                    "type": "linkpath", "orient": "horizontal", "shape": "diagonal",
                    "sourceX": "x1", "sourceY": "y1", "targetX": "x2", "targetY": "y2",
                },
            ]},
        ],
        scales=[STEP_SCALE],
        marks=[*_backs(drawn.band), _links(), *_nodes(drawn.band), *_texts(drawn.band)],
    )  # fmt: skip


def _open_beam(sweep: Overview, trials: Sequence[Trial]) -> int:
    """How many trials of an open stage would be its beam if it were over now."""
    widest = sweep.fingerprint.get("hydra.sweeper.top_k") or 0
    ranked = [t for t in trials if t.state is State.COMPLETE and t.score is not None]
    return min(int(widest), len(ranked)) if sweep.status != "finished" else 0


def _tip(trial: Trial, kind: str) -> str:
    parent = "" if trial.parent is None else f", from trial {trial.parent}"
    told = f"score {score(trial.score)}" if trial.score is not None else kind
    return f"trial {trial.number}, stage {trial.stage} {clean(trial.task)}, {told}{parent}"


def _x(name: str, offset: float | str = 0, of: str = "c") -> Spec:
    """Where a row lies, from its column: their distance is a signal, so that a narrow page narrows it."""
    return {"type": "formula", "as": name, "expr": f"{LEFT} + apart * datum.{of} + {offset}"}


def _text(data: str, **channels: Any) -> Spec:
    return mark("text", data, aria=False, interactive=False, **channels)


def _backs(band: float) -> list[Spec]:
    return [
        mark("rect", "bands", aria=False, interactive=False, x=X, width=band,
             y=TOP - ROW / 2 - 2, height={"field": "h"}, cornerRadius=8, fill=var("band"),
             stroke=var("line"), strokeWidth=0.75,
             strokeDash=cases(("datum.open", [4, 3]), otherwise=[1, 0])),
        *(
            _text("heads", x=X, y=y, text={"field": field}, fontSize=size, fontWeight=weight,
                  limit={"signal": "min(apart - 10, width - datum.x)"}, fill=var(colour))
            for field, y, size, weight, colour in (
                ("title", 13, 13, 600, "ink"), ("sub", 30, 11.5, 400, "soft")
            )
        ),
        _text("more", x=X, y={"field": "y", "offset": 4}, text={"field": "text"}, lineBreak="\n",
              fontSize=11.5, fill=var("soft")),
    ]  # fmt: skip


def _links() -> Spec:
    lit = "indexof(line, datum.t) >= 0"
    return mark(
        "path", "links", aria=False, interactive=False, path={"field": "path"},
        stroke=cases((BEST, var("best")), (lit, var("ink")), otherwise=var("line")),
        strokeWidth=cases((BEST, 3), (lit, 2), otherwise=1.1),
        zindex={"signal": "datum.b ? 2 : 0"},
    )  # fmt: skip


def _nodes(band: float) -> list[Spec]:
    filled = "datum.k === 'done' || datum.k === 'pruned'"
    failed, pruned, given_up = (f"datum.k === '{kind}'" for kind in (FAILED, PRUNED, GIVEN_UP))
    return [
        # What the pointer meets: the whole row of a trial.
        mark("rect", "nodes", aria=False, x={**X, "offset": -12}, y={**Y, "offset": -ROW / 2},
             width=band - 4, height=ROW, cornerRadius=6, fill="transparent", cursor="pointer",
             tooltip={"field": "tip"},
             stroke=cases(("datum.t === lit", var("ink")), otherwise="transparent")),
        mark("symbol", "nodes", interactive=False, x=X, y=Y, description={"field": "tip"},
             shape=cases((failed, CROSS), (pruned, "triangle-down"), otherwise="circle"),
             size=cases((BEST, 120), (failed, 70), otherwise=108),
             fill=[{"test": filled, "scale": "step", "field": "s"}, {"value": "transparent"}],
             stroke=cases((BEST, var("best")), (filled, var("s5")), otherwise=var("fail")),
             strokeWidth=cases((BEST, 2.6), (filled, 1), otherwise=1.6),
             strokeDash=cases((given_up, [2.5, 2]), otherwise=[1, 0]),
             opacity=cases((pruned, 0.7), otherwise=1)),
        # A running trial: a ring with a dot.
        mark("symbol", "nodes", aria=False, interactive=False, x=X, y=Y, size=22, fill=var("link"),
             opacity={"signal": "datum.k === 'running' ? 1 : 0"}),
    ]  # fmt: skip


def _texts(band: float) -> list[Spec]:
    y = {**Y, "offset": 4}
    return [
        _text("nodes", x={**X, "offset": 13}, y=y, text={"field": "text"}, fontSize=12,
              fill=cases((BEST, var("best")), ("datum.k !== 'done'", var("fail")),
                         otherwise=var("ink")),
              fontWeight=cases((BEST, 700), otherwise=400)),
        _text("nodes", x={**X, "offset": band - NODE - 8}, y=y, align="right", fontSize=11,
              text={"signal": "datum.m || datum.b ? '#' + datum.t : ''"},
              fill=cases((BEST, var("best")), otherwise=var("soft"))),
    ]  # fmt: skip
