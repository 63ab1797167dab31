"""A script's settings, checked as one: every mistake is reported before any job starts."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.script.config import BASE, HANDED, AppConf, NumberConf, ScriptConf
from autocl_sweeper.script.numbers import Source
from autocl_sweeper.script.template import argv, filled, names_in

MEANINGS = ("success", "failure", "out_of_memory", "infeasible")
INTERPRETERS = re.compile(r"(python[\d.]*|torchrun|accelerate)$")


@dataclass(frozen=True)
class Settings:
    """What a script's file says for one job, and the values of its placeholders."""

    script: ScriptConf  # its command is words and groups of words, its environment texts
    params: Mapping[str, Any]
    values: Mapping[str, Any]

    def argv(self) -> list[str]:
        return argv(self.script.command, self.values)

    def folder(self) -> Path:
        """The working directory of the command."""
        return Path(self.values["start_dir"], filled(self.script.cwd or "", self.values))

    def environment(self) -> dict[str, str]:
        found = {**os.environ, "PYTHONUNBUFFERED": "1"}  # lines appear in the log as they come
        for name, text in self.script.env.items():
            if text is None:
                found.pop(name, None)
            else:
                found[name] = filled(text, self.values)
        return found

    def confs(self) -> dict[str, NumberConf]:
        """Where the score and the further numbers stand, by the place of the key."""
        found = {} if self.script.score is None else {"script.score": self.script.score}
        return found | {f"script.numbers.{name}": one for name, one in self.script.numbers.items()}

    def sources(self) -> list[Source]:
        """Every number that the job is to give, its placeholders filled."""
        found = [self._source(name, conf) for name, conf in self.confs().items()]
        return [*found, *self.evaluations().values()]

    def evaluations(self) -> dict[str, Source]:
        """Task so far -> where its score stands."""
        if self.script.eval is None:
            return {}
        seen = self.values["seen_tasks"] or [self.values["task"]]
        return {
            str(task): self._source(f"script.eval of task {task}", self.script.eval, {"task": task})
            for task in seen
        }

    def _source(self, name: str, conf: NumberConf, more: Mapping[str, Any] = {}) -> Source:
        values = {**self.values, **more}

        def text(given: str | None, quote: Any = str) -> str | None:
            return None if given is None else filled(given, values, quote)

        return Source(name, text(conf.file), text(conf.key), text(conf.regex, re.escape))


def read(config: Any, hydra: Any, output_dir: Path) -> Settings:
    """The settings of a job; `hydra`: Hydra's own. Raises ConfigurationError with all mistakes."""
    try:
        app: Any = OmegaConf.merge(OmegaConf.structured(AppConf), _own(config))
        plain: Any = OmegaConf.to_object(app)
    except OmegaConfBaseException as error:
        raise ConfigurationError(str(error)) from error
    script: ScriptConf = plain.script
    mistakes: list[str] = []
    script.command = _command(script.command, mistakes)
    script.env = {name: None if one is None else str(one) for name, one in script.env.items()}
    flat = dict(_flat(plain.params))
    handed = {name: getattr(plain, name) for name in ("task", *HANDED)}
    built_in = {
        "output_dir": str(output_dir),
        "checkpoint_dir": str(output_dir / script.checkpoint),
        "start_dir": hydra.runtime.cwd,
        "devices": OmegaConf.select(hydra.launcher, "devices_per_job", default=1),
        "python": sys.executable,
    }
    of_task = dict(_flat(_of_task(plain.tasks, plain.task, mistakes)))
    for name in sorted(flat.keys() & {*handed, *built_in}):
        mistakes.append(f"params.{name}: {{{name}}} is set by the sweep; give the key another name")
    for name in sorted(of_task.keys() & {*flat, *handed, *built_in}):
        mistakes.append(f"tasks.{plain.task}.{name}: {{{name}}} is set elsewhere; rename it")
    settings = Settings(script, flat, {**flat, **of_task, **handed, **built_in})
    mistakes += _mistakes(settings)
    if mistakes:
        listed = "\n".join(f"  {mistake}" for mistake in mistakes)
        raise ConfigurationError(f"The script cannot be run as configured:\n{listed}")
    return settings


