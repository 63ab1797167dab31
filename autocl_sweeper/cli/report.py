"""`autocl report`: one HTML file of a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

from autocl_sweeper.cli.options import compare_option, folder_argument, print_json, sweep_of

HELP = "write report.html: result, lineage, forgetting, parameters, time, failures, all trials"
DESCRIPTION = "Write one HTML file of a sweep, finished or not, that loads nothing from a network."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to (default: report.html in the sweep's folder)",
    )
    compare_option(parser)
    folder_argument(parser)


def run(given: argparse.Namespace) -> None:
    from autocl_sweeper.page.document import write

    sweep = sweep_of(given)
    path = write(sweep, given.compare, given.out)
    if given.json:
        print_json({"report": str(path), "bytes": path.stat().st_size, "status": sweep.status})
    elif sweep.status == "finished":
        print(path)
    else:
        print(f"{path} (the sweep is {sweep.status}: as of its last event)")
