"""`autocl report`: one HTML file of a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

from autocl_sweeper.cli.options import Commands, folder_argument, json_option, print_json, sweep_of


def add(commands: Commands) -> None:
    report = commands.add_parser(
        "report",
        help="write report.html: result, lineage, forgetting, parameters, time, failures, all trials",
        description="Write one HTML file of a sweep, finished or not, that loads nothing from a network.",
    )
    json_option(report)
    report.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to (default: report.html in the sweep's folder)",
    )
    report.add_argument(
        "--compare",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="another sweep to put beside it; may be given several times",
    )
    folder_argument(report)
    report.set_defaults(run=_report)


def _report(given: argparse.Namespace) -> None:
    from autocl_sweeper.page.document import write

    sweep = sweep_of(given)
    path = write(sweep, given.compare, given.out)
    if given.json:
        print_json({"report": str(path), "bytes": path.stat().st_size, "status": sweep.status})
        return
    so_far = (
        ""
        if sweep.status == "finished"
        else f" (the sweep is {sweep.status}: as of its last event)"
    )
    print(f"{path}{so_far}")
