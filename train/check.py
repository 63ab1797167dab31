"""All mistakes of a composed configuration at once, each with its file and line.

A run and a job are checked when they begin (`checked`); hydra/sweeper=autocl has `check_job` called for the
jobs it plans, before any of them starts: conf/hydra/sweeper/app/autocl.yaml names it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig

from autocl_sweeper.errors import LayerError
from autocl_sweeper.yaml.origins import Keys, Layer, keys_of, layers_of, origin, typed_for
from autocl_sweeper.yaml.resolve import STAR, expand_stars
from autocl_sweeper.yaml.text import INCLUDE, dotted, walk
from train.config.env import EnvSettings, read_env
from train.config.hf_arguments import HFArguments
from train.config.memory import ROWS as MIMOSE
from train.config.ofasys import BY_KEY
from train.config.reading import PARTS, read_run, read_tasks, read_text, values_of_run
from train.config.schema import KINDS, TopLevel, not_a_section
from train.config.sections import Run
from train.config.settle import as_written, settle
from train.config.task import Task
from train.config.text_data import config_root, task_names
from train.config.typed import (
    Problem,
    SettingsError,
    SettingsErrors,
    build,
    check,
    default_of,
    nearest,
    nested,
    options,
    problems_of,
    shown,
)
from train.data.tables import DataError
from train.data.task_plan import TaskPlan, plan_run, plan_task, refuse_processes
from train.model.family import check_model

HANDED = ("init_from", "seen_tasks")  # by an earlier job of a chain


class Refused(ConfigCompositionException, SettingsError):
    """A configuration that cannot be run; Hydra prints it without a traceback."""


class Ended(ConfigCompositionException):
    """A run that could not go on, for what its message says; Hydra prints it without a traceback."""


@dataclass(frozen=True)
class Checked:
    """A run that can begin: settled once, planned once."""

    run: Run
    env: EnvSettings
    plans: Mapping[str, TaskPlan]


def checked(config: DictConfig, hydra: Any) -> Checked:
    """The run that a composed configuration describes, trained by this process.

    hydra: the `hydra` node of the configuration. Raises Refused.
    """
    return _checked(as_written(config), hydra, None)


def check_job(config: DictConfig) -> dict[str, Any]:
    """All values that a job of a sweep uses, the sections' defaults among them.

    config: the job's, with the `hydra` node, whose launcher is the one that will start the job.
    Raises Refused for a job that cannot begin, whatever an earlier job hands over.
    """
    found = _checked(_without_hydras(as_written(config)), config.hydra, config.hydra.launcher)
    values = values_of_run(found.run, found.env)
    defaults = {key: default_of(one) for key, one in options(HFArguments).items()}
    return {**values, "trainer": {**defaults, **values["trainer"]}}


def _checked(written: dict[str, Any], hydra: Any, launcher: Any) -> Checked:
    values = checked_values(written, hydra)
    with placing(hydra):
        return _job(values, written, launcher)


def checked_values(written: dict[str, Any], hydra: Any) -> dict[str, Any]:
    """The settled values of a composed configuration.

    Raises Refused with all mistakes of the sections, whatever job they are for.
    """
    refuse_clashes(hydra)
    with placing(hydra):
        try:
            starred: dict[str, Any] = expand_stars(written)
        except LayerError as error:
            _raise(_of_sections(written))
            raise SettingsError(str(error)) from error
        # What refers to a `???` cannot be resolved, and need not be: the value comes first.
        asked = [_unanswered(keys) for keys, value in walk(starred) if value == "???"]
        _raise([*_new_tasks(hydra, written), *asked, *_of_sections(starred)])
        values = settle(starred)
        _raise(_of_sections(values))
        return values


def _raise(problems: Iterable[Problem]) -> None:
    if found := list(dict.fromkeys(problems)):
        raise SettingsErrors(found)


# -- the sections -----------------------------------------------------------------------------------


def _of_sections(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Unknown keys and values of a wrong type or out of range, anywhere."""
    known = [*KINDS, *options(TopLevel)]
    for name, node in values.items():
        if name not in known:
            yield _unknown_section(name, node, known)
        elif node == "???" or (node is None and name not in KINDS):
            continue
        elif name not in KINDS:
            yield from check(TopLevel, {name: node}, "")
        elif not isinstance(node, Mapping):
            yield Problem(name, f"{name}={shown(node)}: {not_a_section(name, node)}")
        elif name != "task":
            yield from check(KINDS[name], node, name)
        else:
            for one, task in node.items():
                yield from _of_task(one, task, node)


