"""The next stage begins early, and the tree is the same: against the sweep that waits at each stage.

Jobs run in virtual time. Their durations, scores and failures come from their lineage alone, so a
trial is known by the places of its chain's suggestions, whatever its number is.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from dataclasses import replace

import pytest
from support.bench import Bench, wait_until
from test_plan import plan_of

from autocl_sweeper import results
from autocl_sweeper.errors import TooManyFailuresError
from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.journal import fold
from autocl_sweeper.order import Work
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.report.progress import LogProgress
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.sequential import (
    PARENT_LEFT,
    Select,
    SequentialTopK,
    Stage,
    Start,
    Wait,
)
from autocl_sweeper.sweep import Sweep
from autocl_sweeper.types import History, Outcome, State, Suggestion, Trial

SEEDS = range(200)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Nothing here is about a machine that loses its power, and few tests are about the files."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(results, "write_best", lambda *_: None)
    monkeypatch.setattr(results, "write_table", lambda *_: None)


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
        return replace(plan, strategy=replace(plan.strategy, pipeline=pipeline, work=work))

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
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (folder / "journal.jsonl").write_text(lines)
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
        self.sweep = Sweep(folder, self.plan, self.executor, JobFiles.of(folder), LogProgress())
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
        lines = (self.folder / "journal.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


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


@pytest.fixture(params=SEEDS)
def world(request):
    return World(request.param)


def test_the_tree_is_that_of_the_sweep_that_waits_at_every_stage(world, tmp_path):
    waiting = Run(world, tmp_path / "waits", pipeline=False)
    early = Run(world, tmp_path / "early", pipeline=True, longest=world.longest)
    assert early.table() == waiting.table()
    assert early.beams() == waiting.beams()
    assert early.best() == waiting.best()
    assert not waiting.history.given_up
    # With a barrier and in the order submitted, the canonical order is that of the numbers.
    for beam in waiting.history.beams.values():
        ranks = [(waiting.plan.selection.rank(waiting.history[n]), n) for n in beam]
        assert ranks == sorted(ranks)

    assert early.idle == [] and waiting.idle == []
    assert early.late == []
    orphans = {
        trial.number
        for trial in early.history
        if trial.parent is not None and trial.parent not in early.history.beams[trial.stage - 1]
    }
    assert set(early.history.given_up) == orphans
    pruned = [trial for trial in early.history if trial.state is State.PRUNED]
    assert {trial.number for trial in pruned} == orphans
    assert {trial.outcome.reason for trial in pruned} <= {PARENT_LEFT}
    assert not early.history.ending and not early.history.running()

    last = {span.number: span for span in early.executor.busy}
    wasted = sum(span.end_s - span.begin_s for n, span in last.items() if n in orphans)
    all_of_it = sum(span.end_s - span.begin_s for span in last.values())
    waste = results.waste(early.history)
    assert waste.trials == len(orphans)
    assert waste.seconds == pytest.approx(wasted)
    assert waste.share == pytest.approx(wasted / all_of_it)


@pytest.mark.parametrize("seed", [9, 12, 18, 37])
def test_a_sweep_goes_on_from_every_line_of_its_journal_to_the_same_tree(seed, tmp_path):
    world = World(seed)
    whole = Run(world, tmp_path / "whole", pipeline=True, longest=world.longest)
    assert whole.history.given_up
    records = whole.records()
    result_file = (whole.folder / results.RESULT_FILE).read_text()
    for length in range(1, len(records)):
        folder = tmp_path / str(length)
        again = Run(world, folder, True, world.longest, records[:length])
        assert again.table() == whole.table(), length
        assert again.beams() == whole.beams(), length
        numbers = [trial.number for trial in again.history]
        assert numbers == list(range(len(numbers)))
        before = fold(records[:length]).history
        for trial in before:  # what had ended has ended; what was given up stays so
            if trial.number in before.given_up:
                assert trial.number in again.history.given_up
            elif trial.state is not State.RUNNING:
                after = again.history[trial.number]
                assert after == trial or trial.number in again.history.given_up
        # Its files say the same as those made from its journal alone.
        text = (folder / results.RESULT_FILE).read_text()
        results.ResultFile(folder, again.plan).rebuild(again.records(), again.history)
        assert (folder / results.RESULT_FILE).read_text() == text
        assert titles(text) == titles(result_file)


def titles(text):
    return [line for line in text.splitlines() if line.startswith("---")]


@pytest.mark.parametrize("seed", range(20))
def test_a_decision_depends_on_the_history_and_on_nothing_else(seed, tmp_path, monkeypatch):
    """The strategy remembers what it has read; one that reads all of it anew decides the same."""
    remembering = SequentialTopK.next

    def compare(strategy, history):
        decision = remembering(strategy, history)
        assert remembering(replace(strategy), history) == decision
        return decision

    monkeypatch.setattr(SequentialTopK, "next", compare)
    world = World(seed)
    assert Run(world, tmp_path / "early", pipeline=True, longest=True).history.beams


def test_a_sweep_begun_early_ends_the_same_when_it_goes_on_without(tmp_path):
    world = World(12)
    whole = Run(world, tmp_path / "whole", pipeline=True)
    records = whole.records()
    begun = [place for place, record in enumerate(records) if record["event"] == "give_up"]
    for place in begun:
        again = Run(world, tmp_path / str(place), False, False, records[:place])
        assert again.table() == whole.table()
        assert again.history.given_up


def test_the_result_file_keeps_each_tasks_lines_together_and_leaves_out_what_was_given_up(tmp_path):
    world = World(12)
    run = Run(world, tmp_path / "early", pipeline=True)
    assert run.history.given_up
    stage, told = 0, []
    for line in (run.folder / results.RESULT_FILE).read_text().splitlines():
        if line.startswith("---"):
            stage += 1
            assert line == f"-------------t{stage - 1} beginner---------------"
        else:
            record = json.loads(line)
            assert record["stage"] == stage
            told += [record["trial"]] if "trial" in record else []
    counting = {trial.number for trial in run.history} - set(run.history.given_up)
    assert sorted(told) == sorted(counting)


class Script(World):
    """Three trials, then one from the best: seconds, score and failure by lineage."""

    def __init__(self, told):
        super().__init__(0)
        self.sizes, self.top_k, self.devices, self.maximize = [3, 1], 1, 3, True
        self.retries, self.failing, self.grace_s = 0, 0.0, 0.0
        self.told = told

    def plan(self, pipeline, longest=False):
        plan = super().plan(pipeline)
        return replace(plan, settings=replace(plan.settings, max_failures=0))

    def outcome(self, lineage, attempt):
        seconds, score = self.told[lineage]
        state = State.FAIL if score is None else State.COMPLETE
        numbers = {} if score is None else {"score": score}
        return Outcome(state, numbers=numbers, returned="float", seconds=seconds)


def test_failures_of_trials_that_are_given_up_count_for_nothing(tmp_path):
    told = {(0,): (1, 0.1), (1,): (2, 0.2), (2,): (9, 0.9), (2, 0): (1, 0.5)}
    fails_early = {(0, 0): (0.5, None), (1, 0): (0.5, None)}
    run = Run(Script(told | fails_early), tmp_path / "stays", pipeline=True)
    assert run.history.failures == 0
    assert [run.chain(run.history[n]) for n in run.history.given_up] == [(0, 0), (1, 0)]
    assert results.waste(run.history).seconds == 1.0

    told[(2,)] = (9, 0.0)  # now 1 stays the best, and so the failure of its child counts
    with pytest.raises(TooManyFailuresError, match=r"1 trials failed .*max_failures=0"):
        Run(Script(told | fails_early), tmp_path / "counts", pipeline=True)


class Learner:
    """A search that looks at the trials of its stage, so it has no suggestion for a place alone."""

    size = None
    asked = 0

    def ask(self, history):
        self.asked += 1
        return Suggestion(len(history), {"x": max((t.score or 0 for t in history), default=0)})


def test_a_stage_whose_search_learns_begins_when_its_parents_are_sure(tmp_path):
    listed, learner = ListedSearch([{"x": 0}, {"x": 1}]), Learner()
    for search in (listed, learner):
        stages = [Stage(1, "a", listed), Stage(2, "b", search, limit=2)]
        strategy, history = SequentialTopK(stages, TopK(1), pipeline=True), History()
        for number in range(2):
            suggestion = strategy.next(history).suggestion
            history.start(Trial(number, 1, "a", suggestion, None))
        history.finish(0, Outcome(State.COMPLETE, score=0.5))
        early = strategy.next(history)
        if search is listed:
            assert early == Start(stages[1], listed.suggestion(0), parent=0)
            continue
        assert isinstance(early, Wait) and not learner.asked
        history.finish(1, Outcome(State.COMPLETE, score=0.9))
        assert strategy.next(history) == Select(stages[0], (1,))
        history.select(1, (1,))
        assert strategy.next(history) == Start(stages[1], Suggestion(0, {"x": 0}), parent=1)


# -- with real jobs ---------------------------------------------------------------------------------

COMMAND = (
    "hydra/sweeper=autocl", "task=a,b", "+hydra.sweeper.task_params.a=[{lr:1},{lr:2},{lr:3}]",
    "+hydra.sweeper.task_params.b=[{lr:4},{lr:9}]", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=3",
    "hydra.launcher.warm=true",
)  # fmt: skip


def started(chain: Bench) -> set[tuple[float, ...]]:
    """The lineages of the trials so far, as their learning rates."""
    trials = {event["trial"]: event for event in chain.events("start")}

    def lineage(event):
        above = () if event["parent"] is None else lineage(trials[event["parent"]])
        return (*above, event["params"]["lr"])

    return {lineage(event) for event in trials.values()}


def begin_early(chain: Bench):
    """The last trial of `a` is held, and all of `b` that can start before it ends has started."""
    hold = chain.folder / "hold"
    hold.touch()
    process = chain.start(*COMMAND, HOLD=str(hold), HOLDS="[3]", FOREVER="[[1, 9]]")
    early = {(2, 4), (2, 9), (1, 4), (1, 9)}
    wait_until(lambda: started(chain) >= early and len(chain.finished()) == 5, "all of b began")
    wait_until(lambda: len(chain.ledger("start")) == 7, "the jobs themselves too")
    return process, hold


def check_the_tree(chain: Bench) -> None:
    """With scores lr(a) - 0.6 lr(b): 3 and 2 are the beam of a, and the children of 1 are gone."""
    told = chain.results()
    trials = {event["trial"]: event["params"]["lr"] for event in chain.events("start")}
    assert [trials[number] for number in told["beams"][1]] == [3, 2]
    assert [trials[number] for number in told["beams"][2]] == [4, 4]
    assert [entry["score"] for entry in told["chain"]] == [3, 0.6]
    parents = {event["trial"]: event["parent"] for event in chain.events("start")}
    orphans = {number for number, parent in parents.items() if trials.get(parent) == 1}
    assert {event["trial"] for event in chain.events("give_up")} == orphans and len(orphans) == 2
    assert told["given_up"]["trials"] == 2 and told["given_up"]["seconds"] > 0
    kept = {int(path.parent.name) for path in chain.sweep.glob("*/*/checkpoint")}
    assert kept == {number for beam in told["beams"].values() for number in beam}
    assert chain.nothing_is_left()


def test_real_jobs_that_began_early_are_kept_or_ended(chain: Bench) -> None:
    process, hold = begin_early(chain)
    hold.unlink()
    output = chain.finish(process)
    assert process.returncode == 0, output
    check_the_tree(chain)
    # What (2, 4) did while the beam was not known was not done again.
    assert len(chain.ledger("start")) == 3 + 4 + 2
    assert "Given up: 2 trials that began before their parent was sure of its place" in output


def test_killed_while_jobs_run_early_it_goes_on_to_the_same_tree(chain: Bench) -> None:
    process, hold = begin_early(chain)
    process.kill()
    process.wait()
    hold.unlink()
    output = chain.run(*COMMAND, FOREVER="[[1, 9]]")
    assert "Given up: 2 trials" in output
    check_the_tree(chain)
