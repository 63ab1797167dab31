"""The keys under `hydra.sweeper`, and the rules their values keep."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from autocl_sweeper.budget import Budget
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.objective import Objective

HANDOVER = {  # value of `handover` -> what it is for
    "checkpoint": "A job that gets a folder there starts from the checkpoint in it.",
    "sources": "A job gets the checkpoints of all survivors of the stage before there.",
    "extra": "A job gets which extra start it makes there, from 1.",
    "seen_tasks": "A job gets the names of the tasks so far there.",
    "stage": "A job gets the number of its stage there, from 1.",
    "trial": "A job gets its trial number there.",
    "parent": "A job gets the number of its parent trial there.",
    "seed": "A job gets its seed there.",
}
SELECTIONS = ("top_k", "pareto", "diverse")
PROTOCOLS = ("beam", "greedy", "first_k", "fixed", "random_chains")


@dataclass(frozen=True)
class Settings:
    """The keys under `hydra.sweeper`, as docs/sweeper.md explains them."""

    sequence: str | None
    top_k: int
    metric: str | None
    direction: str
    params: Mapping[str, Any]
    task_params: Mapping[str, Any]
    when: Mapping[str, Any]
    zip: Sequence[Any]
    param_file: str | None
    jobs: int | None
    rounds: int
    popsize: int | None
    parents: str
    extra_parents: int
    population: Mapping[str, Any]
    init: bool
    transfer: bool
    carry_from: str | None
    objective: str | None
    selection: str
    seeds: int
    protocol: str
    first_k: int
    prune: Any
    budget: Mapping[str, Any]
    handover: Mapping[str, str | None]
    max_failures: int | None
    retries: int
    retry_delay_s: float
    max_batch_size: int | None
    keep_checkpoints: str
    seed: int
    pipeline: bool
    check: str | None
    dry_run: bool
    report: bool
    export: Mapping[str, Any]
    search: Mapping[str, Any]


def refuse_unknown(given: Iterable[str], settings: type[Any], section: str) -> None:
    """Refuse what `+section.key` adds to a section of settings. Raises ConfigurationError."""
    known = [field.name for field in fields(settings)]
    for key in given:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigurationError(
                f"{section} has no key {key!r}.{hint}\n  Its keys: {', '.join(known)}."
            )


def check_settings(settings: Settings) -> None:
    from_1 = ("top_k", "jobs", "rounds", "popsize", "seeds", "first_k", "max_batch_size")
    for name in (*from_1, "retries", "retry_delay_s", "max_failures", "extra_parents"):
        value, least = getattr(settings, name), int(name in from_1)
        if value is not None and value < least:
            raise ConfigurationError(
                f"hydra.sweeper.{name}={value}, but it must be at least {least}.\n"
                f"  `autocl docs hydra.sweeper.{name}` (docs/sweeper.md) explains {name}."
            )
    _one_of("direction", settings.direction, ("maximize", "minimize"))
    jobs, k = settings.jobs, settings.top_k
    if jobs is not None and jobs < k:
        raise ConfigurationError(
            f"hydra.sweeper.jobs={jobs} is less than hydra.sweeper.top_k={k}: a stage of {jobs} jobs"
            f" cannot have {k} survivors.\n"
            f"  Set hydra.sweeper.jobs={k} or more, or hydra.sweeper.top_k={jobs}."
        )
    if jobs is not None and settings.popsize is not None:
        raise ConfigurationError(
            f"hydra.sweeper.jobs={jobs} and hydra.sweeper.popsize={settings.popsize} both say how"
            " much a stage runs.\n"
            "  jobs counts jobs, rounds * popsize suggestions: give one of them."
        )
    _check_protocol(settings)
    _one_of("keep_checkpoints", settings.keep_checkpoints, ("beam", "all"))
    for key, value in settings.handover.items():
        if value is not None:
            _one_of(f"handover.{key}", value, HANDOVER)
    _check_sources(settings)
    _check_extra(settings)
    if settings.sequence is None and settings.task_params:
        raise ConfigurationError(
            "hydra.sweeper.task_params is set, but hydra.sweeper.sequence is null.\n"
            "  task_params gives settings to tasks of a sequence. Name the override that lists them."
        )


def _check_sources(settings: Settings) -> None:
    handed = {value: key for key, value in settings.handover.items()}
    if "sources" not in handed:
        return
    named = f"hydra.sweeper.handover.{handed['sources']}=sources: "
    if settings.parents != "beam":
        raise ConfigurationError(
            f"{named}sources are the survivors of the stage before, but"
            f" hydra.sweeper.parents={settings.parents}.\n  Set hydra.sweeper.parents=beam, or take"
            " the key out."
        )
    if "checkpoint" not in handed:
        raise ConfigurationError(
            f"{named}sources are checkpoints, but no job gets its parent's, so none has to save"
            " one.\n  Hand it over as well: hydra.sweeper.handover.init_from=checkpoint."
        )


def _check_extra(settings: Settings) -> None:
    m = settings.extra_parents
    if not m:
        return
    named = f"hydra.sweeper.extra_parents={m}: "
    if settings.parents != "beam" or settings.protocol not in ("beam", "greedy"):
        raise ConfigurationError(
            f"{named}they are starts beside those of a beam, but"
            f" hydra.sweeper.parents={settings.parents} and"
            f" hydra.sweeper.protocol={settings.protocol}.\n"
            "  Set parents=beam and protocol=beam or greedy, or extra_parents=0."
        )
    if "extra" not in settings.handover.values():
        raise ConfigurationError(
            f"{named}no key of the app gets which of them a job starts from, so it would start from its"
            " parent once more.\n  Name the app's key: +hydra.sweeper.handover.KEY=extra. It gets a"
            " number from 1; jobs that start from their parent get nothing."
        )


def _check_protocol(settings: Settings) -> None:
    """Objective, selection, seeds, protocol and budget."""
    _one_of("selection", settings.selection, SELECTIONS)
    _one_of("protocol", settings.protocol, PROTOCOLS)
    if settings.metric is not None and settings.objective is not None:
        raise ConfigurationError(
            f"hydra.sweeper.metric={settings.metric} and"
            f" hydra.sweeper.objective={settings.objective!r} both say what ranks trials.\n"
            "  A metric is a name, an objective an expression over names: give one of them."
        )
    Objective(text=settings.objective)
    Budget.of(settings.budget)
    seeds, jobs = settings.seeds, settings.jobs
    if seeds > 1 and "seed" not in settings.handover.values():
        raise ConfigurationError(
            f"hydra.sweeper.seeds={seeds}, but no key of the app gets the seed:"
            f" all {seeds} runs of a suggestion would be the same.\n"
            "  Name the app's key: +hydra.sweeper.handover.KEY=seed. It gets hydra.sweeper.seed, plus 1"
            " for each repeat."
        )
    if jobs is not None and jobs < seeds * settings.top_k:
        raise ConfigurationError(
            f"hydra.sweeper.jobs={jobs} counts every run; {settings.top_k} survivors"
            f" (hydra.sweeper.top_k) of {seeds} runs each (hydra.sweeper.seeds) take"
            f" {seeds * settings.top_k}.\n  Set more jobs, fewer seeds or a smaller top_k."
        )
    if settings.protocol != "beam" and settings.parents != "beam":
        raise ConfigurationError(
            f"hydra.sweeper.protocol={settings.protocol} and hydra.sweeper.parents="
            f"{settings.parents} both say what a trial starts from.\n  Give one of them."
        )


def _one_of(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ConfigurationError(
            f"hydra.sweeper.{name}={value!r} is not one of: {', '.join(known)}."
        )
