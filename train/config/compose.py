"""Hydra's composition, held against the sections: every mistake at once, each with its file and line.

Hydra stops at the first mistake and names neither file nor line. `install` wraps what composes
a configuration, so that runs, sweeps (in the controller, before any job) and `--cfg` are all told
the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from enum import Enum
from functools import partial, wraps
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autocl_sweeper.errors import LayerError
from autocl_sweeper.yaml.resolve import STAR, expand_stars
from train.config.env import check_env
from train.config.ofasys import BY_KEY, OFASYS
from train.config.origins import COMMAND_LINE, Composition, Keys, Layer, dotted, keys_of, origin
from train.config.schema import NAME, SECTIONS, TopLevel, ask, drop_unset, is_ours, register
from train.config.sections import (
    DeltaSettings,
    EvaluationSettings,
    MemorySettings,
    ModelSettings,
    Task,
    TrainerSettings,
    read_job,
    read_tasks,
)
from train.config.settle import as_written, settle
from train.config.typed import (
    Problem,
    SettingsError,
    SettingsErrors,
    build,
    check,
    check_value,
    hints,
    nearest,
    options,
    problems_of,
)
from train.data.task_plan import plan_run, plan_task
from train.model.family import check_model

PARTS: Mapping[str, type] = {
    "model": ModelSettings,
    "delta": DeltaSettings,
    "trainer": TrainerSettings,
    "memory": MemorySettings,
    "evaluation": EvaluationSettings,
}
TASKS = Path(__file__).resolve().parents[2] / "conf" / "task"
KINDS: Mapping[str, type] = {**SECTIONS, **OFASYS}
TOP: Mapping[str, Any] = {key: hints(TopLevel)[f.name] for key, f in options(TopLevel).items()}


class Refused(ConfigCompositionException, SettingsError):
    """A configuration that cannot be run; Hydra prints it without a traceback."""


def install() -> None:
    """Register the schema, and have compositions that use it checked. May be called again."""
    register()
    if not hasattr(ConfigLoaderImpl._load_configuration_impl, "around"):
        checked = _checked(ConfigLoaderImpl._load_configuration_impl)
        ConfigLoaderImpl._load_configuration_impl = checked  # type: ignore[method-assign]
        merged = _asking(ConfigLoaderImpl._compose_config_from_defaults_list)
        ConfigLoaderImpl._compose_config_from_defaults_list = merged  # type: ignore[method-assign]
        for name in ("show_cfg", "show_info", "shell_completion"):
            setattr(Hydra, name, _meant(Use.SHOWN, getattr(Hydra, name)))
        Hydra.run = _meant(Use.RUN, Hydra.run)  # type: ignore[method-assign]


def _checked(compose: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    @wraps(compose)
    def load(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        names = ("config_name", "overrides", "run_mode")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        composition = Composition(self, *(given[name] for name in names))
        use = _use.get()
        if use is Use.RUN:
            _use.set(Use.OTHER)  # what the job itself composes is its own affair
        try:
            config = compose(self, *args, **kwargs)
        except (HydraException, OmegaConfBaseException) as error:
            if mistakes := _mistakes(composition):
                raise Refused(mistakes) from error
            raise
        except ValueError as error:
            if nameless := _nameless(composition.overrides):
                raise Refused(nameless) from error
            raise
        if is_ours(config):
            of_sweep = use is Use.OTHER and config.hydra.mode is RunMode.MULTIRUN
            _finish(config, composition, Use.JOB if of_sweep else use)
        return config

    # For the sweeper's faster composition.
    load.around = _checked  # type: ignore[attr-defined]
    load.sheds = _shed  # type: ignore[attr-defined]
    return load


def _shed(config: DictConfig, setting: Sequence[Sequence[str]]) -> None:
    """Take away what `_finish` will, unless it is going to be set."""
    if is_ours(config):
        kept = {tuple(keys[:length]) for keys in setting for length in range(1, len(keys) + 1)}
        drop_unset(config, kept)


class Use(Enum):
    """What a configuration is composed for."""

    SHOWN = "to be looked at (`--cfg job`): it may have `???` left"
    RUN = "to be trained by this process"
    JOB = "to be trained as a job of a sweep"
    OTHER = "whatever one does with it who composes himself: his layers may lack what a job needs"


# Of the sweep whose jobs are composed here: it was made before them, and leases as it was told.
_launcher: ContextVar[Any] = ContextVar("launcher", default=None)
_use: ContextVar[Use] = ContextVar("use", default=Use.OTHER)


def _meant(use: Use, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def composing(*args: Any, **kwargs: Any) -> Any:
        token = _use.set(use)
        try:
            return function(*args, **kwargs)
        finally:
            _use.reset(token)

    return composing


def _asking(merge: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """Mark what a file says `???` of: merged, it looks like all the other options nobody set."""

    @wraps(merge)
    def merged(self: ConfigLoaderImpl, defaults: Any, repo: Any) -> DictConfig:
        config = merge(self, defaults=defaults, repo=repo)
        if is_ours(config):
            for default in defaults:
                if default.config_path is None:
                    continue
                loaded = repo.load_config(default.config_path)
                if loaded is None or not loaded.path.startswith("file://"):
                    continue
                package = default.package
                if package is None:
                    package = loaded.header["package"]
                home = keys_of(package) if package and package != "_global_" else ()
                if home[:1] != ("hydra",):
                    for keys in _asked(as_written(loaded.config)):
                        ask(config, (*home, *keys))
        return config

    return merged


def _nameless(overrides: Sequence[str]) -> str:
    """Which group is chosen by what is no name; empty: none is."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group = override.key_or_group
        if group in SECTIONS and not isinstance(override.value(), (str, list, dict)):
            return (
                f"{COMMAND_LINE}: {override.input_line}: a choice of the group '{group}' is the name of"
                f" one of its files, or a list of names. ~{group} chooses none of them."
            )
    return ""


