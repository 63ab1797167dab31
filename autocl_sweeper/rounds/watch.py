"""A sweep in rounds, watched: a line per round, warnings of crashes, files after every round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from autocl_sweeper.display.progress import LogProgress
from autocl_sweeper.outcome import last_lines
from autocl_sweeper.plan import Plan
from autocl_sweeper.rounds.files import RoundFiles
from autocl_sweeper.rounds.table import Rounds, best_of, settings_of
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.types import History, State, Trial


class RoundsProgress:
    """What `progress` shows and, for each round, its best trial."""

    def __init__(self, progress: LogProgress, folder: Path) -> None:
        self._progress = progress
        self._folder = folder
        self._files: dict[str, RoundFiles] = {}
        self._announced: dict[str, int] = {}  # task -> how many of its rounds
        self._ended: Counter[tuple[str, int]] = Counter()  # (task, round) -> trials

    def begin(self, plan: Plan, history: History) -> None:
        self._progress.begin(plan, history)
        for task in dict.fromkeys(stage.task for stage in plan.stages):
            rounds = Rounds(plan, history, task)
            self._files[task] = RoundFiles(self._folder, rounds)
            self._announced[task] = sum(one.over for one in rounds.all())
            for one in rounds.all():
                running = sum(t.state is State.RUNNING for t in one.trials.values())
                self._ended[task, one.number] = len(one.trials) - running
            if rounds.all():
                self._files[task].write()
        self._popsize = plan.settings.popsize

    def started(self, trial: Trial) -> None:
        self._files[trial.task].begin(trial)
        self._progress.started(trial)

    def finished(self, trial: Trial) -> None:
        self._progress.finished(trial)
        if trial.state is State.FAIL:
            self._warn(trial)
        key = trial.task, self._files[trial.task].rounds.round_of(trial)[0]
        self._ended[key] += 1
        if self._ended[key] == self._popsize:
            self._announce(trial.task)

    def again(self, trial: Trial, reason: str) -> None:
        self._progress.again(trial, reason)

    def gave_up(self, trial: Trial) -> None:
        self._progress.gave_up(trial)

    def stopped(self, trial: Trial) -> None:
        self._progress.stopped(trial)

    def selected(self, stage: Stage, beam: Sequence[Trial]) -> None:
        self._announce(stage.task)

    def end(self) -> None:
        self._progress.end()
        for task, files in self._files.items():
            if not files.rounds.all():
                continue
            files.finish()
            best = files.rounds.best()
            if best is None:
                self._progress.say(f"{self._of(task)}no round has a winner yet")
                continue
            told = f"best score {best.score!r} with {settings_of(best)}"
            self._progress.say(f"{self._of(task)}{told}")
            self._progress.say(f"  the best model: {files.best_model}")
            self._progress.say(f"  all trials: {files.log_file}")

    def _announce(self, task: str) -> None:
        """Say how rounds went that are over since the last call, and write the files."""
        files = self._files[task]
        over = [one for one in files.rounds.all() if one.over]
        new = over[self._announced[task] :]
        if not new:
            return
        self._announced[task] = len(over)
        files.write()
        for one in new:
            found = "no trial has a score"
            if (best := best_of(files.rounds.plan, one.trials.values())) is not None:
                place = files.rounds.round_of(best)[1]
                found = f"local best score {best.score!r}, trial {place} with {settings_of(best)}"
            number = f"round {one.number} ({one.number + 1} of {files.rounds.total})"
            self._progress.say(f"{self._of(task)}{number}: {found}")

    def _warn(self, trial: Trial) -> None:
        """AutoDL Finetuner's words, which its users look for, and what they do not say."""
        outcome = trial.outcome
        assert outcome is not None
        files = self._files[trial.task]
        number, place = files.rounds.round_of(trial)
        log_file = files.log_of(trial)
        lines = [
            f"WARNING: Program which was ran with hyperparameters as {settings_of(trial)} was"
            " crashed!",
            f"  {self._of(trial.task)}round {number}, trial {place}: {outcome.reason}",
            f"  its log: {log_file}",
            *(f"  | {line}" for line in outcome.log_tail or last_lines(log_file)),
        ]
        self._progress.say("\n".join(lines))

    def _of(self, task: str) -> str:
        return f"task '{task}', " if len(self._files) > 1 else ""
