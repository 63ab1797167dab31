"""`autocl plot`: one chart of a sweep as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from autocl_sweeper.cli.options import folder_argument, print_json, sweep_of

CHARTS = ("tree", "matrix", "timeline", "importances")
HELP = "one chart as SVG or PNG, for papers and slides"
DESCRIPTION = "Draw one chart of a sweep into a file, without a browser."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="a name that ends in .svg or .png (default: CHART.svg)",
    )
    parser.add_argument("--dark", action="store_true", help="for dark pages")
    chart = parser.add_argument("chart", help=f"what to draw: {', '.join(CHARTS)}")
    chart.completer = lambda **_: CHARTS  # type: ignore[attr-defined]  # argcomplete asks for it
    folder_argument(parser)
    parser.set_defaults(wrong=parser.error)


def run(given: argparse.Namespace) -> None:
    from autocl_sweeper.page.pictures import draw

    if given.chart not in CHARTS and str(given.folder) in CHARTS:  # the folder stands first
        given.chart, given.folder = str(given.folder), Path(given.chart)
    if given.chart not in CHARTS:
        given.wrong(f"there is no chart {given.chart!r}: choose from {', '.join(CHARTS)}")
    to = given.out if given.out is not None else Path(f"{given.chart}.svg")
    path = draw(sweep_of(given), given.chart, to, given.dark)
    if given.json:
        print_json({"picture": str(path), "bytes": path.stat().st_size})
    else:
        print(path)
