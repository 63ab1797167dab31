"""Simpler protocols as stages: whole chains of one configuration each, or of a draw at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from autocl_sweeper.distributions import Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.settings import Settings
from autocl_sweeper.protocols import Selection
from autocl_sweeper.search.chains import ContinuedChains, DrawnChains
from autocl_sweeper.selection import TopK
from autocl_sweeper.selection.diverse import Diverse
from autocl_sweeper.selection.groups import TopKGroups
from autocl_sweeper.selection.pareto import Pareto
from autocl_sweeper.strategy.decisions import Stage

AUTO = "auto"
RANDOM = "autocl_sweeper.search.random.RandomSearch"
CHAINS = ("first_k", "fixed", "random_chains")


def settled(settings: Settings) -> Settings:
    """The settings as their protocol has them: `greedy` is a beam of one, chains begin at random."""
    if settings.protocol == "greedy":
        return replace(settings, top_k=1)
    bounded = settings.jobs is not None or settings.popsize is not None
    if settings.protocol in CHAINS and settings.search.get("factory") == AUTO and bounded:
        return replace(settings, search={**settings.search, "factory": RANDOM})
    return settings


def selection_of(
    settings: Settings, stages: Sequence[Stage], tasks: Sequence[str] = ()
) -> Selection:
    """What `hydra.sweeper.selection` names, with the survivors that each stage has."""
    maximize = settings.direction == "maximize"
    survivors = {stage.number: stage.survivors for stage in stages if stage.survivors}
    if settings.selection == "pareto":
        return Pareto(settings.top_k, maximize, survivors, tasks)
    single = TopKGroups if settings.seeds > 1 else TopK
    kind = Diverse if settings.selection == "diverse" else single
    return kind(settings.top_k, maximize, survivors)


def in_chains(
    settings: Settings, stages: Sequence[Stage], spaces: Mapping[str, Space]
) -> list[Stage]:
    """The stages of a protocol whose chains go their own ways; else as they are.

    All protocols cost the same: jobs per stage times stages. Raises ConfigurationError.
    """
    if settings.protocol not in CHAINS or not stages:
        return list(stages)
    if own := [task for task in settings.task_params if task in {s.task for s in stages}]:
        raise ConfigurationError(
            f"hydra.sweeper.protocol={settings.protocol} searches one space for all tasks, but"
            f" hydra.sweeper.task_params has settings of its own for task '{own[0]}'.\n"
            "  Take them out, or use protocol=beam or greedy."
        )
    first, seeds, count = stages[0], settings.seeds, len(stages)
    jobs = first.jobs(1)
    assert jobs is not None, "a search without end has a bound"
    if settings.protocol == "random_chains":
        if (factory := settings.search.get("factory")) not in (AUTO, RANDOM):
            raise ConfigurationError(
                "hydra.sweeper.protocol=random_chains draws every configuration at random, but"
                f" hydra.sweeper.search.factory={factory}.\n"
                "  Leave the search at auto or random, or use another protocol."
            )
        if settings.jobs is not None or settings.popsize is not None:  # draws come again
            jobs = settings.jobs or settings.rounds * (settings.popsize or 1) * seeds
    tuned, chains = count, jobs // seeds
    if settings.protocol == "first_k":
        tuned = min(settings.first_k, count)
        chains = (chains * count - (count - tuned)) // tuned
    found = []
    for place, stage in enumerate(stages):
        width = chains if place < tuned else 1
        survivors = width if place + 1 < tuned else 1
        if place + 1 == count:
            survivors = settings.top_k
        search = stage.search
        if settings.protocol == "random_chains":
            search = DrawnChains(spaces[stage.task], settings.seed, stage.task)
        elif place:
            search = ContinuedChains(first.search)
        most = width * seeds
        found.append(replace(stage, search=search, limit=None, most=most, survivors=survivors))
    return found
