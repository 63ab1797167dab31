"""`autocl compare`: sweeps side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from autocl_sweeper.cli.options import Commands, json_option


def add(commands: Commands) -> None:
    comparing = commands.add_parser(
        "compare",
        help="one table over sweeps: accuracy, forgetting, jobs, device-hours",
        description="Finished sweeps side by side, from their journals alone. Sweeps that differ in"
        " their seeds only are one row, with mean and 95 % t-interval.",
    )
    json_option(comparing)
    comparing.add_argument(
        "folders", nargs="+", type=Path, help="sweep folders: the hydra.sweep.dir of each"
    )
    comparing.set_defaults(run=_compare)


def _compare(given: argparse.Namespace) -> None:
    from autocl_sweeper.compare import compare
    from autocl_sweeper.display.comparison import as_json, print_comparison
    from autocl_sweeper.display.screen import screen

    rows = compare(given.folders)
    if given.json:
        print(as_json(rows))
        return
    print_comparison(rows, screen())
