"""`autocl serve`: the report of a running sweep, live in a browser."""

from __future__ import annotations

import argparse
import sys

from autocl_sweeper.cli.options import compare_option, folder_argument, print_json, sweep_of

HELP = "the report in a browser on this machine, refreshed as the sweep goes on"
DESCRIPTION = (
    "Serve the report of a sweep until Ctrl-C. Only this machine sees it, unless"
    " --address names another one: then its URL has a token."
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8642, help="default: 8642; 0: any free one")
    parser.add_argument(
        "--address",
        default="127.0.0.1",
        help="where to listen (default: 127.0.0.1, this machine alone)",
    )
    compare_option(parser)
    folder_argument(parser)


def run(given: argparse.Namespace) -> None:
    from autocl_sweeper.page.server import ReportServer

    folder = sweep_of(given).folder
    with ReportServer(folder, given.compare, given.address, given.port) as server:
        if given.json:
            print_json({"url": server.url})
        else:
            print(f"{server.url}  (Ctrl-C ends it)")
        sys.stdout.flush()  # what reads the address from a pipe must not wait for the end
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
