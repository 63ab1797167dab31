"""Optuna's Gaussian process on the trials of a stage."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from autocl_sweeper.distributions import Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search.cube import refuse_conditions
from autocl_sweeper.search.study import SamplerSearch
from autocl_sweeper.types import State

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

NEEDS = ("torch", "scipy")


def gp_search(
    space: Space,
    seed: int,
    stage_name: str,
    n_startup_trials: int = 10,
) -> SamplerSearch:
    """GPSampler: the strongest where a stage has few jobs, and slow where it has hundreds.

    Running trials are in its model. Raises ConfigurationError where a package is missing, and for a
    space with conditions.
    """
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"hydra/sweeper/search=gp needs {' and '.join(missing)}, which is not installed.\n"
            "  pip install autocl-sweeper[gp], or choose hydra/sweeper/search=tpe."
        )
    refuse_conditions(space, "which the search 'gp' cannot express")

    def sampler(number: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(
            seed=number, n_startup_trials=n_startup_trials, warn_independent_sampling=False
        )

    name = f"{seed}/{stage_name}"
    return SamplerSearch(space, name, sampler, n_startup_trials, (State.COMPLETE,))
