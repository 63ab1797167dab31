"""What ranks trials: the returned score, or an expression over the numbers that a job returned."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import TypeAlias

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.types import Outcome

CURRENT, MEAN, WORST = "current", "mean", "worst"
"""Names that `eval` gives: the score on the current task; mean and worst over the tasks so far."""

# eval/digits_01 outside quotes is a name; Python would divide.
EVAL_NAME = re.compile(r"""("[^"]*"|'[^']*')|\beval/(\w+(?:\.\w+)*)""")

Compute: TypeAlias = Callable[[Mapping[str, float]], float]
"""known numbers -> the value. Raises KeyError for a missing one, ArithmeticError, ValueError."""

OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: math.pow,
}
FUNCTIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "max": max,
    "mean": lambda values: sum(values) / len(values),
}


@dataclass(frozen=True)
class Objective:
    """The number that ranks a trial. `metric` names it; `text` is an expression instead.

    Without either it is `score`, or the mean over the tasks so far where a job returns `eval` alone.
    `needs` are names that something else computes with, as a selection does.
    Raises ConfigurationError for a text that is no such expression.
    """

    metric: str | None = None
    text: str | None = None
    tasks: Sequence[str] = ()  # the whole sequence
    maximize: bool = True
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.text is not None and not self._expression[0]:
            raise _refusal(self.text, "names nothing that a job returns")

    @property
    def name(self) -> str:
        return self.text or self.metric or "score"

    def missing(self, outcome: Outcome, task: str) -> list[str]:
        """The names it needs that an outcome of this task does not have."""
        known = self._known(outcome, task)
        names = [*self._names(outcome), *self.needs]
        return [name for name in dict.fromkeys(names) if name not in known]

    def value(self, outcome: Outcome, task: str) -> float:
        """The number; nan where the arithmetic has no result. Raises KeyError for a missing name."""
        known = self._known(outcome, task)
        if self.text is None:
            return known[self._names(outcome)[0]]
        try:
            return self._expression[1](known)
        except (ArithmeticError, ValueError):
            return math.nan

    def _names(self, outcome: Outcome) -> list[str]:
        if self.text is not None:
            return list(self._expression[0])
        if self.metric is not None or "score" in outcome.numbers or not outcome.evaluations:
            return [self.metric or "score"]
        return [MEAN]

    def _known(self, outcome: Outcome, task: str) -> dict[str, float]:
        found = dict(outcome.numbers)
        found |= {f"eval/{task}": score for task, score in outcome.evaluations.items()}
        seen = tasks_until(self.tasks, task) or list(outcome.evaluations)
        for name in (CURRENT, MEAN, WORST):
            # With an objective of one's own these words are taken; a metric may be called so.
            if self.metric != name:
                found.pop(name, None)
        scores = [outcome.evaluations[task] for task in seen if task in outcome.evaluations]
        if self.tasks and seen[-1] in outcome.evaluations:
            found.setdefault(CURRENT, outcome.evaluations[seen[-1]])
        if scores and len(scores) == len(seen):
            found.setdefault(MEAN, sum(scores) / len(scores))
            found.setdefault(WORST, min(scores) if self.maximize else max(scores))
        return found

    @cached_property
    def _expression(self) -> tuple[dict[str, None], Compute]:
        """The names in the text, in their order, and what computes it."""
        assert self.text is not None
        text = EVAL_NAME.sub(lambda m: m[1] or f'"eval/{m[2]}"', self.text)
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise _refusal(self.text, "cannot be read") from None
        names: dict[str, None] = {}
        return names, _compiled(tree, names, self.text)


def tasks_until(tasks: Sequence[str], task: str) -> list[str]:
    """The tasks of a sequence up to this one, which is the last; none outside a sequence."""
    return list(tasks[: tasks.index(task) + 1]) if task in tasks else []


def _refusal(text: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"hydra.sweeper.objective={text!r} {what}.\n"
        "  It is `current`, `mean` or `worst` (over `eval` of the tasks so far), or an expression of"
        " + - * / **,\n  min(...), max(...), mean(...), numbers, and names of what a job returns:"
        " loss, eval/task, 'another name'.\n"
        "  `autocl docs protocols` (docs/protocols.md) explains it."
    )


def _compiled(node: ast.expr, names: dict[str, None], text: str) -> Compute:
    """What computes a part of an expression, whose names are added to `names`."""
    match node:
        case ast.Name(id=str(name)) | ast.Constant(value=str(name)):
            names[name] = None
            return itemgetter(name)
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return lambda known: float(number)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
            value, sign = _compiled(operand, names, text), -1.0 if isinstance(op, ast.USub) else 1.0
            return lambda known: value(known) * sign
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            apply = OPERATORS[type(op)]
            one, other = _compiled(left, names, text), _compiled(right, names, text)
            return lambda known: apply(one(known), other(known))
        case ast.Call(func=ast.Name(id=name), args=[_, *_], keywords=[]) if name in FUNCTIONS:
            parts = [_compiled(argument, names, text) for argument in node.args]
            return lambda known: FUNCTIONS[name]([part(known) for part in parts])
    raise _refusal(text, f"has {ast.unparse(node)!r}, which is none of these")
