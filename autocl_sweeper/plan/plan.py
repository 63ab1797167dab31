"""A checked sweep: its stages, and the command line of each of its jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autocl_sweeper.objective import MEAN, Objective
from autocl_sweeper.plan.pruning import Pruning
from autocl_sweeper.plan.rounds import BEAM, HANDED, INIT, POPULATION, SOURCES, handover_of
from autocl_sweeper.plan.settings import Settings
from autocl_sweeper.protocols import Selection
from autocl_sweeper.space import bare, literal, override
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.strategy.sequential import SequentialTopK
from autocl_sweeper.types import Suggestion, Trial, Value

BOUNDS = ("jobs", "rounds", "popsize")  # may be raised while a sweep is not over


@dataclass(frozen=True)
class Plan:
    """A checked sweep: everything about it that does not depend on how its trials turn out."""

    settings: Settings
    strategy: SequentialTopK
    tasks: Mapping[str, Value]  # name -> value of the sequence override; empty: no sequence
    given: Mapping[str, str | None]  # key -> the user's text; None: filled by the suggestion
    knows_folders: bool  # false: the user's own hydra.sweep.subdir says where jobs go
    fingerprint: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]  # task -> flat configuration of its first suggestion
    pruning: Pruning | None = None  # None: no trial is stopped early

    @property
    def stages(self) -> Sequence[Stage]:
        return self.strategy.stages

    @property
    def selection(self) -> Selection:
        return self.strategy.selection

    @cached_property
    def objective(self) -> Objective:
        """What ranks a job of the numbers that it returned; a lone number is called `score`."""
        settings, tasks = self.settings, list(self.tasks)
        needs = (MEAN,) if settings.selection == "pareto" else ()
        maximize = settings.direction == "maximize"
        return Objective(settings.metric, settings.objective, tasks, maximize, needs)

    @property
    def ranked(self) -> bool:
        """Whether a score is needed: with a sequence or rounds, trials compete to be parents."""
        return bool(self.tasks) or self.settings.parents != BEAM

    @property
    def size(self) -> int:
        """Trials in all if every stage has as many survivors as it may."""
        total, parents = 0, 1
        for stage in self.stages:
            trials = stage.jobs(parents)
            assert trials is not None, "a search without end has a bound"
            total += trials
            survivors = stage.survivors or self.settings.top_k
            parents = min(survivors, trials // stage.seeds)
        return total

    @property
    def bounds(self) -> dict[str, int | None]:
        """What may be raised while the sweep is not over."""
        return {key: getattr(self.settings, key) for key in BOUNDS}

    @property
    def checkpoint_key(self) -> str | None:
        """The override that gets the parent's checkpoint; None: stages do not build on each other."""
        if self.settings.parents == INIT:
            return None
        handover = handover_of(self.settings).items()
        return next((key for key, value in handover if value == "checkpoint"), None)

    @property
    def hands_sources(self) -> bool:
        """Whether a job gets the checkpoints of all survivors of the stage before."""
        return SOURCES in handover_of(self.settings).values()

    def folder(self, number: int, stage: Stage, index: int = 0) -> str:
        """Relative to the sweep folder; empty when only the job will know.

        index: that of the suggestion, which counts through the rounds of a stage.
        """
        if not self.knows_folders:
            return ""
        if self.settings.parents != BEAM:
            round_number, place = self.round_of(stage, index)
            return f"{self.root(stage.task)}round{round_number}/{place}"
        return f"{stage.number}_{_slug(stage.task)}/{number}" if self.tasks else str(number)

    def root(self, task: str) -> str:
        """Where the rounds of a task lie in the sweep folder: in itself, unless there are several."""
        if len(self.tasks) < 2:
            return ""
        return f"{list(self.tasks).index(task) + 1}_{_slug(task)}/"

    def round_of(self, stage: Stage, index: int) -> tuple[int, int]:
        """The round of a suggestion, and its place there, both counted from 0."""
        if self.settings.parents == POPULATION:
            return stage.round, index
        popsize = self.settings.popsize
        return (0, index) if popsize is None else divmod(index, popsize)

    def tasks_until(self, stage: int) -> list[str]:
        """The tasks that stages up to this one are about, in their order."""
        tasks = [one.task for one in self.stages[:stage]] or list(self.tasks)[:stage]
        return list(dict.fromkeys(tasks)) if self.tasks else []

    def overrides(
        self, trial: Trial, checkpoint: str | None, sources: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """The job's command line: what the user typed, task and suggestion, what is handed over.

        `checkpoint` is the parent's, absolute; None without a parent. `sources`: those of all
        survivors of the stage before, best first.
        """
        values = dict(trial.suggestion.params)
        if self.stages:  # a draft has none yet
            values.update(self.stages[trial.stage - 1].passed)
        if self.tasks:
            assert self.settings.sequence is not None
            values[self.settings.sequence] = self.tasks[trial.task]
        # A key typed as `+key` stays new to the configuration wherever else it is named without.
        typed = {bare(key): key for key in self.given}
        filled = {
            bare(key): override(key if key.startswith("+") else typed.get(key, key), value)
            for key, value in values.items()
        }
        texts: dict[str, str] = {}
        for key, text in self.given.items():
            chosen = filled.pop(bare(key), text)
            if chosen is not None:
                texts[bare(key)] = chosen
        texts.update(filled)
        handed = self._handed(trial, checkpoint, sources)
        for key, name in handover_of(self.settings).items():
            value = None if name is None else handed[name]
            if value is not None and not (name == HANDED and self.settings.parents == INIT):
                texts[bare(key)] = override(key, literal(value))
        if trial.folder and self.ranked:
            texts["hydra.sweep.subdir"] = override("hydra.sweep.subdir", literal(trial.folder))
        return tuple(texts.values())

    def _handed(
        self, trial: Trial, checkpoint: str | None, sources: Sequence[str]
    ) -> dict[str, Value]:
        """The values that `handover` may name."""
        seen_tasks: list[Value] = [*self.tasks_until(trial.stage)]  # none without a sequence
        return {
            "checkpoint": checkpoint,
            "sources": [*sources] or None,
            "extra": trial.extra or None,
            "seen_tasks": seen_tasks or None,
            "stage": trial.stage,
            "trial": trial.number,
            "parent": trial.parent,
            "seed": self.settings.seed + trial.repeat,
        }

    def example(
        self, stage: Stage, params: Mapping[str, Value], checkpoint: str, extra: int = 0
    ) -> tuple[str, ...]:
        """The command line of a job with these params, stand-ins for what trials before it give."""
        suggestion = Suggestion(0, params)
        if stage.number == 1:
            return self.overrides(Trial(0, 1, stage.task, suggestion, None), None)
        trial = Trial(0, stage.number, stage.task, suggestion, 0, extra=extra)
        return self.overrides(trial, checkpoint, [checkpoint])


def _slug(text: str) -> str:
    """A task's name as one folder name: letters of every script and figures stay.

    File systems allow 255 bytes; the stage and the trial's number tell apart what is cut.
    """
    return re.sub(r"[^\w.+-]", "_", text).encode()[:200].decode(errors="ignore") or "_"
