"""`autocl export`: a sweep's trials where dashboards read them."""

from __future__ import annotations

import argparse

from autocl_sweeper.cli.options import Commands, folder_argument, json_option, print_json
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.overview import newest


def add(commands: Commands) -> None:
    export = commands.add_parser(
        "export",
        help="a sweep's trials for optuna-dashboard, TensorBoard or MLflow, from its journal",
        description="Write the trials of a sweep, over or not, where dashboards read them.",
    )
    export.add_argument(
        "--optuna", metavar="URL", help="a storage URL, or a journal file of Optuna"
    )
    export.add_argument(
        "--study-name", metavar="NAME", help="what the names of the studies begin with"
    )
    export.add_argument("--tensorboard", metavar="FOLDER", help="a folder for event files")
    export.add_argument(
        "--mlflow", metavar="URI", help="a tracking URI: sqlite:///runs.db, http://..."
    )
    export.add_argument(
        "--mlflow-experiment", metavar="NAME", help="the experiment there; default: autocl"
    )
    json_option(export)
    folder_argument(export)
    export.set_defaults(run=_export)


def _export(given: argparse.Namespace) -> None:
    from autocl_sweeper.export.afterwards import export
    from autocl_sweeper.export.places import Places

    if not (given.optuna or given.tensorboard or given.mlflow):
        raise ConfigurationError(
            "autocl export writes nothing without --optuna, --tensorboard or --mlflow."
        )
    folder = given.folder if given.folder is not None else newest()
    names = ("optuna", "tensorboard", "study_name", "mlflow", "mlflow_experiment")
    lines = export(folder, Places(**{name: getattr(given, name) for name in names}))
    if given.json:
        print_json({"written": lines})
        return
    for line in lines:
        print(line)
