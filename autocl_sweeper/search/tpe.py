"""Optuna's TPE on the trials of a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autocl_sweeper.distributions import Space
from autocl_sweeper.search.study import SamplerSearch
from autocl_sweeper.types import State

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def tpe_search(
    space: Space,
    seed: int,
    stage_name: str,
    n_startup_trials: int = 10,
    constant_liar: bool = True,
) -> SamplerSearch:
    """TPESampler with all axes in one model.

    With `constant_liar` running trials count as bad ones, so that devices side by side try
    different things.
    """

    def sampler(number: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(
            seed=number,
            multivariate=True,
            constant_liar=constant_liar,
            n_startup_trials=n_startup_trials,
        )

    learns_from = (State.COMPLETE, State.PRUNED)
    name = f"{seed}/{stage_name}"
    return SamplerSearch(space, name, sampler, n_startup_trials, learns_from)
