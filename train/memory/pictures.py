"""Simple charts as PNG files: points, lines and bars over two linear axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

WIDTH, HEIGHT = 960, 600  # pixels
LEFT, RIGHT, TOP, BOTTOM = 90, 30, 90, 70  # around the axes
COLOURS = ("#3366cc", "#dd7711", "#229955", "#aa44aa", "#996633", "#117788", "#cc3355")
LEVEL_COLOURS = ("#cc0000", "#777777", "#000000")
TICKS = 6  # about, on each axis


def ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Round numbers from `low` to `high`, which are in between or beyond the first and last.

    They are `least` or more apart.
    """
    if high <= low:
        high = low + 1
    raw = max((high - low) / TICKS, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass
class Chart:
    """Series by name, drawn in the order in which they were added."""

    title: str
    x_name: str
    y_name: str
    square: bool = False  # both axes have the same ends
    series: list[tuple[str, str, list[float], list[float]]] = field(default_factory=list)
    levels: list[tuple[str, float]] = field(default_factory=list)

    def add(
        self,
        name: str,
        xs: Sequence[float],
        ys: Sequence[float],
        kind: Literal["points", "line", "bars"] = "points",
    ) -> None:
        self.series.append((name, kind, [*map(float, xs)], [*map(float, ys)]))

    def level(self, name: str, y: float) -> None:
        """A dashed line at a height."""
        self.levels.append((name, float(y)))

    def save(self, path: Path) -> None:
        """Write the PNG whole."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self._draw(ImageDraw.Draw(image))
        aside = path.with_name(f".{path.name}")
        image.save(aside, format="PNG")
        aside.replace(path)

    @property
    def _bar(self) -> float:
        """The room of a bar: the smallest distance between two; 0 without bars."""
        places = sorted({x for _, kind, own, _ in self.series if kind == "bars" for x in own})
        gaps = [after - before for before, after in itertools.pairwise(places)]
        return min(gaps, default=1.0 if places else 0.0)

    def _draw(self, draw: Any) -> None:
        from PIL import Image, ImageDraw, ImageFont

        font, big = ImageFont.load_default(14), ImageFont.load_default(18)
        xs = [x for _, _, own, _ in self.series for x in own]
        ys = [y for _, _, _, own in self.series for y in own] + [y for _, y in self.levels]
        bar = self._bar / 2
        counts = 1.0 if bar else 0.0  # bars count something
        x_ticks = ticks(min(xs, default=0) - bar, max(xs, default=1) + bar)
        # A level is not on the frame.
        y_ticks = ticks(min([*ys, 0.0]), max(ys, default=1) * 1.03, counts)
        if self.square:
            x_ticks = y_ticks = ticks(min([*xs, *ys]), max([*xs, *ys]))

        def across(x: float) -> float:
            share = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
            return LEFT + share * (WIDTH - LEFT - RIGHT)

        def up(y: float) -> float:
            share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
            return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

        for x in x_ticks:
            draw.line((across(x), TOP, across(x), HEIGHT - BOTTOM), fill="#eeeeee")
            draw.text((across(x), HEIGHT - BOTTOM + 8), f"{x:g}", "black", font, anchor="ma")
        for y in y_ticks:
            draw.line((LEFT, up(y), WIDTH - RIGHT, up(y)), fill="#eeeeee")
            draw.text((LEFT - 8, up(y)), f"{y:g}", "black", font, anchor="rm")
        draw.rectangle((LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM), outline="#888888")
        middle = (LEFT + WIDTH - RIGHT) / 2
        draw.text((middle, 12), self.title, "black", big, anchor="ma")
        draw.text((middle, HEIGHT - 14), self.x_name, "black", font, anchor="ms")
        label = Image.new("L", (HEIGHT - TOP - BOTTOM, 20), 0)
        ImageDraw.Draw(label).text((label.width / 2, 10), self.y_name, 255, font, anchor="mm")
        draw.bitmap((8, TOP), label.rotate(90, expand=True), fill="black")

        colours = itertools.cycle(LEVEL_COLOURS)
        levels = [(f"- - {name}", y, next(colours)) for name, y in self.levels]
        for _, y, colour in levels:  # points lie over them
            for x in range(LEFT, WIDTH - RIGHT, 12):
                draw.line((x, up(y), min(x + 7, WIDTH - RIGHT), up(y)), fill=colour, width=2)
        series = [*zip(self.series, itertools.cycle(COLOURS), strict=False)]
        for (_, kind, own_x, own_y), colour in series:
            spots = [(across(x), up(y)) for x, y in zip(own_x, own_y, strict=True)]
            if kind == "bars":
                half = max(1.0, (across(bar) - across(0)) * 0.8)
                for x, y in spots:
                    draw.rectangle((x - half, y, x + half, up(0)), fill=colour)
                continue
            if kind == "line" and len(spots) > 1:
                draw.line(spots, fill=colour, width=2)
            for x, y in spots:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        legend = [(name, colour) for (name, *_), colour in series]
        x = float(LEFT)
        for name, colour in legend + [(name, colour) for name, _, colour in levels]:
            draw.rectangle((x, 56, x + 12, 68), fill=colour)
            draw.text((x + 18, 62), name, "black", font, anchor="lm")
            x += 18 + draw.textlength(name, font) + 24
