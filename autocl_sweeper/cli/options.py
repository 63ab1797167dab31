"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from autocl_sweeper.overview import Overview, look, newest

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = Any


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same for programs")


def folder_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="the sweep's folder (hydra.sweep.dir); default: this one, or the newest in multirun/",
    )


def sweep_of(given: argparse.Namespace) -> Overview:
    """The sweep a command is about. Raises SweepFolderError."""
    return look(given.folder if given.folder is not None else newest())


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Strict JSON: what is not finite is null."""
    print(json.dumps(_strict(value), indent=2, allow_nan=False))


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(one) for one in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
