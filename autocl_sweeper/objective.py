"""What ranks trials: the returned score, or an expression over the numbers that a job returned."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.types import Outcome

CURRENT, MEAN, WORST = "current", "mean", "worst"
"""Names that `eval` gives: the score on the current task; mean and worst over the tasks so far."""

# eval/digits_01 outside quotes is a name; Python would divide.
EVAL_NAME = re.compile(r"""("[^"]*"|'[^']*')|\beval/(\w+(?:\.\w+)*)""")

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
        if self.text is not None:
            _check(self._tree, self.text)

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
            return _value(self._tree, known)
        except (ArithmeticError, ValueError):
            return math.nan

    def _names(self, outcome: Outcome) -> list[str]:
        if self.text is not None:
            return list(_names(self._tree))
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
    def _tree(self) -> ast.expr:
        assert self.text is not None
        text = EVAL_NAME.sub(lambda m: m[1] or f'"eval/{m[2]}"', self.text)
        try:
            return ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise _refusal(self.text, "cannot be read") from None


def tasks_until(tasks: Sequence[str], task: str) -> list[str]:
    """The tasks of a sequence up to this one, which is the last; none outside a sequence."""
    return list(tasks[: tasks.index(task) + 1]) if task in tasks else []


def _check(node: ast.expr, text: str) -> None:
    refused = next(_refused(node), None)
    if refused is not None:
        raise _refusal(text, f"has {ast.unparse(refused)!r}, which is none of these")
    if not _names(node):
        raise _refusal(text, "names nothing that a job returns")


def _refusal(text: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"hydra.sweeper.objective={text!r} {what}.\n"
        "  It is `current`, `mean` or `worst` (over `eval` of the tasks so far), or an expression of"
        " + - * / **,\n  min(...), max(...), mean(...), numbers, and names of what a job returns:"
        " loss, eval/task, 'another name'.\n"
        "  `autocl docs protocols` (docs/protocols.md) explains it."
    )


def _refused(node: ast.expr) -> Iterator[ast.expr]:
    """Parts of an expression that it may not have."""
    match node:
        case ast.Constant(value=int() | float() | str()) if not isinstance(node.value, bool):
            return
        case ast.Name():
            return
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            yield from _refused(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            yield from _refused(left)
            yield from _refused(right)
        case ast.Call(func=ast.Name(id=name), args=[_, *_], keywords=[]) if name in FUNCTIONS:
            for argument in node.args:
                yield from _refused(argument)
        case _:
            yield node


def _names(node: ast.expr) -> dict[str, None]:
    """The names in a checked expression, in their order."""
    if isinstance(node, ast.Call):
        return {name: None for argument in node.args for name in _names(argument)}
    if isinstance(node, ast.BinOp):
        return _names(node.left) | _names(node.right)
    if isinstance(node, ast.UnaryOp):
        return _names(node.operand)
    name = node.id if isinstance(node, ast.Name) else getattr(node, "value", None)
    return {name: None} if isinstance(name, str) else {}


def _value(node: ast.expr, known: Mapping[str, float]) -> float:
    """A checked expression's value. Raises KeyError, ArithmeticError, ValueError."""
    match node:
        case ast.Name(id=name):
            return known[name]
        case ast.Constant(value=str(name)):
            return known[name]
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.UnaryOp(op=op, operand=operand):
            return _value(operand, known) * (-1.0 if isinstance(op, ast.USub) else 1.0)
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](_value(left, known), _value(right, known))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name]([_value(argument, known) for argument in arguments])
    raise AssertionError(f"{ast.dump(node)} was checked")
