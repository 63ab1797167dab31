"""`autocl plot`: one chart of a sweep as SVG or PNG, without a browser."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.outcome import write_whole
from autocl_sweeper.overview import Overview
from autocl_sweeper.page.document import refuse_without_packages
from autocl_sweeper.page.figures import bars, heat
from autocl_sweeper.page.influence import influence
from autocl_sweeper.page.matrices import matrices
from autocl_sweeper.page.scale import DARK, LIGHT, painted
from autocl_sweeper.page.timeline import timeline
from autocl_sweeper.page.tree import tree
from autocl_sweeper.page.vega import Spec

CHARTS = {  # and why a sweep may have nothing to draw
    "tree": "no trial has started.",
    "matrix": "its best chain has no scores by task (`eval`), or only one task.",
    "timeline": "no job has started.",
    "importances": "that takes a stage with two parameters that vary apart, in 8 suggestions or more.",
}
SUFFIXES = (".svg", ".png")
PNG_SCALE = 2.0  # pixels of a PNG for each of the chart


def draw(sweep: Overview, name: str, to: Path, dark: bool = False) -> Path:
    """Write one of CHARTS to a file. Raises ConfigurationError where the sweep has nothing to draw."""
    refuse_without_packages("autocl plot")
    if to.suffix not in SUFFIXES:
        raise ConfigurationError(
            f"'{to}' ends in neither .svg nor .png.\n  The ending of --out says which picture is drawn."
        )
    spec = chart_of(sweep, name)
    if spec is None:
        raise ConfigurationError(f"'{sweep.folder}' has no {name} to draw: {CHARTS[name]}")
    write_whole(to, picture(spec, to.suffix, dark))
    return to


def chart_of(sweep: Overview, name: str) -> Spec | None:
    """The specification of one of CHARTS; None where the sweep has nothing to draw."""
    if name == "tree":
        return tree(sweep) if len(sweep.history) else None
    if name == "timeline":
        return timeline(sweep)
    if name == "matrix":
        found = matrices(sweep)
        if (dev := found.dev) is None:
            return None
        rows = list(zip(dev.tasks, dev.rows, strict=True))
        title = "Score on each task (column) after each task (row)"
        return heat(rows, dev.tasks, found.scale, title)
    if (by_stage := influence(sweep).importances) is None:
        return None
    means = [(key, fmean(v for v in shares if v is not None)) for key, shares in by_stage.rows]
    return bars(means, "Importance of parameters, mean over stages (PED-ANOVA)")


def picture(spec: Spec, suffix: str, dark: bool) -> bytes:
    import vl_convert

    colours = DARK if dark else LIGHT
    drawn: dict[str, Any] = {**painted(spec, colours), "background": colours["card"]}
    if isinstance(padding := drawn.get("padding"), dict):
        drawn["padding"] = {side: value + 10 for side, value in padding.items()}
    if suffix == ".png":
        png: bytes = vl_convert.vega_to_png(drawn, scale=PNG_SCALE)
        return png
    svg: str = vl_convert.vega_to_svg(drawn)
    return svg.encode()
