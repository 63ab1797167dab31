"""What several commands share."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autocl_sweeper.overview import Overview, look, newest


def folder_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="the sweep's folder (hydra.sweep.dir); default: this one, or the newest in multirun/",
    )


def compare_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compare",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="another sweep to put beside it; may be given several times",
    )


def sweep_of(given: argparse.Namespace) -> Overview:
    """The sweep a command is about. Raises SweepFolderError."""
    return look(given.folder or newest())


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Strict JSON: what is not finite is null."""
    print(json.dumps(_strict(value), indent=2, allow_nan=False))


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