def _of_task(name: Any, task: Any, tasks: Mapping[Any, Any]) -> list[Problem]:
    key = f"task.{name}"
    if "." in str(name) and (
        not isinstance(task, Mapping) or str(name).partition(".")[0] in map(str, tasks)
    ):
        return [Problem(key, f"{key}: {nested(str(name), task)}")]
    return [] if task == "???" else check(Task, task, key)


def _unknown_section(name: str, node: Any, known: Iterable[str]) -> Problem:
    told = f"{name}: there is no section or key of this name"
    if name.partition(".")[0] in (*known, "hydra"):
        return Problem(name, f"{told}: {nested(name, node)}")
    near = nearest(name, [*known, INCLUDE])
    return Problem(name, told + (near or ". python train.py --info lists those there are"))


def _unanswered(keys: Keys) -> Problem:
    key = dotted(keys)
    typed = f"{key}.<option>" if key in KINDS else key.partition("[")[0]
    return Problem(
        key,
        f"{key}=???: ??? means that it has to be given, and nothing gives it. Set it in a later file or"
        f" on the command line ({typed}=<value>), or remove the ???",
    )


def _without_hydras(node: Any) -> Any:
    """Hydra's own values are known once the job has its folder; until then they are text."""
    if isinstance(node, dict):
        return {key: _without_hydras(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_hydras(value) for value in node]
    if isinstance(node, str) and ("${hydra:" in node or "${hydra." in node):
        return node.replace("${", "\\${")
    return node


# -- names of tasks ---------------------------------------------------------------------------------


def _new_tasks(hydra: Any, written: Mapping[str, Any]) -> list[Problem]:
    """Overrides without a plus of tasks that are not there: Hydra itself lets them add one.

    written: the configuration as composed.
    """
    tasks = written.get("task")
    if not isinstance(tasks, Mapping):
        return []
    typed = [text for text in typed_for(hydra) if re.match(r"\+*task[.=]", text)]
    overrides = [
        (keys_of(one.key_or_group), one) for one in OverridesParser.create().parse_overrides(typed)
    ]
    named = {keys[:3] for keys, _ in overrides}

    def may_be_new(keys: Keys) -> bool:
        """Whether all there is of the task was typed, so that its files have to be asked for."""
        if len(keys) < 2:
            return False
        node = tasks.get(keys[1])
        if keys[:2] in named or not isinstance(node, Mapping):
            return True
        return all((*keys[:2], str(key)) in named for key in node)

    if not any(may_be_new(keys) for keys, override in overrides if not override.is_add()):
        return []
    known = {str(name) for layer in layers_of(hydra) if layer.file for name in _tasks_of(layer)}
    root = written.get("task_config_dir")
    folders = task_names(config_root(root if isinstance(root, str) else None))
    known |= {name for name in folders if name in tasks}
    problems = []
    for keys, override in overrides:
        if override.is_add() or override.is_force_add():
            added = override.value() if len(keys) == 1 else {keys[1]: None}
            known |= {str(name) for name in added} if isinstance(added, dict) else set()
        elif len(keys) > 1 and keys[1] not in known:
            key, name = f"task.{keys[1]}", keys[1]
            near = nearest(name, known) or f"; there are: {', '.join(known) or 'none'}"
            told = f"{override.input_line}: there is no task '{name}'{near}"
            new = f"A new one is added with a plus: '+{key}={{_name: <class>, ...}}'"
            problems.append(Problem(key, f"{told}\n  {new}"))
    return problems


def _tasks_of(layer: Layer) -> Iterable[Any]:
    node = layer.values.get("task")
    return node if isinstance(node, Mapping) else ()


def refuse_clashes(hydra: Any) -> None:
    """Files of the group `task` chosen together must differ, and in the names of their tasks too.

    Raises Refused.
    """
    lists = [text for text in typed_for(hydra) if text.startswith("task=[")]
    for override in OverridesParser.create().parse_overrides(lists):
        chosen = override.value()
        assert isinstance(chosen, list)
        if twice := [str(name) for name, times in Counter(map(str, chosen)).items() if times > 1]:
            raise Refused(
                f"the command line: {override.input_line}: {', '.join(twice)} stands twice, and two tasks"
                " cannot have one name.\n  Take it out, or add a second one of its class under a name of"
                " its own: '+task.other={_name: <class>, ...}'"
            )
    brought: dict[str, Layer] = {}
    for layer in layers_of(hydra) if lists else ():
        if layer.file and layer.prefix == ("task",):
            for name in map(str, _tasks_of(layer)):
                other = brought.setdefault(name, layer)
                if _outermost(other) != _outermost(layer) and name != STAR:
                    raise Refused(
                        f"task.{name}: two chosen files bring a task of this name,"
                        f" {other.place(('task', name))} and {layer.place(('task', name))}.\n"
                        "  Names of tasks are free apart from their class (`_name`): rename one,"
                        " or choose only one of the files."
                    )


def _outermost(layer: Layer) -> str:
    return (*layer.included_from, layer.file)[0]


# -- the job ----------------------------------------------------------------------------------------


def _job(values: dict[str, Any], written: dict[str, Any], launcher: Any) -> Checked:
    """The job of settled values. Raises SettingsErrors with the mistakes of all its parts."""
    problems: list[Problem] = []

    def attempt(make: Callable[..., Any], *args: Any) -> Any:
        try:
            return make(*args)
        except SettingsError as error:
            problems.extend(problems_of(error))

    env = attempt(read_env, values.get("env") or {}, launcher)
    begun = values.get("init_from")
    if launcher is not None:  # in a sweep the checkpoint need not be there yet
        values = {key: node for key, node in values.items() if key not in HANDED}
    run = attempt(read_run, written, values)
    if run is not None:
        if begun and launcher is not None:
            run = replace(run, init_from=Path(str(begun)))
        if env is not None:
            attempt(run.memory.refuse_processes, env.processes)
            attempt(refuse_processes, run.tasks, env.processes)
        attempt(run.merge.refuse_for_a_job, run.delta.kind, run.delta.start_from, bool(begun))
    plans = run and attempt(plan_run, run)
    if plans:
        attempt(check_model, run, plans)
    if problems:  # the first of the job's parts to be wrong; what about the others?
        for name, kind in PARTS.items():
            attempt(build, kind, values.get(name) or {}, name)
        text = attempt(read_text, values)
        for name, task in (values.get("task") or {}).items():
            attempt(lambda one: plan_task(read_tasks(one)[0], text), {name: task})
        _raise(problems)
    return Checked(run, env, plans)


# -- places -----------------------------------------------------------------------------------------


@contextmanager
def placing(hydra: Any) -> Iterator[None]:
    """Mistakes found in the block become Refused, each behind its file and line."""
    try:
        yield
    except (SettingsError, DataError) as error:
        layers = layers_of(hydra)
        told = []
        for problem in problems_of(error):
            key = problem.key
            others = [row.key for row in BY_KEY.values() if key in row.to]
            others += [f"memory.{k}" for k, row in MIMOSE.items() if key == f"memory.{row.to}"]
            place = origin(layers, key, others)
            told.append(f"{place}: {problem.message}" if place else problem.message)
        unique = list(dict.fromkeys(told))
        count = [f"{len(unique)} mistakes in the configuration:"] if len(unique) > 1 else []
        raise Refused("\n".join([*count, *unique])) from error
