"""The keys of hydra-optuna-sweeper under hydra/sweeper=autocl: taken over, warned about or refused."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.protocol import AUTO
from autocl_sweeper.plan.settings import Settings, refuse_unknown
from autocl_sweeper.plan.spaces import flat_keys
from autocl_sweeper.space import encode, range_of

THEIRS = (
    "sampler",
    "n_trials",
    "n_jobs",
    "max_failure_rate",
    "storage",
    "study_name",
    "search_space",
    "custom_search_space",
)
N_TRIALS = 20  # their default
PAGE = "`autocl docs migration` (docs/migration.md) has the whole table."

# Their samplers by the name in the group hydra/sweeper/sampler, and by the last one of `_target_`.
SAMPLERS = {
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "cmaes": "CmaEsSampler",
    "qmc": "QMCSampler",
    "random": "RandomSampler",
    "grid": "GridSampler",
}
OF_SEVERAL_OBJECTIVES = (
    "nsgaii", "NSGAIISampler", "create_nsgaii_sampler", "nsgaiii", "NSGAIIISampler",
    "create_nsgaiii_sampler", "motpe", "MOTPESampler", "raise_motpe_removed",
)  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registered:
    """What Hydra's groups hold: searches by name, nodes of samplers, the name of the launcher."""

    searches: Mapping[str, Mapping[str, Any]]
    samplers: Sequence[Mapping[str, Any]] = ()
    launcher: str | None = None


def translated(
    given: Mapping[str, Any], arguments: Sequence[str], registered: Registered
) -> dict[str, Any]:
    """The keys under `hydra.sweeper` in our own words, those of hydra-optuna-sweeper gone.

    What is ignored or means something else here is logged. Raises one ConfigurationError with
    everything that cannot be taken over.
    """
    if not isinstance(given["search"], Mapping):
        raise ConfigurationError(
            f"hydra.sweeper.search={given['search']}: it holds the options of a search. The search itself is"
            " chosen by its group: hydra/sweeper/search=grid."
        )
    own = {key: value for key, value in given.items() if key not in THEIRS}
    refuse_unknown(own, Settings, "hydra.sweeper")
    theirs = {key: given[key] for key in THEIRS if given.get(key) is not None}
    refused = [*_direction(own, theirs), *_refused(theirs)]
    if theirs:
        refused += _search(own, theirs, registered)
        refused += _jobs(own, theirs)
        refused += _export(own, theirs)
    if refused:
        raise ConfigurationError("\n".join([*refused, f"  {PAGE} No job was started."]))
    if "n_jobs" in theirs:
        log.warning(_slots(theirs["n_jobs"], registered.launcher))
    if theirs:
        for sentence in _ranges(own["params"], arguments):
            log.warning(sentence)
    return own


