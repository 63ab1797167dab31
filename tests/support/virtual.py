"""Sweeps in virtual time: a random tree whose jobs turn out as their lineage says, whatever their number is."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from support.journals import written_anew
from support.plans import plan_of, sweep_of

from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.journal import read
from autocl_sweeper.order import Work
from autocl_sweeper.types import Outcome, State


class World:
    """A random tree and how its jobs turn out."""

    def __init__(self, seed):
        dice = random.Random(seed)
        self.seed = seed
        self.sizes = [dice.randint(1, 5) for _ in range(dice.randint(2, 5))]
        self.top_k = dice.randint(1, 4)
        self.devices = dice.randint(1, 8)
        self.retries = dice.randint(0, 1)
        self.levels = dice.choice([2, 5, 1000])  # of scores: few, so that many are equal
        self.maximize = dice.random() < 0.5
        self.longest = dice.random() < 0.5
        self.grace_s = dice.choice([0.0, 0.3])
        self.failing = dice.choice([0.0, 0.2])

    def plan(self, pipeline, longest=False):
        tasks = [f"t{place}" for place in range(len(self.sizes))]
        plan = plan_of(
            f"task={','.join(tasks)}",
            task_params={
                task: [{"x": i, "epochs": 1 + i % 3} for i in range(size)]
                for task, size in zip(tasks, self.sizes, strict=True)
            },
            handover={"parent": "parent"},
            top_k=self.top_k,
            direction="maximize" if self.maximize else "minimize",
            retries=self.retries,
        )
        work = Work({"epochs"}) if longest else None
        return replace(plan, strategy=plan.strategy.scheduled(pipeline, work))

    def outcome(self, lineage, attempt):
        dice = random.Random(f"{self.seed}/{lineage}/{attempt}")
        seconds = dice.lognormvariate(0, 1.2)
        score = random.Random(f"{self.seed}/{lineage}").randrange(self.levels) / self.levels
        # A stage whose every trial fails ends the sweep, which has a test of its own.
        if lineage[-1] and dice.random() < self.failing:
            return Outcome(State.FAIL, "it crashed", seconds=seconds)
        numbers = {"score": score}
        return Outcome(State.COMPLETE, numbers=numbers, returned="float", seconds=seconds)


class Run:
    """One sweep, or what is left of one whose journal has `records` already."""

    def __init__(self, world, folder, pipeline, longest=False, records=(), make=None):
        """`make`: the executor, from how a job ends; None: simulated devices of one machine."""
        self.world = world
        folder.mkdir()
        if records:
            written_anew(folder, records)
        self.plan = world.plan(pipeline, longest)
        self.attempts = Counter(
            record["trial"]
            for record in records
            if record["event"] == "attempt_failed" and not record["lost"]
        )
        self.lineages = {}
        self.idle = []
        self.late = []
        self.executor = make(self.run) if make else SimulatedExecutor(
            world.devices, self.run, world.grace_s, before_waiting=self.look
        )  # fmt: skip
        self.sweep = sweep_of(folder, self.plan, self.executor)
        for trial in self.sweep.history:
            self.lineages[trial.number] = self.chain(trial)
        self.history = self.sweep.run()
        self.folder = folder

    def run(self, job):
        given = dict(text.partition("=")[::2] for text in job.overrides)
        above = self.lineages[int(given["parent"])] if "parent" in given else ()
        self.lineages[job.number] = (*above, int(given["x"]))
        outcome = self.world.outcome(self.lineages[job.number], self.attempts[job.number])
        self.attempts[job.number] += outcome.state is State.FAIL
        return outcome

    def chain(self, trial):
        return tuple(t.suggestion.params["x"] for t in self.sweep.history.lineage(trial))

    def look(self):
        """Time is about to pass: is a device idle although a trial may run, or busy in vain?"""
        if self.executor.free_slots() and permitted(self.sweep.history, self.world, self.plan):
            self.idle.append(self.executor.clock_s)
        given_up = self.sweep.history.given_up
        for trial in self.sweep.history.running():
            if not given_up.keys().isdisjoint(t.number for t in self.sweep.history.lineage(trial)):
                self.late.append(trial.number)

    def table(self):
        """Every trial that counts, by its chain: state, reason, score, whether it survived."""
        selected = {number for beam in self.history.beams.values() for number in beam}
        return {
            self.chain(trial): (
                trial.state, trial.outcome.reason, trial.score, trial.number in selected
            )
            for trial in self.history
            if trial.state is not State.PRUNED
        }  # fmt: skip

    def beams(self):
        return {
            stage: [self.chain(self.history[number]) for number in beam]
            for stage, beam in self.history.beams.items()
        }

    def best(self):
        return [
            (entry["task"], entry["params"], entry["score"]) for entry in self.sweep.best_chain()
        ]

    def records(self):
        return read(self.folder)


def permitted(history, world, plan):
    """Whether any trial may start, worked out from the whole history the slow way."""
    sign = -1 if world.maximize else 1
    stage = len(history.beams) + 1
    begun = {(trial.stage, trial.suggestion.index, trial.parent) for trial in history}
    ranked = [trial for trial in history.stage(stage) if trial.score is not None]
    order = {number: place for place, number in enumerate(history.beams.get(stage - 1, ()))}
    ranked.sort(key=lambda t: (sign * t.score, t.suggestion.index, order.get(t.parent, 0)))
    now = history.beams.get(stage - 1, (None,))
    later = [trial.number for trial in ranked[: world.top_k]] if plan.strategy.pipeline else []
    early = [trial for trial in history.stage(stage + 1) if trial.score is not None]
    early.sort(key=lambda t: (sign * t.score, t.suggestion.index, t.number))
    latest = [trial.number for trial in early[: world.top_k]] if plan.strategy.pipeline else []
    for number, parents in ((stage, now), (stage + 1, later), (stage + 2, latest)):
        if number <= len(world.sizes):
            for index in range(world.sizes[number - 1]):
                if any((number, index, parent) not in begun for parent in parents):
                    return True
    return False