def _own(config: Any) -> DictConfig:
    """The keys of this app alone, interpolations resolved. Raises ConfigurationError without a script."""
    if OmegaConf.select(config, "script") is None:
        raise ConfigurationError(
            f"There is no script: its YAML file begins with `defaults: [{BASE}, _self_]` and has a"
            " section `script`.\n"
            "  python -m autocl_sweeper.script --config-dir <folder> --config-name <file without .yaml>\n"
            "  --help lists the keys, `autocl docs scripts` shows an example."
        )
    found: dict[str, Any] = {}
    for one in fields(AppConf):
        node = OmegaConf.select(config, one.name)
        if one.name != "defaults":
            is_node = OmegaConf.is_config(node)
            found[one.name] = OmegaConf.to_container(node, resolve=True) if is_node else node
    return OmegaConf.create(found)


def _command(given: Any, mistakes: list[str]) -> list[str | list[str]]:
    """The words of a command and its groups, as texts."""
    if not isinstance(given, list):
        mistakes.append(
            f"script.command is {given!r}, not a list: no shell reads it, so that every word is an"
            ' item, ["{python}", train.py, "--lr={lr}"]'
        )
        return []
    if not given:
        mistakes.append("script.command is empty: the program and its arguments, as a list")
    return [
        [_word(text, f"script.command[{i}][{j}]", mistakes) for j, text in enumerate(entry)]
        if isinstance(entry, list)
        else _word(entry, f"script.command[{i}]", mistakes)
        for i, entry in enumerate(given)
    ]


def _word(given: Any, place: str, mistakes: list[str]) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, int | float) and not isinstance(given, bool):
        return repr(given)
    if isinstance(given, dict) and len(given) == 1:
        (name,) = given
        mistakes.append(
            f'{place} is a mapping to YAML: put quotes around the placeholder, "{{{name}}}"'
        )
    else:
        mistakes.append(f"{place} is {given!r}, not a word: put quotes around it")
    return ""


def _of_task(tasks: Mapping[str, Any], task: Any, mistakes: list[str]) -> Mapping[str, Any]:
    """The values that this task has of its own."""
    if not tasks or task is None:
        return {}
    found = tasks.get(str(task))
    if isinstance(found, Mapping):
        return found
    mistakes.append(
        f"tasks has no values for task '{task}'; it has: {', '.join(tasks)}"
        if str(task) not in tasks
        else f"tasks.{task} is {found!r}, not a mapping of names to values"
    )
    return {}


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# -- mistakes ---------------------------------------------------------------------------------------


def _mistakes(settings: Settings) -> list[str]:
    found = [*_of_placeholders(settings)]
    if not found and settings.script.command:
        found += _of_program(settings)
    return [*found, *_of_sources(settings), *_of_ends(settings.script)]


def _of_placeholders(settings: Settings) -> Iterator[str]:
    """Placeholders without a value, and parameters without a placeholder."""
    used: set[str] = set()
    for place, text, may_be_null in _texts(settings):
        for name in names_in(text):
            used.add(name)
            if name not in settings.values:
                yield (
                    f"{place}: {{{name}}} has no value. There are: "
                    f"{', '.join(sorted(settings.values))}; `params: {{{name}: ...}}` adds one"
                )
            elif settings.values[name] is None and not may_be_null:
                yield f"{place}: {{{name}}} is null{_remedy(name)}"
    for name in sorted(settings.params.keys() - used):
        yield (
            f"params.{name} is used nowhere: put {{{name}}} into script.command, or searching it"
            " changes nothing"
        )


def _remedy(name: str) -> str:
    if name in ("stage", "trial", "parent", "seed"):
        return f": the sweep gives it with +hydra.sweeper.handover.{name}={name}"
    if name == "task":
        return ": a sweep gives it with task=a,b; or set a default in the file"
    why = " on the first task" if name in HANDED else ""
    return (
        f"{why}: put the words that need it into a list of their own, which is then left out:"
        f' [--option, "{{{name}}}"]'
    )