def _direction(own: dict[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    direction = own["direction"]
    if isinstance(direction, (list, tuple)):
        yield (
            f"hydra.sweeper.direction={list(direction)}: trials are ranked by one number here.\n"
            "  Set one direction, maximize or minimize. hydra.sweeper.selection=pareto keeps what"
            " is best\n  on the current task or on those before it."
        )
    elif direction is None and theirs:
        yield (
            f"hydra.sweeper.{next(iter(theirs))} is a key of hydra-optuna-sweeper, which minimizes"
            " by default;\n  this sweeper maximizes, and hydra.sweeper.direction is not"
            " given.\n  Set hydra.sweeper.direction=minimize (what it was there) or maximize."
        )
    elif direction is None:
        own["direction"] = "maximize"
    else:
        own["direction"] = {"max": "maximize", "min": "minimize"}.get(str(direction), direction)


def _refused(theirs: Mapping[str, Any]) -> Iterator[str]:
    if (rate := theirs.get("max_failure_rate")) is not None:
        exactly = "0" if rate == 0 else "<number>"
        yield (
            f"hydra.sweeper.max_failure_rate={rate:g} is a share of a batch, and there are no batches"
            f" here.\n  Set hydra.sweeper.max_failures={exactly} instead: how many trials of the sweep"
            " may fail;\n  leave it at null to go on while there is something to go on from."
        )
    if (space := theirs.get("search_space")) is not None:
        yield (
            "hydra.sweeper.search_space is the older form of hydra.sweeper.params. Write:\n"
            f"{_as_params(space)}"
        )
    if (function := theirs.get("custom_search_space")) is not None:
        yield (
            f"hydra.sweeper.custom_search_space={function}: a search space is configuration here, not"
            " code.\n  Search every key in hydra.sweeper.params, and say with hydra.sweeper.when"
            " which of them depend on others:\n"
            "    params:\n"
            "      optimizer: choice(adam, sgd)\n"
            "      optimizer.momentum: interval(0.0, 0.99)\n"
            "    when:\n"
            "      optimizer.momentum: {optimizer: sgd}"
        )


# -- sampler ----------------------------------------------------------------------------------------


def _search(
    own: dict[str, Any], theirs: Mapping[str, Any], registered: Registered
) -> Iterator[str]:
    """Put what `sampler` asks for into `search` and `seed`; what cannot be is given."""
    sampler = theirs.get("sampler")
    if sampler is None:
        return
    options = sampler if isinstance(sampler, Mapping) else {"_target_": sampler}
    # Without one chosen, theirs is TPE: `sampler: {seed: 123}` means its seed.
    target = str(options.get("_target_", "tpe"))
    last = target.rpartition(".")[2]
    name = next((name for name, sampler in SAMPLERS.items() if last in (name, sampler)), None)
    if name is None:
        why = "there is no search like it here"
        if last in OF_SEVERAL_OBJECTIVES:
            why = "it is for several objectives, and trials are ranked by one number here"
        known = ", ".join(f"{search} ({sampler})" for search, sampler in SAMPLERS.items())
        yield (
            f"hydra.sweeper.sampler={target}: {why}.\n"
            f"  Searches that take over a sampler: {known}. Choose one by hydra/sweeper/search, and"
            " leave the sampler out."
        )
        return
    if name not in registered.searches:
        has = ", ".join(sorted(registered.searches))
        yield f"hydra.sweeper.sampler={target}: no hydra/sweeper/search={name} is here, only {has}."
        return
    search = {key: _resolved(value, own) for key, value in registered.searches[name].items()}
    chosen = own["search"]
    if chosen["factory"] not in (AUTO, search["factory"]):
        yield (
            f"hydra.sweeper.sampler={target} and hydra.sweeper.search.factory={chosen['factory']} both"
            " choose the search.\n  Leave the sampler out."
        )
        return
    own["search"] = {**search, **(chosen if chosen["factory"] != AUTO else {})}
    for key, value in _set_by_the_user(options, registered.samplers).items():
        if key == "seed":
            if own["seed"] not in (0, value):
                yield (
                    f"hydra.sweeper.sampler.seed={value} and hydra.sweeper.seed={own['seed']} differ."
                    "\n  Leave the sampler's out."
                )
            own["seed"] = value
        elif key in search:
            own["search"][key] = value
        else:
            log.warning(
                f"hydra.sweeper.sampler.{key}={value} is not taken over:"
                f" hydra/sweeper/search={name} has no such option"
            )


def _resolved(value: Any, own: Mapping[str, Any]) -> Any:
    """The value of a search's option, which may be that of a key beside the search."""
    match = re.fullmatch(r"\$\{\.\.(\w+)\}", str(value))
    return own[match[1]] if match else value


def _set_by_the_user(
    options: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What differs from the group's own node, which brings every option of its sampler."""
    same = (node for node in nodes if node.get("_target_") == options.get("_target_"))
    usual = next(same, {})
    return {
        key: value
        for key, value in options.items()
        if not key.startswith("_") and value is not None and value != usual.get(key)
    }


# -- jobs, export -----------------------------------------------------------------------------------


def _jobs(own: dict[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    n_trials = theirs.get("n_trials")
    sized = own["jobs"] is not None or own["popsize"] is not None
    if n_trials is not None and sized:
        other = "jobs" if own["jobs"] is not None else "popsize"
        yield (
            f"hydra.sweeper.n_trials={n_trials} and hydra.sweeper.{other}={own[other]} both say how much"
            " a stage runs.\n  n_trials is another name of jobs: leave it out."
        )
    elif n_trials is not None:
        own["jobs"] = n_trials
    elif not sized and not own["budget"]:
        own["jobs"] = N_TRIALS
        log.warning(
            f"hydra.sweeper.n_trials is not given: {N_TRIALS} jobs per stage, as in"
            " hydra-optuna-sweeper; hydra.sweeper.jobs sets another number"
        )


def _slots(n_jobs: int, launcher: str | None) -> str:
    """The line that says what decides how many jobs run side by side."""
    told = (
        f"hydra.sweeper.n_jobs={n_jobs} is ignored: the launcher decides how many jobs run at once"
    )
    if launcher in ("gpu", "ray"):
        return (
            f"{told} (hydra.launcher.max_devices and jobs_per_device with GPUs,"
            " hydra.launcher.cpu_slots without)"
        )
    return (
        f"{told} (hydra/launcher={launcher} runs batches of hydra.sweeper.max_batch_size, and"
        " hydra/launcher=gpu has slots)"
    )


def _export(own: dict[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    export = dict(own["export"])
    for theirs_key, key in (("storage", "optuna"), ("study_name", "study_name")):
        value = theirs.get(theirs_key)
        if value is None:
            continue
        if not isinstance(value, str):
            yield (
                f"hydra.sweeper.{theirs_key}={value!r} is no URL.\n"
                "  Set hydra.sweeper.export.optuna to a storage URL or to the path of a journal file."
            )
        elif export.get(key) not in (None, value):
            yield (
                f"hydra.sweeper.{theirs_key}={value} and hydra.sweeper.export.{key}={export[key]} differ."
                f"\n  Leave {theirs_key} out."
            )
        export[key] = value
    own["export"] = export


# -- search spaces ----------------------------------------------------------------------------------


def _ranges(params: Mapping[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    """A sentence for each `range` whose stop hydra-optuna-sweeper would have tried too."""
    texts = {**dict(flat_keys(params)), **dict(text.partition("=")[::2] for text in arguments)}
    for key, text in texts.items():
        if not isinstance(text, str):
            continue
        for match in re.finditer(r"\brange\([^()]*\)", text):
            if (numbers := range_of(match[0])) is None:  # the plan says what Hydra thinks of it
                continue
            start, stop, step = (Fraction(repr(number)) for number in numbers)
            steps = (stop - start) / step if step > 0 else Fraction(0)
            if steps >= 1 and steps.denominator == 1:
                whole = all(isinstance(number, int) for number in numbers)
                last, further = (_number(n, whole) for n in (stop - step, stop + step))
                shown = ", ".join((_number(start, whole), further, _number(step, whole)))
                yield (
                    f"{key}: {match[0]} ends at {last} here; the samplers of hydra-optuna-sweeper"
                    f" before 1.4 tried {_number(stop, whole)} too. To have it here as well:"
                    f" range({shown})"
                )


def _number(number: Fraction, whole: bool) -> str:
    return str(int(number)) if whole else repr(float(number))


def _as_params(space: Any) -> str:
    """YAML of `params` that says what a `search_space` says."""
    if not isinstance(space, Mapping) or not space:
        return f"    params: {{}}  # instead of {space!r}"
    lines = ["    params:"]
    for key, distribution in space.items():
        text = _as_sweep(distribution)
        if text is None:
            lines.append(f"      {key}:  # no distribution: {distribution!r}")
        else:
            quoted = json.dumps(text) if re.search(r"[:#]", text) else text
            lines.append(f"      {key}: {quoted}")
    return "\n".join(lines)


def _as_sweep(distribution: Any) -> str | None:
    """Hydra's sweep syntax for one of their distributions; None where it is none."""
    if not isinstance(distribution, Mapping):
        return None
    kind = str(distribution.get("type", "")).rpartition(".")[2]
    if kind == "categorical" and isinstance(distribution.get("choices"), (list, tuple)):
        return f"choice({', '.join(encode(value) for value in distribution['choices'])})"
    try:
        low, high = (Fraction(str(distribution[end])) for end in ("low", "high"))
        step = distribution.get("step")
        step = None if step is None else Fraction(str(step))
    except (KeyError, ValueError):
        return None
    if kind not in ("int", "float"):
        return None
    whole = kind == "int"
    if distribution.get("log"):
        return f"tag(log, interval({_number(low, whole)}, {_number(high, whole)}))"
    if step is None or step <= 0 or (whole and step == 1):
        return f"interval({_number(low, whole)}, {_number(high, whole)})"
    stop = low + ((high - low) // step + 1) * step  # their last value is included, and ours is not
    return f"range({', '.join(_number(n, whole) for n in (low, stop, step))})"
