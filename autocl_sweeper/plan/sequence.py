"""The sequence of tasks, from the override that lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from autocl_sweeper.distributions import Distribution, Interval
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.space import Argument, bare, parse_space
from autocl_sweeper.types import Value

DEFAULT = "task"


def sequence_of(
    key: str | None,
    space: Mapping[str, Distribution],
    typed: Sequence[Argument],
    config_loader: Any,
    named: bool = False,
) -> dict[str, Value]:
    """Task name -> value, in order; empty when the default sequence override was not given.

    named: the user set `hydra.sweeper.sequence`. Then its override has to be given.
    Raises ConfigurationError.
    """
    if key is None:
        return {}
    given = {bare(name): distribution for name, distribution in space.items()}
    for argument in typed:
        one = argument.distribution is None and not argument.merges
        if one and bare(argument.key) == bare(key):
            # A single value is a sequence of one: it is ranked, and has task_params, all the same.
            text = argument.text.partition("=")[2]
            given |= parse_space({bare(key): text}, config_loader, "the command line")
    if bare(key) not in given:
        if named or key != DEFAULT:
            raise _not_given(key, [*given, *(bare(one.key) for one in typed if not one.merges)])
        return {}
    distribution = given[bare(key)]
    if isinstance(distribution, Interval):
        raise ConfigurationError(
            f"The sequence '{key}' is an interval; it must list tasks: {key}=a,b,c"
        )
    tasks: dict[str, Value] = {}
    for value in distribution.values:
        name = _task_name(value)
        if not name:
            raise ConfigurationError(
                f"The sequence '{key}' is empty.\n"
                f"  It lists the tasks in their order: {key}=first,second,third"
            )
        if name in tasks:
            raise ConfigurationError(
                f"Task '{name}' is listed twice in the sequence '{key}'.\n"
                "  Scores are kept by task name. Give the second one a name of its own."
            )
        tasks[name] = value
    return tasks


def _not_given(key: str, given: Sequence[str]) -> ConfigurationError:
    close = get_close_matches(bare(key), given, n=1)
    near = (
        f"  Did you mean hydra.sweeper.sequence={close[0]}? {close[0]} is given.\n" if close else ""
    )
    return ConfigurationError(
        f"hydra.sweeper.sequence={key}, but {key} is not given.\n{near}"
        f"  List the tasks in their order: {bare(key)}=first,second,third. For a search without tasks"
        " set\n  hydra.sweeper.sequence=null."
    )


def _task_name(value: Value) -> str:
    if isinstance(value, list):
        return "+".join(_task_name(item) for item in value)
    return "" if value is None else str(value)
