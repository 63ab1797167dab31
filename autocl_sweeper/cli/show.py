"""`autocl show TRIAL`: all there is to know about one trial."""

from __future__ import annotations

import argparse
import shlex
from itertools import pairwise
from typing import Any

from autocl_sweeper.cli.options import folder_argument, print_json, sweep_of
from autocl_sweeper.display.screen import four
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.outcome import LOG_NAME
from autocl_sweeper.overview import Overview
from autocl_sweeper.types import Trial

HELP = "one trial: parameters, lineage, scores, reason, end of its log, folder"
DESCRIPTION = "One trial of a sweep, and the command that repeats it."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trial", type=int, help="its number")
    folder_argument(parser)


def run(given: argparse.Namespace) -> None:
    sweep = sweep_of(given)
    if given.trial not in sweep.history:
        count = len(sweep.history)
        known = f"its trials are 0 to {count - 1}" if count else "it has none yet"
        raise ConfigurationError(f"There is no trial {given.trial} in '{sweep.folder}': {known}.")
    trial = sweep.history[given.trial]
    if given.json:
        print_json(facts(sweep, trial))
    else:
        _print(sweep, trial)


def facts(sweep: Overview, trial: Trial) -> dict[str, Any]:
    """What there is to say, for programs."""
    outcome = trial.outcome
    attempts = sweep.attempts_of(trial.number)
    last = attempts[-1] if attempts else None
    found: dict[str, Any] = {
        "trial": trial.number,
        "stage": trial.stage,
        "task": trial.task,
        "state": "GIVEN_UP" if trial.number in sweep.history.given_up else trial.state.value,
        "score": trial.score,
        "lineage": [t.number for t in sweep.history.lineage(trial)],
        "params": dict(trial.suggestion.params),
        "origin": trial.suggestion.origin,
        "source": trial.suggestion.source,
        "attempt": trial.attempt,
        "folder": str(sweep.folder / trial.folder) if trial.folder else None,
        "log": str(sweep.folder / trial.folder / LOG_NAME) if trial.folder else None,
        "command": _command(sweep, trial),
        "devices": list(last.devices if last else ()),
        "reserved_mib": last and last.reserved_mib,
        "reserved_by": last and last.reserved_by,
    }
    if outcome is not None:
        found |= {
            "seconds": outcome.seconds,
            "cause": outcome.cause.value,
            "reason": outcome.reason,
            "checkpoint": outcome.checkpoint and str(sweep.folder / outcome.checkpoint),
            "eval": dict(outcome.evaluations),
            "test": dict(outcome.tests),
            "numbers": dict(outcome.numbers),
            "log_tail": list(outcome.log_tail),
        }
    return found


def _command(sweep: Overview, trial: Trial) -> str | None:
    """The command that runs this trial alone; None where the journal does not name the program."""
    words = shlex.split(sweep.setup.get("command") or "")
    if len(words) < 2:
        return None
    kept = words[:2]
    for before, word in pairwise(["", *words[2:]]):
        option = word.startswith("-") and word not in ("-m", "--multirun")
        value = before.startswith("-") and before not in ("-m", "--multirun")
        if option or (value and "=" not in word and "=" not in before):
            kept.append(word)
    return shlex.join([*kept, *sweep.overrides_of(trial.number)])


def _print(sweep: Overview, trial: Trial) -> None:
    from rich.console import Console
    from rich.text import Text

    from autocl_sweeper.page.words import clean

    found = facts(sweep, trial)
    console = Console(highlight=False, soft_wrap=True)

    def say(label: str, value: object) -> None:
        if value not in (None, "", ()):
            console.print(Text.assemble((f"{label:<12}", "dim"), clean(str(value))))

    state = found["state"].lower().replace("_", " ")
    task = f" ({trial.task})" if trial.task else ""
    console.print(Text(clean(f"trial {trial.number}, stage {trial.stage}{task}: {state}"), "bold"))
    say("score", None if trial.score is None else four(trial.score))
    if len(found["lineage"]) > 1:
        say("lineage", " > ".join(map(str, found["lineage"])))
    for n, (key, value) in enumerate(found["params"].items()):
        say("" if n else "parameters", f"{key}={value}")
    source = "" if found["source"] is None else f" {found['source']}"
    say("origin", found["origin"] and found["origin"] + source)
    for split in ("eval", "test"):
        say(split, ", ".join(f"{task} {four(n)}" for task, n in found.get(split, {}).items()))
    if trial.outcome is not None:
        say("took", f"{trial.outcome.seconds:.1f} s")
    say("on", " ".join(found["devices"]))
    attempts = sweep.attempts_of(trial.number)
    say("memory", attempts[-1].reservation if attempts else None)
    for key in ("reason", "checkpoint", "folder", "log"):
        say(key, found.get(key))
    say("repeat it", found["command"])
    if found.get("log_tail"):
        console.print(Text("end of its log", "dim"))
        for line in found["log_tail"]:
            console.print(Text(f"  {clean(line)}"))
