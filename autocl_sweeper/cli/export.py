"""`autocl export`: a sweep's trials where dashboards read them."""

from __future__ import annotations

import argparse

from autocl_sweeper.cli.options import folder_argument, print_json
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.overview import newest

HELP = "a sweep's trials for optuna-dashboard, TensorBoard or MLflow, from its journal"
DESCRIPTION = "Write the trials of a sweep, over or not, where dashboards read them."
PLACES = {
    "optuna": ("URL", "a storage URL, or a journal file of Optuna"),
    "study_name": ("NAME", "what the names of the studies begin with"),
    "tensorboard": ("FOLDER", "a folder for event files"),
    "mlflow": ("URI", "a tracking URI: sqlite:///runs.db, http://..."),
    "mlflow_experiment": ("NAME", "the experiment there; default: autocl"),
}


def add(parser: argparse.ArgumentParser) -> None:
    for name, (metavar, text) in PLACES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=text)
    folder_argument(parser)


def run(given: argparse.Namespace) -> None:
    from autocl_sweeper.export.afterwards import export
    from autocl_sweeper.export.places import Places

    if not (given.optuna or given.tensorboard or given.mlflow):
        raise ConfigurationError(
            "autocl export writes nothing without --optuna, --tensorboard or --mlflow."
        )
    names = ("optuna", "tensorboard", "study_name", "mlflow", "mlflow_experiment")
    lines = export(
        given.folder or newest(), Places(**{name: getattr(given, name) for name in names})
    )
    if given.json:
        print_json({"written": lines})
    else:
        print(*lines, sep="\n")
