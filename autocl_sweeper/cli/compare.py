"""`autocl compare`: sweeps side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "one table over sweeps: accuracy, forgetting, jobs, device-hours"
DESCRIPTION = (
    "Finished sweeps side by side, from their journals alone. Sweeps that differ in"
    " their seeds only are one row, with mean and 95 % t-interval."
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", type=Path, help="sweep folders: the hydra.sweep.dir of each"
    )


def run(given: argparse.Namespace) -> None:
    from autocl_sweeper.compare import compare
    from autocl_sweeper.display.comparison import as_json, print_comparison
    from autocl_sweeper.display.screen import screen

    rows = compare(given.folders)
    if given.json:
        print(as_json(rows))
    else:
        print_comparison(rows, screen())
