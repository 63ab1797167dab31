"""`autocl docs`: the documentation in the terminal."""

from __future__ import annotations

import argparse

from autocl_sweeper import manual

HELP = "the documentation: its pages, one of them, or what is said about a key"
DESCRIPTION = "Without an argument the pages are listed."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "key", nargs="?", help="a page (launcher) or a key (hydra.launcher.grace_s)"
    )


def run(given: argparse.Namespace) -> None:
    print(manual.index() if given.key is None else manual.lookup(given.key))
