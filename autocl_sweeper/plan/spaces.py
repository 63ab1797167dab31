"""The search space of each task: its distributions, conditions and zipped keys, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from autocl_sweeper.distributions import Choice, Distribution, Interval, Space, is_number
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.settings import Settings
from autocl_sweeper.space import bare, literal, parse_space
from autocl_sweeper.types import Value


def spaces_of(
    settings: Settings, tasks: Sequence[str], shared: Mapping[str, Distribution], config_loader: Any
) -> dict[str, Space]:
    """The space of every task whose suggestions are not listed. Raises ConfigurationError."""
    by_task: dict[str, Mapping[str, Distribution]] = {}
    listed: dict[str, Mapping[str, Distribution]] = {}
    for task in tasks:
        where = f"hydra.sweeper.task_params.{task}"
        own = settings.task_params.get(task)
        if own is None:
            by_task[task] = shared
        elif isinstance(own, Mapping):
            by_task[task] = parse_space(own, config_loader, where)
        elif isinstance(own, Sequence) and not isinstance(own, str):
            listed[task] = distributions_of(suggestions_of(own, task))
        else:
            raise ConfigurationError(
                f"{where} is {own!r}.\n"
                "  It must be a list of suggestions or a space: key -> values."
            )
    _refuse_two_kinds({**by_task, **listed})
    when, zips = _conditions(settings.when), _zips(settings.zip)
    _refuse_unknown(when, zips, {bare(key) for space in by_task.values() for key in space})
    return {task: _space(space, when, zips, task) for task, space in by_task.items()}


def suggestions_of(own: Sequence[Any], task: str) -> list[dict[str, Value]]:
    """What `hydra.sweeper.task_params` lists for a task: each entry one suggestion."""
    where = f"hydra.sweeper.task_params.{task}"
    suggestions: list[dict[str, Value]] = []
    for place, item in enumerate(own):
        if not isinstance(item, Mapping):
            raise ConfigurationError(
                f"{where}[{place}] is {item!r}, not a mapping of override keys to values.\n"
                "  Each entry is one suggestion: {trainer.learning_rate: 1e-3, ...}"
            )
        suggestions.append({str(key): literal(value) for key, value in flat_keys(item)})
    if not suggestions:
        raise ConfigurationError(f"{where} is an empty list: task '{task}' has nothing to run.")
    return suggestions


def flat_keys(node: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested YAML is dotted keys, as they are in `params`."""
    flat: list[tuple[str, Any]] = []
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat += flat_keys(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def describe(space: Space) -> Any:
    """A space as a fingerprint holds it."""
    described: dict[str, Any] = {key: _described(one) for key, one in space.axes.items()}
    if space.when:
        described["when"] = {key: dict(others) for key, others in space.when.items()}
    return described


def _described(distribution: Distribution) -> Any:
    if isinstance(distribution, Choice):
        return list(distribution.values)
    kind = ("log " if distribution.log else "") + ("int" if distribution.integer else "float")
    return f"{kind} interval [{distribution.low}, {distribution.high}]"


def distributions_of(described: Any) -> dict[str, Distribution]:
    """The distribution of each override key, from what `describe` or a list of suggestions said."""
    found: dict[str, Distribution] = {}
    if not isinstance(described, Mapping):
        listed: dict[str, list[Value]] = {}
        for suggestion in described:
            for key, value in suggestion.items():
                listed.setdefault(key, []).append(value)
        return {key: Choice(tuple(values)) for key, values in listed.items()}
    for axis, values in described.items():
        keys = axis.split(",")  # zipped ones share an axis
        if isinstance(values, str):
            found[axis] = _interval(values)
        elif isinstance(values, list):
            columns = zip(*values, strict=True) if len(keys) > 1 else [tuple(values)]
            found |= {k: Choice(column) for k, column in zip(keys, columns, strict=True)}
    return found


def _interval(text: str) -> Interval:
    kind, _, bounds = text.partition(" interval ")
    low, high = map(float, bounds.strip("[]").split(", "))
    return Interval(low, high, log=kind.startswith("log"), integer=kind.endswith("int"))


def _conditions(when: Mapping[str, Any]) -> dict[str, dict[str, list[Value]]]:
    """`hydra.sweeper.when`: key -> {other key: value or list of values}, by bare keys."""
    conditions: dict[str, dict[str, list[Value]]] = {}
    for key, others in when.items():
        if not isinstance(others, Mapping) or not others:
            raise ConfigurationError(
                f"hydra.sweeper.when: {key!r} has {others!r}, not a mapping.\n"
                "  It says for which values of another key this one is there:"
                " when: {optimizer.momentum: {optimizer: [sgd, rmsprop]}}"
            )
        conditions[bare(key)] = {
            bare(str(other)): list(values) if isinstance(values, (list, tuple)) else [values]
            for other, values in others.items()
        }
    try:
        TopologicalSorter(conditions).prepare()
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise ConfigurationError(
            f"hydra.sweeper.when has a cycle: {circle}.\n"
            "  Each of these keys is there only for some values of the next. Take one of them out."
        ) from None
    return conditions


def _zips(zips: Sequence[Any]) -> list[list[str]]:
    """`hydra.sweeper.zip`: lists of keys whose values go together, by bare keys."""
    groups: list[list[str]] = []
    for group in zips:
        if isinstance(group, str) or not isinstance(group, Sequence) or len(group) < 2:
            raise ConfigurationError(
                f"hydra.sweeper.zip: {group!r} is not a list of two keys or more.\n"
                "  Each entry names keys whose values go together: zip: [[model, trainer.rate]]"
            )
        groups.append([bare(str(key)) for key in group])
    keys = [key for group in groups for key in group]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigurationError(
            f"hydra.sweeper.zip names {twice[0]!r} twice.\n  A key goes together with one group."
        )
    return groups


def _refuse_unknown(
    when: Mapping[str, Mapping[str, Any]], zips: Sequence[Sequence[str]], known: set[str]
) -> None:
    named = {(key, "when") for key in when}
    named |= {(other, "when") for others in when.values() for other in others}
    named |= {(key, "zip") for group in zips for key in group}
    for key, setting in sorted(named):
        if key not in known:
            searched = ", ".join(sorted(known)) or "none"
            raise ConfigurationError(
                f"hydra.sweeper.{setting} names {key!r}, which no task searches.\n"
                f"  Searched keys: {searched}.\n"
                "  Correct the name, or give the key values in hydra.sweeper.params."
            )


def _refuse_two_kinds(spaces: Mapping[str, Mapping[str, Distribution]]) -> None:
    """Refuse a key that is a number in one task and a name in another: it could not be carried over."""
    first: dict[str, tuple[str, Distribution]] = {}
    for task, space in spaces.items():
        for key, distribution in space.items():
            if not (kinds := kinds_of(distribution)):
                continue
            before, other = first.setdefault(bare(key), (task, distribution))
            if ("names" in kinds) != ("names" in kinds_of(other)):
                raise ConfigurationError(
                    f"{bare(key)!r} is {other} for task '{before}' and {distribution} for task"
                    f" '{task}'.\n  A key has one type in all tasks: numbers or names."
                    " Give both tasks the same kind of values."
                )


def kinds_of(distribution: Distribution) -> set[str]:
    """What its values are: `numbers`, `names` or both. Null is neither."""
    if isinstance(distribution, Interval):
        return {"numbers"}
    values = (value for value in distribution.values if value is not None)
    return {"numbers" if is_number(value) else "names" for value in values}


def _space(
    distributions: Mapping[str, Distribution],
    when: Mapping[str, Mapping[str, Sequence[Value]]],
    zips: Sequence[Sequence[str]],
    task: str,
) -> Space:
    """One task's space, its keys as they are spelled in it (`+new.key`)."""
    spelled = {bare(key): key for key in distributions}
    axes = dict(distributions)
    together: dict[str, list[str]] = {}
    for group in zips:
        keys = [spelled[key] for key in group if key in spelled]
        if not keys:
            continue
        if len(keys) < len(group):
            missing = sorted(set(group) - set(spelled))
            raise ConfigurationError(
                f"hydra.sweeper.zip: task '{task}' searches {keys[0]!r} but not {missing[0]!r}.\n"
                "  Keys that go together are searched together."
            )
        axis, choice = _zipped(keys, distributions, task)
        axes = {axis if key == keys[0] else key: one for key, one in axes.items()}
        axes[axis] = choice
        for key in keys[1:]:
            del axes[key]
        together[axis] = keys
    conditions: dict[str, dict[str, Sequence[Value]]] = {}
    for key in [key for key in distributions if bare(key) in when]:
        others = when[bare(key)]
        for other, values in others.items():
            if other not in spelled:
                raise ConfigurationError(
                    f"hydra.sweeper.when: task '{task}' searches {key!r} but not {other!r}, which"
                    " decides whether it is there.\n  Search both in a task, or none."
                )
            _refuse_impossible(key, other, values, distributions[spelled[other]])
        conditions[key] = {spelled[other]: values for other, values in others.items()}
    return Space(axes, conditions, together)


def _zipped(
    keys: Sequence[str], distributions: Mapping[str, Distribution], task: str
) -> tuple[str, Choice]:
    columns: list[tuple[Value, ...]] = []
    for key in keys:
        one = distributions[key]
        if not isinstance(one, Choice):
            raise ConfigurationError(
                f"hydra.sweeper.zip: {key!r} is {one} (task '{task}').\n"
                "  Only listed values can go together: give it a list or choice(...)."
            )
        columns.append(one.values)
    lengths = {key: len(values) for key, values in zip(keys, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        raise ConfigurationError(
            f"hydra.sweeper.zip: values that go together are equally many, but {told} (task"
            f" '{task}').\n  Give each of these keys the same number of values."
        )
    return ",".join(keys), Choice(tuple([*row] for row in zip(*columns, strict=True)))


def _refuse_impossible(
    key: str, other: str, values: Sequence[Value], distribution: Distribution
) -> None:
    if not isinstance(distribution, Choice):
        raise ConfigurationError(
            f"hydra.sweeper.when: {key!r} depends on {other!r}, which is {distribution}.\n"
            "  A condition looks at listed values: give it a list or choice(...)."
        )
    for value in values:
        if distribution.place(value) is None:
            raise ConfigurationError(
                f"hydra.sweeper.when: {key!r} is there for {other}={value!r}, which {distribution}"
                " does not have.\n  Correct the value."
            )
