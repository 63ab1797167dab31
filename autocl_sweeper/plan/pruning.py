"""`hydra.sweeper.prune`: a rule of early stopping by name, or with its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.protocols import Pruner
from autocl_sweeper.prune.asha import Asha
from autocl_sweeper.prune.median import Median
from autocl_sweeper.prune.watch import EarlyStopping
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.types import History

KEY = "hydra.sweeper.prune"
OPTIONS = {"asha": ("max_steps", "eta", "rungs", "warmup"), "median": ("max_steps", "warmup")}
SEE = f"  `autocl docs {KEY}` (docs/early_stopping.md) explains the options."


@dataclass(frozen=True)
class Pruning:
    """A rule, and the steps of a full training; None: those of a stage's first completed trial."""

    rule: Pruner
    max_steps: int | None

    def of(self, stage: Stage) -> Pruner | None:
        """The rule in one stage; None where all of its trials go on to the next, as whole chains do."""
        if stage.survivors is None:
            return self.rule
        if stage.most is not None and stage.survivors * stage.seeds >= stage.most:
            return None
        rule = self.rule
        return replace(rule, k=stage.survivors) if isinstance(rule, Asha) else rule

    def watch(
        self, stages: Sequence[Stage], history: History, loss: Callable[[float], float]
    ) -> EarlyStopping:
        """The rule of each stage that has one, asked about the trials of this history."""
        found = {stage.number: self.of(stage) for stage in stages}
        rules = {number: rule for number, rule in found.items() if rule is not None}
        return EarlyStopping(rules, self.max_steps, history, loss)


def pruning_of(given: Any, top_k: int, ranked: bool) -> Pruning | None:
    """The rule that `hydra.sweeper.prune` asks for; None without one. Raises ConfigurationError."""
    if given is None:
        return None
    options = dict(given) if isinstance(given, Mapping) else {"rule": given}
    rule = options.pop("rule", None)
    if rule not in OPTIONS:
        raise ConfigurationError(
            f"{KEY}={rule!r} is not a rule of early stopping; it is one of: {', '.join(OPTIONS)}, or"
            f" null for none.\n  With options it is a mapping: {KEY}={{rule:asha,max_steps:900}}, or"
            f"\n  hydra/sweeper/prune=asha {KEY}.max_steps=900."
        )
    if unknown := sorted(set(options) - set(OPTIONS[rule])):
        raise ConfigurationError(
            f"{KEY}.{unknown[0]} is no option of {rule}, which has: {', '.join(OPTIONS[rule])}.\n{SEE}"
        )
    if not ranked:
        raise ConfigurationError(
            f"{KEY}={rule} stops trials that rank low, but this sweep ranks none: it has no"
            " sequence.\n  Give the override that hydra.sweeper.sequence names (one task will do:"
            f" task=a), or set {KEY}=null."
        )
    max_steps = _whole(options, "max_steps", None, 1)
    if rule == "median":
        return Pruning(Median(_whole(options, "warmup", None, 0)), max_steps)
    eta = _whole(options, "eta", 3, 2) or 3
    rungs = _rungs(options.get("rungs"), eta)
    return Pruning(Asha(top_k, eta, rungs, _whole(options, "warmup", 0, 0) or 0), max_steps)


def _whole(options: Mapping[str, Any], name: str, default: int | None, least: int) -> int | None:
    value = options.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(
            f"{KEY}.{name}={value!r}, but it is a whole number from {least} on.\n{SEE}"
        )
    return value


def _rungs(given: Any, eta: int) -> tuple[float, ...]:
    if given is None:
        return (1 / eta**2, 1 / eta)
    rungs = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    numbers = all(isinstance(one, float) and 0 < one < 1 for one in rungs)
    if not rungs or not numbers or sorted(set(rungs)) != list(rungs):
        raise ConfigurationError(
            f"{KEY}.rungs={given!r}, but rungs are shares of max_steps, between 0 and 1 and rising:"
            f" [0.11, 0.33].\n{SEE}"
        )
    return rungs
