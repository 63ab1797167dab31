"""Failures of a sweep, alike ones together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from autocl_sweeper.overview import Overview
from autocl_sweeper.page.words import shown
from autocl_sweeper.plain import masked
from autocl_sweeper.types import State

MOST_TRIALS = 12  # named of one kind
TAIL_LINES = 30


@dataclass
class Failure:
    """Failures of one kind: the same cause, and the same reason but for its numbers."""

    cause: str
    reason: str
    tail: Sequence[str]
    trials: list[int] = field(default_factory=list)
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
    kinds: dict[tuple[str, str], Failure] = {}

    def kind(cause: str, reason: str, tail: Sequence[str] = ()) -> Failure:
        first = Failure(cause.replace("_", " ") or "failed", shown(reason), tail_of(tail))
        return kinds.setdefault((cause, masked(first.reason)), first)

    for trial in sweep.history:
        if trial.state is State.FAIL and (outcome := trial.outcome) is not None:
            alike = kind(outcome.cause.value, outcome.reason, outcome.log_tail)
            alike.trials.append(trial.number)
    for record in sweep.records:
        if record["event"] == "attempt_failed" and not record["lost"]:
            kind(record.get("cause", ""), record["reason"]).again += 1
    return sorted(kinds.values(), key=lambda one: -one.count)


def tail_of(lines: Sequence[str]) -> list[str]:
    """The last lines of a log, fit to be shown."""
    return [line for text in lines[-TAIL_LINES:] for line in shown(text).split("\n")]
