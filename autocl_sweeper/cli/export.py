"""`autocl export`: a sweep's trials where dashboards read them."""

from __future__ import annotations

import argparse

from autocl_sweeper.cli.options import Commands, folder_argument, json_option, print_json
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.overview import newest


def add(commands: Commands) -> None:
    export = commands.add_parser(
        "export",
        help="a sweep's trials for optuna-dashboard or TensorBoard, from its journal",
        description="Write the trials of a sweep, over or not, where dashboards read them.",
    )
    export.add_argument(
        "--optuna", metavar="URL", help="a storage URL, or a journal file of Optuna"
    )
    export.add_argument(
        "--study-name", metavar="NAME", help="what the names of the studies begin with"
    )
    export.add_argument("--tensorboard", metavar="FOLDER", help="a folder for event files")
    json_option(export)
    folder_argument(export)
    export.set_defaults(run=_export)


def _export(given: argparse.Namespace) -> None:
    from autocl_sweeper.export.afterwards import export
    from autocl_sweeper.export.places import Places

    if not (given.optuna or given.tensorboard):
        raise ConfigurationError("autocl export writes nothing without --optuna or --tensorboard.")
    folder = given.folder if given.folder is not None else newest()
    lines = export(folder, Places(given.optuna, given.tensorboard, given.study_name))
    if given.json:
        print_json({"written": lines})
        return
    for line in lines:
        print(line)
