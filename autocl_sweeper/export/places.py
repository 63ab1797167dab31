"""The key `hydra.sweeper.export`, checked: where the trials of a sweep are written to as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.export.hparams import HParams
from autocl_sweeper.export.rows import Described, Place
from autocl_sweeper.export.runs import Runs
from autocl_sweeper.export.studies import Studies, absolute

FOLDER = "tensorboard"  # in the sweep folder, unless another one is named


@dataclass(frozen=True)
class Places:
    """Where a sweep is exported to. Raises ConfigurationError for what cannot be a place."""

    optuna: str | None = None
    tensorboard: str | bool | None = None
    study_name: str | None = None
    mlflow: str | None = None
    mlflow_experiment: str | None = None

    def __post_init__(self) -> None:
        for key in ("optuna", "study_name", "mlflow", "mlflow_experiment"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigurationError(
                    f"hydra.sweeper.export.{key}={value!r} is no text.\n"
                    "  `autocl docs export` (docs/export.md) explains it."
                )
        if self.tensorboard is not None and not isinstance(self.tensorboard, (bool, str)):
            raise ConfigurationError(
                f"hydra.sweeper.export.tensorboard={self.tensorboard!r} is neither true nor a folder."
            )
        if self.mlflow is not None and "://" not in self.mlflow:
            raise ConfigurationError(
                f"hydra.sweeper.export.mlflow={self.mlflow!r} is no tracking URI: it has no '://'.\n"
                "  Write sqlite:///runs.db, or http://... of a tracking server."
            )
        for key, module, missing in (
            ("tensorboard", "tensorboardX", "tensorboardX, which is not"),
            ("mlflow", "mlflow", "mlflow-skinny or mlflow, and neither is"),
        ):
            if getattr(self, key) and find_spec(module) is None:
                raise ConfigurationError(
                    f"hydra.sweeper.export.{key} needs the package {missing} installed.\n"
                    f"  pip install 'autocl-sweeper[{key}]'"
                )
        for key in ("optuna", "mlflow"):
            if (place := getattr(self, key)) is not None:
                object.__setattr__(self, key, absolute(place))

    def of(self, sweep: Described) -> dict[str, Callable[[], Place]]:
        """What to call each place, and what opens it."""
        found: dict[str, Callable[[], Place]] = {}
        if self.optuna is not None:
            found[f"Optuna storage {self.optuna}"] = partial(Studies, self.optuna, sweep)
        if self.tensorboard:
            folder = sweep.folder / FOLDER
            if isinstance(self.tensorboard, str):  # which may hold other sweeps too
                folder = Path(self.tensorboard).absolute() / sweep.name
            found[f"TensorBoard folder '{folder}'"] = partial(HParams, folder, sweep.spaces)
        if self.mlflow is not None:
            runs = partial(Runs, self.mlflow, sweep, self.mlflow_experiment)
            found[f"MLflow {self.mlflow}"] = runs
        return found


def places_of(export: Mapping[str, Any]) -> Places:
    """The places that `hydra.sweeper.export` names. Raises ConfigurationError."""
    known = list(Places.__dataclass_fields__)
    if unknown := sorted(set(export) - set(known)):
        raise ConfigurationError(
            f"hydra.sweeper.export knows no {unknown[0]!r}; its keys are {', '.join(known)}.\n"
            "  `autocl docs export` (docs/export.md) explains them."
        )
    return Places(**export)
