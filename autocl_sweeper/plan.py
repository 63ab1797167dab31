"""What the user asked for, checked: settings and arguments become stages and job overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.space import (
    Argument,
    Choice,
    Distribution,
    Interval,
    literal,
    override,
    parse_arguments,
    parse_space,
)
from autocl_sweeper.strategy.sequential import SequentialTopK, Stage
from autocl_sweeper.types import Search, Trial, Value

HANDOVER_VALUES = ("checkpoint", "seen_tasks", "stage", "trial", "parent")
Compose = Callable[[Sequence[str], str], Mapping[str, Any]]
"""(overrides, what they are meant for) -> flat configuration; raises ConfigurationError."""


@dataclass(frozen=True)
class Settings:
    """The keys under `hydra.sweeper`, as docs/sweeper.md explains them."""

    sequence: str | None
    top_k: int
    metric: str | None
    direction: str
    params: Mapping[str, Any]
    task_params: Mapping[str, Any]
    rounds: int
    popsize: int | None
    handover: Mapping[str, str | None]
    max_failures: int | None
    retries: int
    retry_delay_s: float
    max_batch_size: int | None
    keep_checkpoints: str
    seed: int
    pipeline: bool
    check: str | None
    search: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """A checked sweep: everything about it that does not depend on how its trials turn out."""

    settings: Settings
    strategy: SequentialTopK
    tasks: Mapping[str, Value]  # name -> value of the sequence override; empty: no sequence
    template: Mapping[str, str | None]  # key -> the user's text; None: filled by the suggestion
    knows_folders: bool  # false: the user's own hydra.sweep.subdir says where jobs go
    fingerprint: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]  # task -> flat configuration of its first suggestion

    @property
    def stages(self) -> Sequence[Stage]:
        return self.strategy.stages

    @property
    def selection(self) -> TopK:
        selection = self.strategy.selection
        assert isinstance(selection, TopK)
        return selection

    @property
    def metric(self) -> str:
        """Which of the numbers a job returned ranks it; a lone number is called `score`."""
        return self.settings.metric or "score"

    @property
    def ranked(self) -> bool:
        """Whether a score is needed: with a sequence, trials are parents or they are not."""
        return bool(self.tasks)

    @property
    def size(self) -> int:
        """Trials in all if every stage has `top_k` survivors."""
        total, parents = 0, 1
        for stage in self.stages:
            trials = parents * stage.suggestions
            total += trials
            parents = min(self.settings.top_k, trials)
        return total

    @property
    def needs_checkpoints(self) -> bool:
        return "checkpoint" in self.settings.handover.values()

    def folder(self, number: int, stage: Stage) -> str:
        """Relative to the sweep folder; empty when only the job will know."""
        if not self.knows_folders:
            return ""
        return f"{stage.number}_{_slug(stage.task)}/{number}" if self.tasks else str(number)

    def overrides(self, trial: Trial, checkpoint: str | None) -> tuple[str, ...]:
        """The job's command line: what the user typed, task and suggestion, what is handed over.

        `checkpoint` is the parent's, absolute; None without a parent.
        """
        handed: dict[str, Value] = {
            "checkpoint": checkpoint,
            "seen_tasks": [*list(self.tasks)[: trial.stage]],
            "stage": trial.stage,
            "trial": trial.number,
            "parent": trial.parent,
        }
        return self._overrides(trial.task, trial.suggestion.params, handed, trial.folder)

    def _overrides(
        self, task: str, params: Mapping[str, Value], handed: Mapping[str, Value], folder: str
    ) -> tuple[str, ...]:
        values = dict(params)
        if self.tasks:
            assert self.settings.sequence is not None
            values[self.settings.sequence] = self.tasks[task]
        # A key typed as `+key` stays new to the configuration wherever else it is named without.
        typed = {_bare(key): key for key in self.template}
        given = {
            _bare(key): override(key if key.startswith("+") else typed.get(key, key), value)
            for key, value in values.items()
        }
        texts: dict[str, str] = {}
        for key, text in self.template.items():
            chosen = given.pop(_bare(key), text)
            if chosen is not None:
                texts[_bare(key)] = chosen
        texts.update(given)
        for key, name in self.settings.handover.items():
            value = None if name is None else handed[name]
            if value is not None:
                texts[_bare(key)] = override(key, literal(value))
        if folder and self.tasks:
            texts["hydra.sweep.subdir"] = override("hydra.sweep.subdir", literal(folder))
        return tuple(texts.values())


def make_plan(
    settings: Settings,
    arguments: Sequence[str],
    compose: Compose,
    config_loader: Any,
    knows_folders: bool,
) -> Plan:
    """Check everything that can be checked before a job starts. Raises ConfigurationError."""
    _check_settings(settings)
    typed = parse_arguments(arguments, config_loader)
    space = parse_space(settings.params, config_loader, "hydra.sweeper.params")
    template: dict[str, str | None] = dict.fromkeys(space)
    for argument in typed:
        if argument.merges:
            template[argument.text] = argument.text
            continue
        for key in [key for key in template if _bare(key) == _bare(argument.key)]:
            del template[key]
            space.pop(key, None)
        template[argument.key] = argument.text if argument.distribution is None else None
        if argument.distribution is not None:
            space[argument.key] = argument.distribution
    tasks = _sequence(settings.sequence, space, typed, config_loader)
    if settings.sequence is not None:
        for key in [key for key in space if _bare(key) == _bare(settings.sequence)]:
            del space[key]
    stray = sorted(set(settings.task_params) - set(tasks))
    if stray:
        known = ", ".join(tasks) or "none: there is no sequence"
        raise ConfigurationError(
            f"hydra.sweeper.task_params has settings for {stray}, which the sequence does not"
            f" contain.\n  The tasks of '{settings.sequence}' are: {known}.\n"
            "  Correct the name, or add the task to the sequence."
        )
    limit = None if settings.popsize is None else settings.rounds * settings.popsize
    stages = []
    described: dict[str, Any] = {}
    for number, task in enumerate(tasks or {"sweep": None}, start=1):
        search, described[task] = _search(settings, task, space, config_loader)
        listed = isinstance(search, ListedSearch)
        if search.size is None and limit is None:
            raise ConfigurationError(
                f"The search of task '{task}' never ends: it samples from an interval.\n"
                "  hydra.sweeper.popsize says how many suggestions a stage gets; it is null.\n"
                "  Set it, for instance hydra.sweeper.popsize=8, or give choices instead."
            )
        stages.append(Stage(number, task, search, None if listed else limit))
    selection = TopK(settings.top_k, settings.direction == "maximize")
    strategy = SequentialTopK(stages, selection, settings.pipeline)
    plan = Plan(settings, strategy, tasks, template, knows_folders, {}, {})
    configs, variants = _compose_all(plan, space, compose)
    fingerprint = _fingerprint(plan, described, {**configs, **variants})
    return Plan(settings, strategy, tasks, template, knows_folders, fingerprint, configs)


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


def _check_settings(settings: Settings) -> None:
    def positive(name: str, value: float | None, least: int = 1) -> None:
        if value is not None and value < least:
            raise ConfigurationError(
                f"hydra.sweeper.{name}={value}, but it must be at least {least}.\n"
                f"  See docs/sweeper.md for what {name} means."
            )

    positive("top_k", settings.top_k)
    positive("rounds", settings.rounds)
    positive("popsize", settings.popsize)
    positive("retries", settings.retries, least=0)
    positive("retry_delay_s", settings.retry_delay_s, least=0)
    positive("max_failures", settings.max_failures, least=0)
    positive("max_batch_size", settings.max_batch_size)
    _one_of("direction", settings.direction, ("maximize", "minimize"))
    _one_of("keep_checkpoints", settings.keep_checkpoints, ("beam", "all"))
    for key, value in settings.handover.items():
        if value is not None:
            _one_of(f"handover.{key}", value, HANDOVER_VALUES)
    if settings.sequence is None and settings.task_params:
        raise ConfigurationError(
            "hydra.sweeper.task_params is set, but hydra.sweeper.sequence is null.\n"
            "  task_params gives settings to tasks of a sequence. Name the override that lists them."
        )


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigurationError(
            f"hydra.sweeper.{name}={value!r} is not one of: {', '.join(known)}."
        )


def _sequence(
    key: str | None,
    space: Mapping[str, Distribution],
    typed: Sequence[Argument],
    config_loader: Any,
) -> dict[str, Value]:
    """Task name -> value, in order; empty when the sequence override was not given."""
    if key is None:
        return {}
    values: Sequence[Value] | None = None
    given = {_bare(name): distribution for name, distribution in space.items()}
    for argument in typed:
        one = argument.distribution is None and not argument.merges
        if one and _bare(argument.key) == _bare(key):
            # A single value is a sequence of one: it is ranked, and has task_params, all the same.
            text = argument.text.partition("=")[2]
            given |= parse_space({_bare(key): text}, config_loader, "the command line")
    if _bare(key) in given:
        distribution = given[_bare(key)]
        if isinstance(distribution, Interval):
            raise ConfigurationError(
                f"The sequence '{key}' is an interval; it must list tasks: {key}=a,b,c"
            )
        values = distribution.values
    if values is None:
        return {}
    tasks: dict[str, Value] = {}
    for value in values:
        name = _task_name(value)
        if not name:
            values = ()
            break
        if name in tasks:
            raise ConfigurationError(
                f"Task '{name}' stands twice in the sequence '{key}'.\n"
                "  Scores are kept by task name. Give the second one a name of its own."
            )
        tasks[name] = value
    if not values:
        raise ConfigurationError(
            f"The sequence '{key}' is empty.\n"
            f"  It lists the tasks in their order: {key}=first,second,third"
        )
    return tasks


def _task_name(value: Value) -> str:
    if isinstance(value, list):
        return "+".join(_task_name(item) for item in value)
    return "" if value is None else str(value)


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


def _compose_all(
    plan: Plan, space: Mapping[str, Distribution], compose: Compose
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Mapping[str, Any]]]:
    """Compose what every task's first job gets, and each choice of the shared space once.

    Gives the configuration by task, and by choice what that one makes different: a choice of a
    config group brings keys of its own.

    All combinations would cost 40 ms each; a mistake sits in a key or in a value, and every one of
    those is composed here. `init_from` and its like get stand-ins: their keys have to exist too.
    """
    configs: dict[str, Mapping[str, Any]] = {}
    variants: dict[str, Mapping[str, Any]] = {}
    for stage in plan.stages:
        first = stage.search.ask(())
        params = dict(first.params) if first is not None else {}
        named = f"Task '{stage.task}'" if plan.tasks else "The job"
        handed: dict[str, Value] = {
            "checkpoint": "checkpoint" if stage.number > 1 else None,
            "seen_tasks": [*list(plan.tasks)[: stage.number]],
            "stage": stage.number,
            "trial": 0,
            "parent": 0 if stage.number > 1 else None,
        }
        configs[stage.task] = compose(plan._overrides(stage.task, params, handed, ""), named)
        if isinstance(stage.search, ListedSearch):
            trials = [{**params, **other} for other in stage.search.listed[1:]]
        elif stage.number == 1 or stage.task in plan.settings.task_params:
            axes = space if stage.task not in plan.settings.task_params else {}
            trials = [
                {**params, key: value}
                for key, axis in axes.items()
                if isinstance(axis, Choice)
                for value in axis.values[1:MOST_CHECKED]
            ]
        else:
            trials = []
        for other in trials[:MOST_CHECKED]:
            config = compose(plan._overrides(stage.task, other, handed, ""), named)
            chosen = [f"{key}={value}" for key, value in other.items() if params.get(key) != value]
            variants[f"{stage.task} with {' '.join(chosen)}"] = {
                key: value for key, value in config.items() if configs[stage.task].get(key) != value
            }
    return configs, variants


MOST_CHECKED = 64  # choices composed ahead: two seconds and a half; the rest show in their jobs


def _fingerprint(
    plan: Plan, searches: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What makes results what they are; a resumed sweep must agree with it, key by key."""
    settings = plan.settings
    handed = {_bare(key) for key in settings.handover}
    searched = {
        _bare(key)
        for description in searches.values()
        for mapping in (description if isinstance(description, list) else [description])
        for key in mapping
    }
    fixed = {
        task: {k: v for k, v in config.items() if k not in handed and k not in searched}
        for task, config in configs.items()
    }
    return {
        "hydra.sweeper.sequence": list(plan.tasks),
        "hydra.sweeper.top_k": settings.top_k,
        "hydra.sweeper.metric": settings.metric,
        "hydra.sweeper.direction": settings.direction,
        "hydra.sweeper.seed": settings.seed,
        "hydra.sweeper.search": dict(settings.search),
        "hydra.sweeper.rounds": settings.rounds,
        "hydra.sweeper.popsize": settings.popsize,
        "hydra.sweeper.handover": dict(settings.handover),
        "search space": dict(searches),
        "configuration": {task: config for task, config in fixed.items() if config},
    }


def _bare(key: str) -> str:
    """The key that `key`, `+key` and `++key` set; `~key` takes away what they set."""
    return key.lstrip("+")


def _slug(text: str) -> str:
    """A task's name as one folder name: safe in a path, in Hydra's syntax and in a shell."""
    return re.sub(r"[^\w.+-]", "_", text, flags=re.ASCII) or "_"
