"""The stages of a sweep, a search for every task, and the strategy that goes through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.settings import Settings
from autocl_sweeper.protocols import Search
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.space import Choice, Distribution, literal, parse_space
from autocl_sweeper.strategy.decisions import Stage, Strategy
from autocl_sweeper.strategy.sequential import SequentialTopK
from autocl_sweeper.types import Value


def strategy_of(settings: Settings, stages: Sequence[Stage]) -> Strategy:
    selection = TopK(settings.top_k, settings.direction == "maximize")
    return SequentialTopK(stages, selection, settings.pipeline)


def stages_of(
    settings: Settings, tasks: Sequence[str], space: Mapping[str, Distribution], config_loader: Any
) -> tuple[list[Stage], dict[str, Any]]:
    """A stage for every task, and by task the description of its search for the fingerprint."""
    limit = None if settings.popsize is None else settings.rounds * settings.popsize
    stages = []
    described: dict[str, Any] = {}
    for number, task in enumerate(tasks, start=1):
        search, described[task] = _search(settings, task, space, config_loader)
        listed = isinstance(search, ListedSearch)
        if search.size is None and limit is None:
            raise ConfigurationError(
                f"The search of task '{task}' never ends: it samples from an interval.\n"
                "  hydra.sweeper.popsize says how many suggestions a stage gets; it is null.\n"
                "  Set it, for instance hydra.sweeper.popsize=8, or give choices instead."
            )
        stages.append(Stage(number, task, search, None if listed else limit))
    return stages, described


def _search(
    settings: Settings, task: str, shared: Mapping[str, Distribution], config_loader: Any
) -> tuple[Search, Any]:
    """The search of one task and its description for the fingerprint."""
    where = f"hydra.sweeper.task_params.{task}"
    own = settings.task_params.get(task)
    if isinstance(own, Sequence) and not isinstance(own, str):
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
        return ListedSearch(suggestions), [dict(item) for item in suggestions]
    space = shared
    if isinstance(own, Mapping):
        space = parse_space(own, config_loader, where)
    elif own is not None:
        raise ConfigurationError(
            f"{where} is {own!r}.\n  It must be a list of suggestions or a space: key -> values."
        )
    options = dict(settings.search)
    factory = _factory(str(options.pop("factory")))
    search: Search = factory(space, seed=settings.seed, stage_name=task, **options)
    return search, {key: _describe(distribution) for key, distribution in space.items()}


def _flat(node: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Value]]:
    """Nested YAML below a suggestion is a dotted key, as it is in `params`."""
    flat: list[tuple[str, Value]] = []
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def _factory(path: str) -> Callable[..., Search]:
    module, _, name = path.rpartition(".")
    try:
        factory: Callable[..., Search] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"hydra.sweeper.search.factory='{path}' cannot be imported: {error}"
        ) from error
    return factory


def _describe(distribution: Distribution) -> Any:
    if isinstance(distribution, Choice):
        return list(distribution.values)
    kind = ("log " if distribution.log else "") + ("int" if distribution.integer else "float")
    return f"{kind} interval [{distribution.low}, {distribution.high}]"
