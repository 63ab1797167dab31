"""The stages of a sweep, a search for every task, and the strategy that goes through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from autocl_sweeper.distributions import Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.protocol import AUTO, selection_of
from autocl_sweeper.plan.settings import Settings
from autocl_sweeper.plan.spaces import describe
from autocl_sweeper.protocols import Search
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.space import literal
from autocl_sweeper.strategy.decisions import Stage, Strategy
from autocl_sweeper.strategy.sequential import SequentialTopK
from autocl_sweeper.types import Value

GRID = "autocl_sweeper.search.grid.GridSearch"
RELAY = "autocl_sweeper.search.relay.RelaySearch"


def strategy_of(settings: Settings, stages: Sequence[Stage], tasks: Sequence[str] = ()) -> Strategy:
    selection = selection_of(settings, stages, tasks)
    carried = () if settings.transfer else None
    return SequentialTopK(
        stages, selection, settings.pipeline, width=settings.top_k, carried=carried
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
    limit = None if settings.popsize is None else settings.rounds * settings.popsize
    stages = []
    described: dict[str, Any] = {}
    for number, task in enumerate(tasks, start=1):
        own = settings.task_params.get(task)
        if isinstance(own, Sequence) and not isinstance(own, str):
            listed = _listed(own, task)
            described[task] = [dict(item) for item in listed.listed]
            stages.append(Stage(number, task, listed, most=settings.jobs, seeds=settings.seeds))
            continue
        space = spaces[task]
        factory, options = _chosen(settings, space)
        if factory != GRID and settings.init:
            space = replace(space, init=initial(task))
        search: Search = _imported(factory)(space, seed=settings.seed, stage_name=task, **options)
        if settings.jobs is None and limit is None and (search.size is None or not space.finite):
            raise ConfigurationError(
                f"The search of task '{task}' never ends: it samples from an interval.\n"
                "  hydra.sweeper.jobs says how many jobs a stage gets; it is null.\n"
                "  Set it, for instance hydra.sweeper.jobs=8, or give choices instead."
            )
        described[task] = describe(space)
        stages.append(Stage(number, task, search, limit, settings.jobs, settings.seeds))
    return stages, described


def chosen_by_auto(settings: Settings, spaces: Mapping[str, Space]) -> dict[str, str]:
    """Task -> the search that `auto` stands for, which may change with what bounds a stage."""
    if settings.search.get("factory") != AUTO:
        return {}
    return {task: _chosen(settings, space)[0] for task, space in spaces.items()}


def _listed(own: Sequence[Any], task: str) -> ListedSearch:
    where = f"hydra.sweeper.task_params.{task}"
    suggestions: list[Mapping[str, Value]] = []
    for place, item in enumerate(own):
        if not isinstance(item, Mapping):
            raise ConfigurationError(
                f"{where}[{place}] is {item!r}, not a mapping of override keys to values.\n"
                "  Each entry is one suggestion: {trainer.learning_rate: 1e-3, ...}"
            )
        suggestions.append({str(key): literal(value) for key, value in _flat(item)})
    if not suggestions:
        raise ConfigurationError(f"{where} is an empty list: task '{task}' has nothing to run.")
    return ListedSearch(suggestions)


def _chosen(settings: Settings, space: Space) -> tuple[str, dict[str, Any]]:
    """The factory of a space's search, and its options."""
    options = dict(settings.search)
    factory = str(options.pop("factory"))
    if factory != AUTO:
        return factory, options
    bounded = settings.jobs is not None or settings.popsize is not None or settings.budget
    return (GRID if space.finite and not bounded else RELAY), options


def _flat(node: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Value]]:
    """Nested YAML below a suggestion is a dotted key, as it is in `params`."""
    flat: list[tuple[str, Value]] = []
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def _imported(path: str) -> Callable[..., Search]:
    module, _, name = path.rpartition(".")
    try:
        factory: Callable[..., Search] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"hydra.sweeper.search.factory='{path}' cannot be imported: {error}"
        ) from error
    return factory
