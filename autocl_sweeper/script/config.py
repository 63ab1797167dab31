"""The keys of a script's YAML file, with their help and their defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

BASE = "autocl_script"  # what the defaults list of a script's file begins with
OF_HYDRA = f"{BASE}_hydra"  # plain, as a typed mapping would replace the types of Hydra's own keys
HANDED = ("init_from", "seen_tasks", "stage", "trial", "parent", "seed")
CHECK = "autocl_sweeper.script.job.check_job"


def option(default: Any, text: str) -> Any:
    """A field with its default and what --help says of it."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class NumberConf:
    """Where a number stands: give `key` or `regex`."""

    file: str | None = option(
        None, "a file below the job's folder; null: what the command prints, line by line"
    )
    key: str | None = option(
        None,
        "path in JSON, eval.accuracy or history.-1.loss: of the whole file, or of the last line that"
        " has it (of the output, of a file *.jsonl)",
    )
    regex: str | None = option(None, "the first group of its last match")


@dataclass
class ScriptConf:
    """How a script is run, and what becomes of its end."""

    command: Any = option(
        [],
        "the program and its arguments, a list; {name} is replaced; a list within the list is a group,"
        " left out where one of its placeholders is null",
    )
    cwd: str | None = option(None, "working directory; null: where the sweep was started")
    env: dict[str, Any] = option(
        {}, "environment variables on top of the sweep's; null removes one"
    )
    score: NumberConf | None = option(None, "what ranks the trial")
    eval: NumberConf | None = option(
        None,
        "score of each task so far, with {task} in file, key or regex; without `score` their"
        " mean ranks",
    )
    numbers: dict[str, NumberConf] = option({}, "further numbers to record, by name")
    checkpoint: str = option("checkpoint", "folder of the model, below the job's folder")
    exit_codes: dict[int, str] = option(
        {0: "success"},
        "what they mean: success, failure, out_of_memory, infeasible; others: failure",
    )


@dataclass
class AppConf:
    """The app: a script, what is searched, and what a sweep hands to its jobs."""

    script: ScriptConf = field(default_factory=ScriptConf)
    params: dict[str, Any] = option({}, "what can be searched, with defaults: {lr} is params.lr")
    tasks: dict[str, Any] = option(
        {}, "further values by task: {corpus} is tasks.a.corpus while task=a"
    )
    task: Any = option(None, "the task of this job")
    init_from: str | None = option(None, "the parent's checkpoint; null on the first task")
    seen_tasks: Any = option(None, "tasks so far, this one included")
    stage: Any = option(None, "place of the task in the sequence, from 1")
    trial: Any = option(None, "number of the trial")
    parent: Any = option(None, "number of its parent")
    seed: Any = option(None, "seed of the trial")
    defaults: list[Any] = field(default_factory=lambda: [OF_HYDRA, "_self_"])


def register() -> None:
    """Let Hydra know the base of every script's file, and what the sweeper is to know of this app."""
    store = ConfigStore.instance()
    of_hydra = {"job": {"name": "script"}, "help": {"template": help_text()}}
    store.store(OF_HYDRA, {"hydra": of_hydra})
    store.store(BASE, AppConf)
    handover = {"init_from": "checkpoint", "seen_tasks": "seen_tasks"}
    store.store("autocl", {"check": CHECK, "handover": handover}, group="hydra/sweeper/app")


def help_text() -> str:
    """What `--help` prints: every key with its default and its meaning."""
    lines = [
        "Sweep any command line. `autocl docs scripts` shows a whole example.",
        "",
        "  python -m autocl_sweeper.script -m --config-dir DIR --config-name NAME \\",
        "      hydra/sweeper=autocl hydra/launcher=gpu task=a,b params.lr=1e-3,1e-4",
        "",
        f"DIR/NAME.yaml begins with `defaults: [{BASE}, _self_]`. Its keys:",
    ]
    for prefix, kind in (
        ("script.", ScriptConf),
        ("script.score. (also eval., numbers.NAME.) ", NumberConf),
        ("", AppConf),
    ):
        lines.append("")
        for one in dataclasses.fields(kind):
            if "help" in one.metadata:
                factory = one.default_factory
                default = one.default if factory is dataclasses.MISSING else factory()
                shown = "null" if default is None else default
                lines.append(f"  {prefix}{one.name} = {shown}")
                lines.append(f"      {one.metadata['help']}")
    return "\n".join([*lines, ""])
