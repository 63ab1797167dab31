"""Failures of a sweep, alike ones together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autocl_sweeper.overview import Overview
from autocl_sweeper.page.words import shown
from autocl_sweeper.plain import masked
from autocl_sweeper.types import State

MOST_TRIALS = 12  # named of one kind
TAIL_LINES = 30


@dataclass(frozen=True)
class Failure:
    """Failures of one kind: the same cause, and the same reason but for its numbers."""

    cause: str
    reason: str
    trials: Sequence[int]
    tail: Sequence[str]
    again: int = 0  # attempts that failed so before another one was made

    @property
    def count(self) -> int:
        return len(self.trials) + self.again

    @property
    def named(self) -> Sequence[int]:
        return self.trials[:MOST_TRIALS]

    @property
    def more(self) -> int:
        return max(0, len(self.trials) - MOST_TRIALS)


def failures(sweep: Overview) -> list[Failure]:
    """The most frequent first."""
    found: dict[tuple[str, str], list[int]] = {}
    attempts: dict[tuple[str, str], int] = {}
    first: dict[tuple[str, str], tuple[str, Sequence[str]]] = {}
    for trial in sweep.history:
        outcome = trial.outcome
        if trial.state is not State.FAIL or outcome is None:
            continue
        key = (outcome.cause.value, masked(shown(outcome.reason)))
        found.setdefault(key, []).append(trial.number)
        first.setdefault(key, (outcome.reason, tail_of(outcome.log_tail)))
    for record in sweep.records:
        if record["event"] == "attempt_failed" and not record["lost"]:
            key = (record.get("cause", ""), masked(shown(record["reason"])))
            attempts[key] = attempts.get(key, 0) + 1
            first.setdefault(key, (record["reason"], ()))
            found.setdefault(key, [])
    kinds = [
        Failure(key[0].replace("_", " ") or "failed", shown(first[key][0]), numbers, first[key][1],
                attempts.get(key, 0))
        for key, numbers in found.items()
    ]  # fmt: skip
    return sorted(kinds, key=lambda one: -one.count)


def tail_of(lines: Sequence[str]) -> list[str]:
    """The last lines of a log, fit to be shown."""
    return [line for text in lines[-TAIL_LINES:] for line in shown(text).split("\n")]
