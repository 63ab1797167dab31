"""What the user asked for, checked: settings and arguments become stages and job overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autocl_sweeper.distributions import Distribution
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.carried import older_sweep, refuse_useless
from autocl_sweeper.plan.checks import (
    Compose,
    compose_all,
    fingerprint_of,
    initial_of,
    refuse_another,
)
from autocl_sweeper.plan.param_file import ParamFile, read_param_file
from autocl_sweeper.plan.plan import Plan
from autocl_sweeper.plan.protocol import in_chains, settled
from autocl_sweeper.plan.pruning import pruning_of
from autocl_sweeper.plan.rounds import check_rounds, epochs_taken, taken_names
from autocl_sweeper.plan.sequence import sequence_of
from autocl_sweeper.plan.settings import Settings, check_settings
from autocl_sweeper.plan.spaces import flat_keys, spaces_of
from autocl_sweeper.plan.stages import chosen_by_auto, stages_of, strategy_of
from autocl_sweeper.space import Argument, bare, parse_arguments, parse_space
from autocl_sweeper.types import Value

__all__ = ["Plan", "Settings", "make_plan", "refuse_another"]


def make_plan(
    settings: Settings,
    arguments: Sequence[str],
    compose: Compose,
    config_loader: Any,
    knows_folders: bool,
    own: Compose | None = None,
    names_sequence: bool = False,
) -> Plan:
    """Check everything that can be checked before a job starts. Raises ConfigurationError.

    own: composes too, with the chosen groups and the values that only the app's code knows.
    names_sequence: the command line sets `hydra.sweeper.sequence`.
    """
    settings = settled(replace(settings, handover=dict(flat_keys(settings.handover))))
    check_settings(settings)
    older = older_sweep(settings)
    check_rounds(settings)
    typed = parse_arguments(arguments, config_loader)
    space = parse_space(settings.params, config_loader, "hydra.sweeper.params")
    _refuse_epochs(settings, typed, space)
    file = _param_file(settings, typed, space)
    space.update(file.space)
    given: dict[str, str | None] = dict.fromkeys(space)
    for argument in typed:
        if argument.merges:
            given[argument.text] = argument.text
            continue
        given = {key: text for key, text in given.items() if bare(key) != bare(argument.key)}
        space = {key: one for key, one in space.items() if bare(key) != bare(argument.key)}
        given[argument.key] = argument.text if argument.distribution is None else None
        if argument.distribution is not None:
            space[argument.key] = argument.distribution
    tasks = sequence_of(settings.sequence, space, typed, config_loader, names_sequence)
    if settings.sequence is not None:
        space = {key: one for key, one in space.items() if bare(key) != bare(settings.sequence)}
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
    pruning = pruning_of(settings.prune, settings.top_k, bool(tasks))
    draft = Plan(settings, strategy_of(settings, []), tasks, given, knows_folders, {}, {})

    def initial(task: str) -> dict[str, Value]:
        return {**initial_of(draft, own or compose, task), **file.init}

    names = list(tasks) or ["sweep"]
    spaces = spaces_of(settings, names, space, config_loader)
    stages, described = stages_of(settings, names, spaces, initial)
    stages = in_chains(settings, stages, spaces)
    stages[1:] = [replace(stage, extra=settings.extra_parents) for stage in stages[1:]]
    refuse_useless(settings, older, stages, spaces)
    strategy = strategy_of(settings, stages, list(tasks), () if older is None else older.stages)
    plan = replace(draft, strategy=strategy)
    configs, variants = compose_all(plan, spaces, compose)
    chosen = chosen_by_auto(settings, spaces)
    fingerprint = fingerprint_of(plan, described, {**configs, **variants}, chosen)
    if older is not None:
        fingerprint["hydra.sweeper.carry_from"] = dict(older.fingerprint)
    return replace(plan, fingerprint=fingerprint, configs=configs, pruning=pruning)


def _param_file(
    settings: Settings, typed: Sequence[Argument], space: Mapping[str, Distribution]
) -> ParamFile:
    """What `hydra.sweeper.param_file` searches; no name of it may be set anywhere else too."""
    if settings.param_file is None:
        return ParamFile({}, {})
    taken = taken_names(settings)
    for key in space:
        taken[bare(key)] = f"{bare(key)!r} is searched by hydra.sweeper.params too"
    for argument in typed:
        taken[bare(argument.key)] = f"it is set on the command line too: {argument.text}"
    hazero = "hazero" in str(settings.search["factory"]).lower()
    return read_param_file(settings.param_file, taken, least=2 if hazero else 1)


def _refuse_epochs(
    settings: Settings, typed: Sequence[Argument], space: Mapping[str, Distribution]
) -> None:
    """The epochs of a round are the population's: neither searched nor fixed."""
    searched = [*space]
    for own in settings.task_params.values():
        listed = own if isinstance(own, (list, tuple)) else [own]
        searched += [str(key) for one in listed if isinstance(one, Mapping) for key in one]
    for key, why in epochs_taken(settings).items():
        for argument in typed:
            if bare(argument.key) == key:
                raise ConfigurationError(f"{argument.text} on the command line: {why}.")
        if key in map(bare, searched):
            raise ConfigurationError(f"hydra.sweeper searches {key!r}, but {why}.")