def _texts(settings: Settings) -> Iterator[tuple[str, str, bool]]:
    """(place, text, whether its placeholders may be null) of all that is filled."""
    for i, entry in enumerate(settings.script.command):
        for text in [entry] if isinstance(entry, str) else entry:
            yield f"script.command[{i}]", text, not isinstance(entry, str)
    others = {"script.cwd": settings.script.cwd}
    others |= {f"script.env.{name}": value for name, value in settings.script.env.items()}
    for name, conf in _every_conf(settings).items():
        others |= {f"{name}.{kind}": getattr(conf, kind) for kind in ("file", "key", "regex")}
    yield from ((place, text, False) for place, text in others.items() if text is not None)


def _every_conf(settings: Settings) -> dict[str, NumberConf]:
    of_tasks = settings.script.eval
    return settings.confs() | ({} if of_tasks is None else {"script.eval": of_tasks})


def _of_sources(settings: Settings) -> Iterator[str]:
    script = settings.script
    if script.score is None and script.eval is None:
        yield (
            "script.score is missing: where the number stands that ranks a trial, for instance\n"
            "    score: {key: accuracy}                        # the last JSON line of the output\n"
            "    score: {file: metrics.json, key: eval.acc}    # a file in the job's folder\n"
            "    score: {regex: 'accuracy: ([0-9.]+)'}         # the last match in the output"
        )
    for name in script.numbers.keys() & {"score", "eval", "test", "checkpoint"}:
        yield f"script.numbers.{name}: the name has a meaning of its own; take another one"
    for name, conf in _every_conf(settings).items():
        if (conf.key is None) == (conf.regex is None):
            yield f"{name}: give either key (of JSON) or regex"
        if conf.regex is not None:
            try:
                if not re.compile(conf.regex).groups:
                    yield f"{name}.regex {conf.regex!r} has no group: put ( ) around the number"
            except re.error as error:
                yield f"{name}.regex {conf.regex!r} is no regular expression: {error}"
        if conf.file is not None and not _is_below(conf.file):
            yield (
                f"{name}.file '{conf.file}' is not below the job's folder, where no other job writes:"
                ' give the script "{output_dir}", or set script.cwd: "{output_dir}"'
            )
    if script.eval is not None:
        texts = (script.eval.file, script.eval.key, script.eval.regex)
        if not any("task" in names_in(text) for text in texts if text is not None):
            yield "script.eval needs {task} in its file, key or regex: it is read for each task so far"


def _is_below(path: str) -> bool:
    parts = PurePath(os.path.normpath(path)).parts
    return bool(parts) and not os.path.isabs(path) and parts[0] != ".."


def _of_ends(script: ScriptConf) -> Iterator[str]:
    """Exit codes mean something, and the checkpoint is a folder of the job's own."""
    for code, meaning in script.exit_codes.items():
        if meaning not in MEANINGS:
            yield f"script.exit_codes: {code} means '{meaning}'; the words are {', '.join(MEANINGS)}"
    if "success" not in script.exit_codes.values():
        yield "script.exit_codes: no status means success; usually it is {0: success}"
    if not _is_below(script.checkpoint):
        yield (
            f"script.checkpoint '{script.checkpoint}' is not a folder below the job's folder: it is"
            " removed as a whole when no later task can start from it"
        )


def _of_program(settings: Settings) -> Iterator[str]:
    """The program, and the Python file that it is to run, have to be there."""
    words = settings.argv()
    if not words:
        yield "script.command: nothing is left of it, all of its groups need a value that is null"
        return
    per_job = "output_dir" in names_in(settings.script.cwd or "")
    folder = settings.folder()
    if not per_job and not folder.is_dir():
        yield f"script.cwd: there is no folder {folder}"
        return
    program = words[0] if os.sep not in words[0] else str(folder / words[0])
    if shutil.which(program, path=settings.environment().get("PATH")) is None:
        yield f"script.command[0]: there is no program '{words[0]}' (looked for as {program})"
    elif INTERPRETERS.search(program):
        file = next((word for word in words[1:] if word.endswith(".py")), None)
        if file is not None and not (folder / file).is_file():
            hint = " (its working directory); write {start_dir}/" + file if per_job else ""
            yield f"script.command: there is no file '{file}' in {folder}{hint}"
