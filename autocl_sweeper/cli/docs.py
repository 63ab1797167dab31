"""`autocl docs`: the documentation in the terminal."""

from __future__ import annotations

import argparse

from autocl_sweeper import manual
from autocl_sweeper.cli.options import Commands


def add(commands: Commands) -> None:
    docs = commands.add_parser(
        "docs",
        help="the documentation: its pages, one of them, or what is said about a key",
        description="Without an argument the pages are listed.",
    )
    docs.add_argument("key", nargs="?", help="a page (launcher) or a key (hydra.launcher.grace_s)")
    docs.set_defaults(run=_docs)


def _docs(given: argparse.Namespace) -> None:
    print(manual.index() if given.key is None else manual.lookup(given.key))
