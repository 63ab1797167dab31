"""What an outcome means for a sweep: its score, a broken contract, the text of a failure."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autocl_sweeper.disk import file_system
from autocl_sweeper.errors import (
    ConfigurationError,
    DiskError,
    JobContractError,
    NoSurvivorError,
    SweepFolderError,
    TooManyFailuresError,
)
from autocl_sweeper.objective import CURRENT, MEAN, WORST, Objective
from autocl_sweeper.outcome import CHECKPOINT_NAME, LOG_NAME
from autocl_sweeper.plain import masked
from autocl_sweeper.retries import is_infeasible
from autocl_sweeper.types import Cause, Outcome, State, Trial


def alike(failed: Iterable[Trial]) -> list[list[Trial]]:
    """Failed trials by kind, the most frequent, then the latest first.

    Reasons that differ in their numbers alone are one kind.
    """
    kinds: dict[tuple[str, str], list[Trial]] = {}
    for trial in failed:
        outcome = trial.outcome
        assert outcome is not None
        kinds.setdefault((outcome.cause.value, masked(outcome.reason)), []).append(trial)
    return sorted(kinds.values(), key=lambda kind: (len(kind), kind[-1].number), reverse=True)


def named(kind: Sequence[Trial]) -> str:
    """`trial 3`, or `4 trials (3, 5, 6, ...)`."""
    if len(kind) == 1:
        return f"trial {kind[0].number}"
    numbers = ", ".join(str(trial.number) for trial in kind[:3])
    return f"{len(kind)} trials ({numbers}{', ...' * (len(kind) > 3)})"


@dataclass(frozen=True)
class Verdict:
    """The rules of one sweep. `last_stage` needs no checkpoint; `list_file` names every failure."""

    folder: Path
    objective: Objective
    ranked: bool
    last_stage: int
    checkpoint_key: str | None  # the override that gets the parent's checkpoint
    list_file: str

    def judge(self, trial: Trial, outcome: Outcome) -> Outcome:
        """Give a complete outcome its score; where trials are ranked, one without it is a FAIL."""
        if outcome.state is not State.COMPLETE:
            return outcome
        missing = self.objective.missing(outcome, trial.task)
        score = math.nan if missing else self.objective.value(outcome, trial.task)
        if math.isfinite(score):
            return replace(outcome, score=score)
        if not self.ranked:
            return outcome
        if not missing:
            reason = f"its {self.objective.name} is {score}"
        elif outcome.returned == "NoneType":
            reason = "it returned nothing"
        elif outcome.numbers or outcome.evaluations:
            reason = self._lacks(outcome, missing)
        else:
            reason = f"it returned a {outcome.returned}, not a number"
        return replace(outcome, state=State.FAIL, reason=reason, cause=Cause.RESULT)

    def _lacks(self, outcome: Outcome, missing: Sequence[str]) -> str:
        has = ", ".join([*outcome.numbers, *(f"eval/{task}" for task in outcome.evaluations)])
        names = " and no ".join(f"number '{name}'" for name in missing)
        of_eval = {CURRENT, MEAN, WORST}.intersection(missing)
        why = "; 'eval' has to have every task so far" if of_eval else ""
        return f"what it returned has no {names} (it has: {has or 'no number'}{why})"

    def refuse_broken_contract(self, trial: Trial, outcome: Outcome, any_ranked: bool) -> None:
        """Stop for what every further job would do too. The trial stays open, to run again.

        `any_ranked`: whether some trial of the sweep could be ranked. Raises ConfigurationError
        and JobContractError.
        """
        name = f"Trial {trial.number} (task '{trial.task}')"
        where = self._where(trial)
        if outcome.cause is Cause.CONFIGURATION:
            tail = "\n".join(f"    {line}" for line in outcome.log_tail)
            raise ConfigurationError(f"{name} could not be composed: {outcome.reason}\n{tail}")
        # nan is a number: one diverged job says nothing about the others.
        has_none = outcome.returned != "" and self.objective.missing(outcome, trial.task)
        if outcome.state is State.FAIL and has_none and not any_ranked:
            raise JobContractError(
                f"{name} cannot be ranked: {outcome.reason}.\n{self._contract()}{where}"
            )
        last = trial.stage == self.last_stage
        if outcome.state is not State.COMPLETE or last or self.checkpoint_key is None:
            return
        found = outcome.checkpoint
        if found is None or not os.path.exists(self.folder / found):
            told = (
                "saved no checkpoint" if found is None else f"named '{found}', which does not exist"
            )
            raise JobContractError(
                f"{name} {told}, but the next stage starts from it"
                f" ({self.checkpoint_key}=<checkpoint>).\n"
                f"  A job saves its model in '{CHECKPOINT_NAME}/' in its output folder, or returns a"
                "\n  mapping whose 'checkpoint' names the folder (a path, not the weights). If tasks do"
                f" not build on each\n  other, set hydra.sweeper.handover.{self.checkpoint_key}=null.{where}"
            )

    def refuse_gone(self, trial: Trial, parent: int, checkpoint: str) -> None:
        """Stop before a trial starts from a checkpoint that was removed. Raises SweepFolderError."""
        if not os.path.exists(checkpoint):
            raise SweepFolderError(
                f"The checkpoint of trial {parent} is missing: '{checkpoint}'.\n"
                f"  Trial {trial.number} (task '{trial.task}') starts from it"
                f" ({self.checkpoint_key}=<checkpoint>).\n"
                "  Restore it, then rerun the same command; or begin anew in another"
                " hydra.sweep.dir."
            )

    def _contract(self) -> str:
        if self.objective.text is not None:
            return (
                f"  hydra.sweeper.objective={self.objective.text!r} takes its names from what a job"
                " returns.\n  Correct the name, or let the job return it."
            )
        if self.objective.needs:
            return "  hydra.sweeper.selection=pareto compares scores by task: a job returns 'eval'."
        if self.objective.metric is not None:
            return (
                f"  hydra.sweeper.metric={self.objective.metric} names the number that ranks jobs."
                "\n  Correct the name, or let the job return it."
            )
        return (
            "  With a sequence, trials compete to be parents: a job returns a number, or a\n"
            "  mapping with 'score' or 'eval'. hydra.sweeper.metric=KEY ranks by another number."
        )

    def rung_beyond(self, task: str, rung: int, last: int) -> str:
        """A completed trial, and with it all of its stage, never reported at a rung.

        `last`: the last step that was reported; -1: nothing was.
        """
        if last < 0:
            return (
                f"A trial of task '{task}' is complete and reported no score, but hydra.sweeper.prune"
                " stops trials\n  by their reports. Call autocl_sweeper.report(score, step) at each"
                " validation,\n  or set hydra.sweeper.prune=null. What finished is kept."
            )
        return (
            f"A trial of task '{task}' is complete and its stage reported up to step {last} only, but"
            f" early stopping\n  has a rung at {rung} steps: no trial can be judged there.\n"
            "  Report the steps that hydra.sweeper.prune.max_steps counts, or set it to the last step"
            " of a full\n  training (null: that of the first completed trial). What finished is kept."
        )

    def full_disk(self, trial: Trial, outcome: Outcome) -> DiskError:
        """A job that could not write: that says nothing about its trial, and the next would not either."""
        named = re.search(r"'(/[^']*)'", outcome.reason)
        where = Path(named[1]) if named else self.folder / trial.folder
        return DiskError(
            f"Trial {trial.number} (task '{trial.task}') could not write: {outcome.reason}.\n"
            f"  It writes to {file_system(where)}.\n"
            "  Free some space there, then rerun the same command: what finished is kept, and this"
            f" trial runs again.{self._where(trial)}"
        )

    def too_many(self, failures: int, limit: int, trials: Iterable[Trial]) -> TooManyFailuresError:
        return TooManyFailuresError(
            f"{failures} trials failed (hydra.sweeper.max_failures={limit}).\n"
            f"{self._failures(trials)}\n"
            "  What finished is kept. Fix the cause, then rerun the same command; with a higher"
            "\n  hydra.sweeper.retries the failed ones run again too."
        )

    def no_survivor(self, task: str, retries: int, trials: Sequence[Trial]) -> NoSurvivorError:
        again = (
            "  What finished is kept. Fix the cause, then rerun the same command with\n"
            f"  hydra.sweeper.retries={retries + 1} to run them again."
        )
        if all(is_infeasible(trial) for trial in trials if trial.state is State.FAIL):
            again = (
                "  These settings cannot be trained here, so they never run again: give a larger"
                " budget, or search\n  smaller models or batches, in another hydra.sweep.dir."
            )
        return NoSurvivorError(
            f"No trial of task '{task}' survived, so there is nothing to go on from.\n"
            f"{self._failures(trials)}\n{again}"
        )

    def failed_round(self, number: int, retries: int, trials: Iterable[Trial]) -> NoSurvivorError:
        return NoSurvivorError(
            f"All trials of round {number} failed.\n"
            f"{self._failures(trials)}\n"
            "  What finished is kept. Fix the cause, then rerun the same command with\n"
            f"  hydra.sweeper.retries={retries + 1} to run them again; or set"
            " hydra.sweeper.max_failures, which then\n  alone decides how many may fail (autocl"
            f" finetune: --retries={retries + 1}, --keep_going)."
        )

    def _failures(self, trials: Iterable[Trial]) -> str:
        failed = [trial for trial in trials if trial.state is State.FAIL]
        kinds = alike(failed)
        lines = []
        for kind in kinds[:3]:
            trial = kind[-1]
            outcome = trial.outcome
            assert outcome is not None
            lines.append(f"  {named(kind)}: {outcome.reason}")
            lines += [f"    | {line}" for line in outcome.log_tail[-5:]]
            lines.append(self._where(trial).removeprefix("\n"))
        if others := sum(map(len, kinds[3:])):
            lines.append(f"  and {others} more, in {self.folder / self.list_file}")
        return "\n".join(lines)

    def _where(self, trial: Trial) -> str:
        """A line that says where to look; not every launcher keeps a job's log."""
        folder = self.folder / trial.folder
        path = folder / LOG_NAME
        return f"\n  full log: {path}" if path.exists() else f"\n  its folder: {folder}"
