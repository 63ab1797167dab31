"""Matrices of scores and of weights: a row per target, a column per source; files and a picture.

    target<TAB><source>...        12 significant digits; nan where a source was left out

result.json has the same numbers with all that they depend on. Every file is written whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from train.merge.plan import Scores, write_whole
from train.merge.rules import MergeError

Matrix: TypeAlias = Mapping[str, Mapping[str, float]]  # target -> source -> value


def write_tsv(path: Path, matrix: Matrix, sources: Sequence[str]) -> None:
    lines = ["\t".join(["target", *sources])]
    for target, row in matrix.items():
        numbers = (row.get(source, math.nan) for source in sources)
        lines.append("\t".join([target, *(f"{value:.12g}" for value in numbers)]))
    write_whole(path, "\n".join(lines) + "\n")


def read_scores(path: str, target: str | None, method: str) -> Scores:
    """The scores of one method for one target, of a result.json. Raises MergeError."""
    try:
        told: Any = json.loads(Path(path).read_text())
        rows = told["targets"]
        if target not in rows:
            raise MergeError(
                f"merge.scores={path} has no target '{target}': it has {', '.join(rows)}"
            )
        known = rows[target]["scores"]
        wanted = told["method"] if method == "best_single" else method
        if wanted not in known:
            raise MergeError(
                f"merge.scores={path} has no {wanted} of '{target}': it has {', '.join(known)}"
            )
        hashes = {name: one["sha256"] for name, one in told["sources"].items()}
        own = rows[target]
        losses = {float(t): loss for t, loss in own.get("dev_losses", {}).items()}
        return Scores(
            wanted, told["reduction"], told["signs"][wanted], known[wanted], hashes,
            own["blocks"], losses,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, MergeError):
            raise
        raise MergeError(f"merge.scores={path} cannot be read: {error!r}") from error


CELL, MARGIN, SIDE = 26, 8, 150  # pixels


def grouped(targets: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Targets group by group, in the order of `groups`; those of none come last."""
    found = [[one for one in targets if one in members] for members in groups.values()]
    placed = {one for part in found for one in part}
    return [part for part in [*found, [one for one in targets if one not in placed]] if part]


def heat_map(
    path: Path,
    weights: Matrix,
    sources: Sequence[str],
    margin: Mapping[str, float],
    groups: Mapping[str, Sequence[str]] | None = None,
    title: str = "ESS",
) -> None:
    """A PNG: x is the source, y the target, white to blue is 0 to 1; no own source.

    margin: a number behind each row, below `title`. groups: their rows stand together, a line between them.
    """
    from PIL import Image, ImageDraw

    parts = grouped([*weights], groups or {})
    rows = [target for part in parts for target in part]
    ends = {part[-1] for part in parts[:-1]}
    width = SIDE + CELL * len(sources) + 60 + 2 * MARGIN
    height = SIDE + CELL * len(rows) + 2 * MARGIN
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for j, name in enumerate(sources):
        label = Image.new("RGB", (SIDE, 14), "white")
        ImageDraw.Draw(label).text((0, 1), name[:24], fill="black")
        image.paste(label.rotate(90, expand=True), (MARGIN + SIDE + j * CELL + 6, MARGIN))
    draw.text((MARGIN + SIDE + len(sources) * CELL + 8, MARGIN + SIDE - 14), title, fill="black")
    for i, target in enumerate(rows):
        y = MARGIN + SIDE + i * CELL
        draw.text((MARGIN, y + 7), target[:24], fill="black")
        draw.text(
            (MARGIN + SIDE + len(sources) * CELL + 8, y + 7), f"{margin[target]:.1f}", fill="black"
        )
        for j, source in enumerate(sources):
            value = weights[target].get(source)
            x = MARGIN + SIDE + j * CELL
            if value is not None:
                shade = round(255 * (1 - max(0.0, min(1.0, value))))
                draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), fill=(shade, shade, 255))
            draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), outline="lightgrey")
        if target in ends:
            draw.line((MARGIN, y + CELL - 1, width - MARGIN, y + CELL - 1), fill="black")
    aside = path.with_name(f".{path.name}")
    image.save(aside, format="PNG")
    aside.replace(path)