def _asked(node: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Where `???` stands."""
    if node == "???":
        yield keys
    elif isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _asked(value, (*keys, key))


def _finish(config: DictConfig, composition: Composition, use: Use) -> None:
    if any("???" in text for text in composition.overrides):
        for layer in composition.layers():
            for keys in _asked(layer.values) if not layer.file else ():
                ask(config, keys)
    drop_unset(config)
    if composition.run_mode is not RunMode.RUN:
        _launcher.set(_resolved(config.hydra.launcher))
        return  # of a sweep; its jobs are composed, and checked, one by one
    if lists := [text for text in composition.overrides if text.startswith("task=[")]:
        _refuse_clashes(lists, composition.layers())
    try:
        verify(config, use)
    except SettingsErrors as error:
        raise Refused(_located(list(error.problems), composition.layers())) from error
    except SettingsError as error:
        raise Refused(str(error)) from error


def _resolved(launcher: DictConfig) -> DictConfig:
    """What `check_env` asks of a launcher: its interpolations are the sweep's, the same for all jobs."""
    try:
        asked = {key: OmegaConf.select(launcher, key) for key in ("_target_", "devices_per_job")}
    except OmegaConfBaseException:
        return launcher  # a job that depends on it is told
    return OmegaConf.create(asked)


def _refuse_clashes(lists: Sequence[str], layers: list[Layer]) -> None:
    """Files of the group `task` chosen together must differ, and in the names of their tasks too."""
    for override in OverridesParser.create().parse_overrides(list(lists)):
        chosen = override.value()
        assert isinstance(chosen, list)
        if twice := [str(name) for name, times in Counter(map(str, chosen)).items() if times > 1]:
            raise Refused(
                f"{COMMAND_LINE}: {override.input_line}: {', '.join(twice)} stands twice, and two tasks"
                " cannot have one name.\n  Take it out, or add a second one of its class under a name of"
                " its own: '+task.other={_name: <class>, ...}'"
            )
    brought: dict[str, Layer] = {}
    for layer in layers:
        if layer.file and layer.prefix == ("task",):
            for name in layer.values["task"]:
                other = brought.setdefault(str(name), layer)
                if _outermost(other) != _outermost(layer) and name != STAR:
                    raise Refused(
                        f"task.{name}: two chosen files bring a task of this name,"
                        f" {other.place(('task', name))} and {layer.place(('task', name))}.\n"
                        "  Names of tasks are free apart from their class (`_name`): rename one,"
                        " or choose only one of the files."
                    )


def _outermost(layer: Layer) -> str:
    return (*layer.included_from, layer.file)[0]


def verify(config: DictConfig, use: Use = Use.OTHER) -> None:
    """Hold a composed configuration against the sections, and as a job if it will be one.

    Raises SettingsError, with all mistakes of the sections, or else of the job.
    """
    # Hydra's own values are known once the job has its folder; until then they are text.
    values = _without_hydras(as_written(config))
    problems: list[Problem] = []
    if any(_asked(values)):
        # What refers to such a value cannot be resolved, and need not be: the value comes first.
        values = _with_stars(values)
        if use is not Use.SHOWN:
            problems += [_unanswered(keys) for keys in _asked(values)]
    else:
        values = settle(values)
    for name, node in values.items():
        problems += _check(name, node)
    if not problems and use in (Use.RUN, Use.JOB):
        launcher = None if use is Use.RUN else _launcher.get() or config.hydra.launcher
        problems = mistakes_of_job(values, launcher)
    if problems:
        raise SettingsErrors(problems)


def mistakes_of_job(values: Mapping[str, Any], launcher: Any) -> list[Problem]:
    """What is wrong with settled values as those of one job, whatever an earlier job hands over.

    launcher: the settings of what will start it; None: this process trains.
    """
    own = {key: node for key, node in values.items() if key not in ("init_from", "seen_tasks")}
    if launcher is None:  # in a sweep the checkpoint need not be there yet
        tasks_here = list(values.get("task") or {})
        own |= {"init_from": values.get("init_from"), "seen_tasks": tasks_here}
    env = partial(check_env, values.get("env") or {}, launcher)
    begun = values.get("init_from")

    def job() -> None:
        read = replace(read_job(own, TASKS), init_from=Path(str(begun)) if begun else None)
        check_model(read, plan_run(read))

    problems = _told([env, job])
    if problems:  # the first of the job's parts to be wrong; what about the others?
        parts = [partial(build, kind, own.get(name) or {}, name) for name, kind in PARTS.items()]
        tasks = (own.get("task") or {}).items()
        parts += [partial(lambda one: plan_task(*read_tasks(one)), {name: t}) for name, t in tasks]
        problems += _told(parts)
    return list(dict.fromkeys(problems))


def _told(checks: Iterable[Callable[[], Any]]) -> list[Problem]:
    problems: list[Problem] = []
    for one in checks:
        try:
            one()
        except SettingsError as error:
            problems += problems_of(error)
    return problems


def _with_stars(values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        expanded: dict[str, Any] = expand_stars(values)
    except LayerError as error:
        raise SettingsError(str(error)) from error
    return expanded


def _unanswered(keys: Keys) -> Problem:
    key = dotted(keys)
    typed = f"{key}.<option>" if key in KINDS else key.partition("[")[0]
    return Problem(
        key,
        f"{key}=???: ??? means that it has to be given, and nothing gives it. Set it in a later file or"
        f" on the command line ({typed}=<value>), or remove the ???",
    )


def _without_hydras(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_hydras(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_hydras(value) for value in node]
    if isinstance(node, str) and ("${hydra:" in node or "${hydra." in node):
        return node.replace("${", "\\${")
    return node


def _check(name: str, node: Any) -> list[Problem]:
    """What is wrong with one top-level key."""
    if node == "???":
        return []
    if name in TOP:
        problems = check_value(TOP[name], node, name)
        one = options(TopLevel)[name].metadata
        if not problems and one["check"] and isinstance(node, int) and not one["check"](node):
            problems.append(Problem(name, f"{name}={node}: {one['rule']}"))
        return problems
    if name not in KINDS:
        known = [*KINDS, *TOP]
        near = nearest(name, known) or f". There are {', '.join(known)}"
        return [Problem(name, f"{name}: there is no section or key of this name{near}")]
    if KINDS[name] is not Task:
        return check(KINDS[name], node, name) if node is not None else []
    if not isinstance(node, Mapping):
        return [Problem(name, f"{name}={node}: must be a mapping of task names to tasks")]
    return [
        problem
        for instance, task in node.items()
        if task != "???"
        for problem in check(Task, task, f"{name}.{instance}")
    ]


def _mistakes(composition: Composition) -> str:
    """What is wrong with the layers of a composition that failed; empty: it is not theirs."""
    try:
        layers = composition.layers()
    except Exception:  # the composition failed before it had layers: Hydra's message says why
        return ""
    if not any(NAME in _defaults(layer) for layer in layers):
        return ""
    told = []
    for layer in layers:
        for name, node in layer.values.items():
            if name != "hydra":
                told += [_line(problem, [layer]) for problem in _check(str(name), node)]
    return _together(told)


def _defaults(layer: Layer) -> str:
    """The text of the file where it may have a defaults list."""
    if not layer.file or layer.prefix:
        return ""
    with open(layer.file, encoding="utf-8") as file:
        return file.read()


def _located(problems: list[Problem], layers: list[Layer]) -> str:
    return _together([_line(problem, layers) for problem in problems])


def _line(problem: Problem, layers: list[Layer]) -> str:
    others = [row.key for row in BY_KEY.values() if problem.key in row.to]
    place = origin(layers, problem.key, others)
    return f"{place}: {problem.message}" if place else problem.message


def _together(told: list[str]) -> str:
    unique = list(dict.fromkeys(told))
    if len(unique) < 2:
        return "".join(unique)
    return "\n".join([f"{len(unique)} mistakes in the configuration:", *unique])
