"""What is composed before a job starts, and the fingerprint by which a sweep knows itself again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from autocl_sweeper.distributions import Choice, Space, same
from autocl_sweeper.errors import ChangedSweepError, ConfigurationError
from autocl_sweeper.journal import Fold
from autocl_sweeper.plan.plan import BOUNDS, Plan
from autocl_sweeper.plan.rounds import BEAM, POPULATION, handover_of, rounds_told
from autocl_sweeper.plan.settings import HANDOVER
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.space import bare
from autocl_sweeper.strategy.decisions import Stage, views
from autocl_sweeper.types import History, Suggestion, Trial, Value
from autocl_sweeper.yaml.snapshot import FOLDER as CONFIGURATION

Compose = Callable[[Sequence[str], str], Mapping[str, Any]]
"""(overrides, what they are meant for) -> flat configuration; raises ConfigurationError."""

log = logging.getLogger(__name__)

# What a sweep by these values leaves out of its fingerprint, as journals of earlier versions do.
ORDINARY: Mapping[str, Any] = {
    "objective": None,
    "selection": "top_k",
    "seeds": 1,
    "protocol": "beam",
    "first_k": None,
    "init": True,
    "extra_parents": 0,
    "transfer": True,
}

MOST_CHECKED = 64  # choices composed ahead: two seconds and a half; the rest show in their jobs


def compose_all(
    plan: Plan, spaces: Mapping[str, Space], compose: Compose
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Mapping[str, Any]]]:
    """Compose what every task's first job gets, and each choice of the shared space once.

    Gives the configuration by task, and by choice what that one makes different: a choice of a
    config group brings keys of its own.

    All combinations would cost 40 ms each; a mistake sits in a key or in a value, and every one of
    those is composed here. `init_from` and its like get stand-ins: their keys have to exist too.
    """
    configs: dict[str, Mapping[str, Any]] = {}
    suggested: dict[str, Value] = {}
    variants: dict[str, Mapping[str, Any]] = {}
    unbegun = views(plan.stages, History(), plan.selection, plan.strategy.carried)
    for stage, view in zip(plan.stages, unbegun, strict=True):
        if stage.round > 1:  # like the round before
            continue
        if not stage.round:  # a later one has nothing to suggest before the first is over
            first = stage.search.ask(view)
            suggested = dict(first.params) if isinstance(first, Suggestion) else {}
        named = f"Task '{stage.task}'" if plan.tasks else "The job"
        if stage.parents == POPULATION:
            keys = " ".join(f"{key}={value}" for key, value in stage.passed.items())
            named += f" in round {stage.round} ({keys or 'its own epochs'})"
        command = partial(plan.example, stage, checkpoint="checkpoint")
        with _missing_handover(plan, named):
            config = compose(command(suggested), named)
            for extra in range(1, stage.extra + 1):
                compose(command(suggested, extra=extra), f"{named} (extra parent {extra})")
        if stage.round:
            continue
        configs[stage.task] = config
        if isinstance(stage.search, ListedSearch):
            trials = [{**suggested, **other} for other in stage.search.listed[1:]]
        else:  # a space of the task's own shows in its jobs
            shared = stage.number == 1 and stage.task not in plan.settings.task_params
            trials = each_choice(spaces[stage.task], suggested) if shared else []
        for other in trials[:MOST_CHECKED]:
            config = compose(command(other), named)
            chosen = [f"{k}={value}" for k, value in other.items() if suggested.get(k) != value]
            variants[f"{stage.task} with {' '.join(chosen)}"] = {
                key: value for key, value in config.items() if configs[stage.task].get(key) != value
            }
    return configs, variants


@contextmanager
def _missing_handover(plan: Plan, named: str) -> Iterator[None]:
    """Explain a handover to a key that the app does not have: Hydra's advice, `+key=...`, is none here."""
    try:
        yield
    except ConfigurationError as error:
        for key, value in handover_of(plan.settings).items():
            if value is None or f"Could not override '{bare(key)}'" not in str(error):
                continue
            group, _, own = key.rpartition(".")
            raise ConfigurationError(
                f"{named} cannot be composed: the app's configuration has no key '{key}'"
                f" (hydra.sweeper.handover.{key}={value}).\n"
                f"  Add `{own}: null` to it{f' below `{group}`' * bool(group)}. {HANDOVER[value]}\n"
                f"  If the app has another name for it: hydra.sweeper.handover.{key}=null"
                f" +hydra.sweeper.handover.NAME={value}.\n"
                f"  If it needs none: hydra.sweeper.handover.{key}=null. No job was started."
            ) from error
        raise


def each_choice(space: Space, params: Mapping[str, Value]) -> list[dict[str, Value]]:
    """Each choice of a space beside these params, with the keys that its condition brings."""
    begun = {axis: one.at(0) for axis, one in space.items()} | space.point(params)
    return [
        space.params({**begun, axis: value})
        for axis, one in space.items()
        if isinstance(one, Choice)
        for value in one.values[:MOST_CHECKED]
        if not same(value, begun[axis])
    ]


