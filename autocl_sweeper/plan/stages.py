"""The stages of a sweep, a search for every task, and the strategy that goes through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from pkgutil import resolve_name
from typing import Any

from autocl_sweeper.distributions import Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.protocol import AUTO, selection_of
from autocl_sweeper.plan.rounds import (
    POPULATION,
    SOURCES,
    Population,
    beam_width,
    handover_of,
    replayed_stages,
    round_stages,
)
from autocl_sweeper.plan.settings import Settings
from autocl_sweeper.plan.spaces import describe, suggestions_of
from autocl_sweeper.protocols import Search
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.search.perturbed import Perturbed
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.strategy.sequential import SequentialTopK
from autocl_sweeper.types import Value
from autocl_sweeper.view import StageView

GRID = "autocl_sweeper.search.grid.GridSearch"
ROUNDS_ARE_STAGES = "rounds_are_stages"  # an option of searches that go through rounds
RELAY = "autocl_sweeper.search.relay.RelaySearch"


def strategy_of(
    settings: Settings,
    stages: Sequence[Stage],
    tasks: Sequence[str] = (),
    older: Sequence[StageView] = (),
) -> SequentialTopK:
    """`older`: stages of another sweep that searches learn from."""
    width = beam_width(settings)
    selection = selection_of(replace(settings, top_k=width), stages, tasks)
    carried = older if settings.transfer else None
    handed = handover_of(settings).values()
    whole_beam = SOURCES in handed or settings.extra_parents > 0
    return SequentialTopK(
        stages, selection, settings.pipeline, width=width, carried=carried, whole_beam=whole_beam
    )


def stages_of(
    settings: Settings,
    tasks: Sequence[str],
    spaces: Mapping[str, Space],
    initial: Callable[[str], Mapping[str, Value]],
) -> tuple[list[Stage], dict[str, Any]]:
    """A stage for every task, and by task the description of its search for the fingerprint.

    initial: task -> what the app's own configuration has, by override key.
    """
    if Population.of(settings).replay is not None:
        return replayed_stages(settings, tasks)
    stages: list[Stage] = []
    described: dict[str, Any] = {}
    for task in tasks:
        number = len(stages) + 1
        own = settings.task_params.get(task)
        if isinstance(own, Sequence) and not isinstance(own, str):
            listed = ListedSearch(suggestions_of(own, task))
            described[task] = [dict(item) for item in listed.listed]
            whole = replace(settings, popsize=None)  # all that is listed runs
            stages += round_stages(whole, task, number, partial(_same, listed))
            continue
        space = spaces[task]
        factory, options = _chosen(settings, space)
        if factory != GRID and settings.init:
            space = replace(space, init=initial(task))
        made = partial(_search_of_round, settings, task, space, factory, options)
        search = made(0)
        unbounded = settings.jobs is None and settings.popsize is None
        if unbounded and (search.size is None or not space.finite):
            raise ConfigurationError(
                f"The search of task '{task}' never ends: it samples from an interval.\n"
                "  hydra.sweeper.jobs says how many jobs a stage gets; it is null.\n"
                "  Set it, for instance hydra.sweeper.jobs=8, or give choices instead."
            )
        described[task] = describe(space)
        stages += round_stages(settings, task, number, made)
    return stages, described


def chosen_by_auto(settings: Settings, spaces: Mapping[str, Space]) -> dict[str, str]:
    """Task -> the search that `auto` stands for, which may change with what bounds a stage."""
    if settings.search.get("factory") != AUTO:
        return {}
    return {task: _chosen(settings, space)[0] for task, space in spaces.items()}


def _same(search: Search, number: int) -> Search:
    return search


def _search_of_round(
    settings: Settings,
    task: str,
    space: Space,
    factory: str,
    options: Mapping[str, Any],
    number: int,
) -> Search:
    """The search of one round of a task, counted from 0; where rounds are no stages, of all."""
    name = task
    if settings.parents == POPULATION:
        if ROUNDS_ARE_STAGES in signature(_imported(factory)).parameters:  # one over all rounds
            options = {**options, ROUNDS_ARE_STAGES: True}
        elif number:  # a search of its own, or it would suggest the same again
            name = f"{task}, round {number}"
            space = replace(space, init={})
    search: Search = _imported(factory)(space, seed=settings.seed, stage_name=name, **options)
    if settings.parents == POPULATION and Population.of(settings).perturb:
        return Perturbed(search, space, f"{settings.seed}/{name}")
    return search


def _chosen(settings: Settings, space: Space) -> tuple[str, dict[str, Any]]:
    """The factory of a space's search, and its options."""
    options = dict(settings.search)
    factory = str(options.pop("factory"))
    if factory != AUTO:
        return factory, options
    bounded = settings.jobs is not None or settings.popsize is not None or settings.budget
    return (GRID if space.finite and not bounded else RELAY), options


def _imported(path: str) -> Callable[..., Search]:
    try:
        factory: Callable[..., Search] = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"hydra.sweeper.search.factory='{path}' cannot be imported: {error}"
        ) from error
    return factory
