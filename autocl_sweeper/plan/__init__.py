"""What the user asked for, checked: settings and arguments become stages and job overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.checks import (
    Compose,
    compose_all,
    fingerprint_of,
    initial_of,
    refuse_changes,
    refuse_lower,
)
from autocl_sweeper.plan.plan import Plan
from autocl_sweeper.plan.protocol import in_chains, settled
from autocl_sweeper.plan.sequence import sequence_of
from autocl_sweeper.plan.settings import Settings, check_settings
from autocl_sweeper.plan.spaces import spaces_of
from autocl_sweeper.plan.stages import chosen_by_auto, stages_of, strategy_of
from autocl_sweeper.space import bare, parse_arguments, parse_space
from autocl_sweeper.types import Value

__all__ = ["Plan", "Settings", "make_plan", "refuse_changes", "refuse_lower"]


def make_plan(
    settings: Settings,
    arguments: Sequence[str],
    compose: Compose,
    config_loader: Any,
    knows_folders: bool,
    choices: Mapping[str, Value] | None = None,
) -> Plan:
    """Check everything that can be checked before a job starts. Raises ConfigurationError.

    choices: config group -> what the app chooses of it.
    """
    settings = settled(settings)
    check_settings(settings)
    typed = parse_arguments(arguments, config_loader)
    space = parse_space(settings.params, config_loader, "hydra.sweeper.params")
    given: dict[str, str | None] = dict.fromkeys(space)
    for argument in typed:
        if argument.merges:
            given[argument.text] = argument.text
            continue
        for key in [key for key in given if bare(key) == bare(argument.key)]:
            del given[key]
            space.pop(key, None)
        given[argument.key] = argument.text if argument.distribution is None else None
        if argument.distribution is not None:
            space[argument.key] = argument.distribution
    tasks = sequence_of(settings.sequence, space, typed, config_loader)
    if settings.sequence is not None:
        for key in [key for key in space if bare(key) == bare(settings.sequence)]:
            del space[key]
    if settings.selection == "pareto" and not tasks:
        raise ConfigurationError(
            "hydra.sweeper.selection=pareto compares tasks, but there is no sequence.\n"
            "  Name the override that lists them (hydra.sweeper.sequence), or leave it at top_k."
        )
    stray = sorted(set(settings.task_params) - set(tasks))
    if stray:
        known = ", ".join(tasks) or "none: there is no sequence"
        raise ConfigurationError(
            f"hydra.sweeper.task_params has settings for {stray}, which the sequence does not"
            f" contain.\n  The tasks of '{settings.sequence}' are: {known}.\n"
            "  Correct the name, or add the task to the sequence."
        )
    draft = Plan(settings, strategy_of(settings, []), tasks, given, knows_folders, {}, {})
    initial = partial(initial_of, draft, choices, compose)
    names = list(tasks) or ["sweep"]
    spaces = spaces_of(settings, names, space, config_loader)
    stages, described = stages_of(settings, names, spaces, initial)
    stages = in_chains(settings, stages, spaces)
    plan = replace(draft, strategy=strategy_of(settings, stages, list(tasks)))
    configs, variants = compose_all(plan, spaces, compose)
    chosen = chosen_by_auto(settings, spaces)
    fingerprint = fingerprint_of(plan, described, {**configs, **variants}, chosen)
    return replace(plan, fingerprint=fingerprint, configs=configs)