def initial_of(plan: Plan, own: Compose, task: str) -> Mapping[str, Value]:
    """What the app's own configuration of a task has, by bare override key, groups included.

    It is empty for an app that cannot be composed without what is searched.
    """
    try:
        command = plan.overrides(Trial(0, 1, task, Suggestion(0, {}), None), None)
        return own(command, f"Task '{task}' as the app has it")
    except ConfigurationError as error:
        log.debug("the search begins without the app's own configuration: %s", error)
        return {}


def fingerprint_of(
    plan: Plan,
    searches: Mapping[str, Any],
    configs: Mapping[str, Mapping[str, Any]],
    chosen: Mapping[str, str],
) -> dict[str, Any]:
    """What makes results what they are; a resumed sweep must agree with it, key by key.

    chosen: task -> the search that `auto` stands for.
    """
    settings = plan.settings
    handed = {bare(key) for key in handover_of(settings)}
    searched = {
        bare(key)
        for description in searches.values()
        for mapping in (description if isinstance(description, list) else [description])
        for key in mapping
    }
    fixed = {
        task: {k: v for k, v in config.items() if k not in handed and k not in searched}
        for task, config in configs.items()
    }
    kept = ("top_k", "metric", "direction", "seed", "search", "handover")
    changed = {key: getattr(settings, key) for key in ORDINARY}
    if settings.protocol != "first_k":
        del changed["first_k"]
    return {
        "hydra.sweeper.sequence": list(plan.tasks),
        **{f"hydra.sweeper.{key}": getattr(settings, key) for key in kept},
        **{f"hydra.sweeper.{k}": v for k, v in changed.items() if v != ORDINARY[k]},
        **({"search by task": dict(chosen)} if chosen else {}),
        **({"rounds": rounds_told(settings)} if settings.parents != BEAM else {}),
        "search space": dict(searches),
        "configuration": {task: config for task, config in fixed.items() if config},
    }


def refuse_another(folder: Path, state: Fold, plan: Plan, edited: Sequence[str]) -> list[str]:
    """What was raised since the last session of a sweep, as 'key: was A, is B'.

    Raises ChangedSweepError where a plan is not that of the sweep, or YAML files were `edited`.
    """
    assert state.setup is not None
    _refuse_changes(folder, state.setup["fingerprint"], plan.fingerprint, edited)
    raised = _refuse_lower(folder, state.bounds, plan.bounds)
    refuse_moved(folder, state.history, plan.stages)
    return raised


def _refuse_changes(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], edited: Sequence[str]
) -> None:
    once = {f"hydra.sweeper.{key}" for key in BOUNDS}  # fingerprints of earlier versions had them
    before = {key: value for key, value in before.items() if key not in once}
    if not (changes := [*changed(before, now), *edited]):
        return
    listed = "\n".join(f"    {change}" for change in changes[:20])
    more = f"\n    and {len(changes) - 20} more" if len(changes) > 20 else ""
    if edited:
        more += f"\n  The files as they were: '{folder / CONFIGURATION}'."
    raise ChangedSweepError(
        f"'{folder}' holds a sweep with another configuration:\n{listed}{more}\n"
        "  Trials of the two could not be compared.\n"
        "  Undo the change to continue that sweep, or set another hydra.sweep.dir."
    )


def _refuse_lower(
    folder: Path, before: Mapping[str, int | None], now: Mapping[str, int | None]
) -> list[str]:
    raised: list[str] = []
    lowered: list[str] = []
    for key, new in now.items():
        old = before.get(key, new)
        if old != new:
            lower = new is not None and (old is None or new < old)
            told = f"hydra.sweeper.{key}: was {old}, is {new}"
            (lowered if lower else raised).append(told)
    if lowered:
        listed = "\n".join(f"    {one}" for one in lowered)
        raise ChangedSweepError(
            f"'{folder}' holds a sweep with more jobs:\n{listed}\n"
            "  jobs, rounds and popsize of a sweep that was begun may be raised, for the stages that"
            " are still open;\n  they may not be lowered. Set them as they were or higher, or set"
            " another hydra.sweep.dir."
        )
    return raised


def refuse_moved(folder: Path, history: History, stages: Sequence[Stage]) -> None:
    """Refuse rounds that would push a task's stages away from the trials they have."""
    for trial in history:
        if trial.stage > len(stages) or stages[trial.stage - 1].task != trial.task:
            raise ChangedSweepError(
                f"In '{folder}' task '{trial.task}' has begun (trial {trial.number}), and its rounds"
                " come after those of the tasks before it.\n"
                "  hydra.sweeper.rounds of a population may be raised while its first task is open."
                " Set it as it was, or set another hydra.sweep.dir."
            )


def changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two fingerprints, as 'key: was A, is B'."""
    changes = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        name = f"{prefix}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += changed(old, new, f"{name} / ")
        elif json.dumps(old) != json.dumps(new):  # as text, because nan is not equal to itself
            changes.append(f"{name}: was {old!r}, is {new!r}")
    return changes
