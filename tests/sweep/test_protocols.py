"""Protocols, repeats and the number of jobs: sweeps in virtual time against brute force."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from statistics import mean

import pytest
from support.bench import Bench
from support.lineages import Simulated, completes, landscape
from support.plans import RANDOM, plan_of

from autocl_sweeper.display.dry_run import lines
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.checks import refuse_moved
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.search.random import RandomSearch
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.types import History, Outcome, State, Suggestion, Trial

pytestmark = pytest.mark.usefixtures("no_fsync")
TASKS = ("a", "b", "c", "d")
SPACE = "x=interval(0, 1)"
HANDOVER = {"parent": "parent"}
EXTRA = {**HANDOVER, "merge.extra": "extra"}
TEACHER = {"factory": "support.searches.doubling"}


def plan(protocol="beam", jobs=6, space=SPACE, pipeline=False, tasks=TASKS, **settings):
    given = {"search": RANDOM, "handover": HANDOVER, "init": False, **settings}
    made = plan_of(f"task={','.join(tasks)}", space, protocol=protocol, jobs=jobs, **given)
    return replace(made, strategy=made.strategy.scheduled(pipeline, None))


def draws(task, count, seed=0):
    """What random search suggests on a task."""
    space = plan().stages[0].search._space
    search = RandomSearch(space, seed, task)
    return [search.suggestion(index).params for index in range(count)]


def score(*steps):
    """The landscape of a chain of parameters."""
    return landscape([Trial(0, 1, "", Suggestion(0, params), None) for params in steps])


# -- the cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("pairing", ["every", "one"])
@pytest.mark.parametrize("jobs", [3, 7])
def test_jobs_of_a_stage_are_the_same_whatever_the_beam_and_the_pairing(
    pipeline, k, pairing, jobs, tmp_path
):
    learns = {"search": {**TEACHER, "pairing": pairing}}
    for name, settings in (("indexed", {}), ("learns", learns)):
        made = plan(jobs=jobs, top_k=k, pipeline=pipeline, **settings)
        run = Simulated(tmp_path / name, made, completes, devices=3)
        per_task = Counter(trial.task for trial in run.counted())
        assert per_task == dict.fromkeys(TASKS, jobs)
        assert made.size == jobs * len(TASKS)


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("pairing", ["every", "one"])
def test_repeats_are_jobs_and_no_group_of_them_is_begun_in_part(seeds, k, pairing, tmp_path):
    search = RANDOM if pairing == "every" else {**TEACHER, "pairing": "one"}
    handover = {**HANDOVER, "s": "seed"}
    made = plan(jobs=7, top_k=k, seeds=seeds, search=search, handover=handover)
    run = Simulated(tmp_path / "run", made, completes, devices=2)
    cells = Counter((t.stage, t.suggestion.index, t.parent) for t in run.history)
    assert set(cells.values()) == {seeds}
    assert Counter(t.task for t in run.history) == dict.fromkeys(TASKS, 7 // seeds * seeds)
    assert made.size == len(run.history)


@pytest.mark.parametrize("protocol", ["greedy", "first_k", "fixed", "random_chains"])
@pytest.mark.parametrize("jobs, first_k", [(6, 3), (5, 2), (4, 1), (4, 9)])
@pytest.mark.parametrize("seeds", [1, 2])
def test_every_protocol_costs_the_same(protocol, jobs, first_k, seeds, tmp_path):
    handover = {**HANDOVER, "s": "seed"}
    made = plan(protocol, jobs, first_k=first_k, seeds=seeds, handover=handover)
    run = Simulated(tmp_path / "run", made, completes, devices=2)
    assert len(run.history) == made.size
    tuned, groups = min(first_k, len(TASKS)), jobs // seeds
    spare = (groups * len(TASKS) - (len(TASKS) - tuned)) % tuned if protocol == "first_k" else 0
    # What no further group of repeats, and no further whole chain, fits into, is left.
    assert made.size == (groups * len(TASKS) - spare) * seeds


# -- what each protocol finds -----------------------------------------------------------------------


def test_greedy_is_a_beam_of_one(tmp_path):
    found, chain = Simulated(tmp_path / "run", plan("greedy"), completes).best(), []
    for task in TASKS:
        chain.append(max(draws(task, 6), key=lambda p, c=tuple(chain): score(*c, p)))
    assert found == chain


def test_fixed_is_the_best_of_whole_chains_of_one_configuration_each(tmp_path):
    run = Simulated(tmp_path / "run", plan("fixed"), completes, devices=2)
    best = max(draws("a", 6), key=lambda params: score(*[params] * 4))
    assert run.best() == [best] * 4
    assert Counter(tuple(t.suggestion.params.values()) for t in run.history) == {
        tuple(params.values()): 4 for params in draws("a", 6)
    }


@pytest.mark.parametrize("first_k", [1, 2, 3, 4])
def test_first_k_tunes_whole_chains_on_the_first_tasks_and_goes_on_with_the_best(first_k, tmp_path):
    made = plan("first_k", first_k=first_k)
    run = Simulated(tmp_path / "run", made, completes)
    chains = (6 * 4 - (4 - first_k)) // first_k
    best = max(draws("a", chains), key=lambda params: score(*[params] * first_k))
    assert run.best() == [best] * 4
    assert [len(run.history.stage(n)) for n in range(1, 5)] == [
        *[chains] * first_k, *[1] * (4 - first_k)
    ]  # fmt: skip


def test_random_chains_draw_at_every_step_and_never_compete(tmp_path):
    run = Simulated(tmp_path / "run", plan("random_chains"), completes)
    last = [run.history.lineage(trial) for trial in run.history.stage(4)]
    assert len({chain[0].number for chain in last}) == 6
    values = [trial.suggestion.params["x"] for trial in run.history]
    assert len(set(values)) == 24 and all(0 <= value < 1 for value in values)
    best = max(last, key=landscape)
    assert run.best() == [trial.suggestion.params for trial in best]
    again = Simulated(tmp_path / "again", plan("random_chains"), completes, devices=1)
    other = Simulated(tmp_path / "other", plan("random_chains", seed=1), completes)
    assert again.trials() == run.trials() != other.trials()


def test_random_chains_may_be_more_than_a_space_of_choices_has(tmp_path):
    run = Simulated(tmp_path / "run", plan("random_chains", space="x=1,2"), completes)
    assert len(run.history) == 24
    assert {trial.suggestion.params["x"] for trial in run.history} == {1, 2}


@pytest.mark.parametrize("protocol", ["fixed", "first_k", "random_chains"])
def test_a_chain_whose_trial_failed_ends_there(protocol, tmp_path):
    def turns(lineage):
        dies = len(lineage) == 2 and lineage[0].suggestion.index in (0, 3)
        return Outcome(State.FAIL, "it crashed") if dies else completes(lineage)

    run = Simulated(tmp_path / "run", plan(protocol), turns)
    starters = [
        [run.history.lineage(trial)[0].suggestion.index for trial in run.history.stage(stage)]
        for stage in (2, 3)
    ]
    assert set(starters[0]) - set(starters[1]) == {0, 3}
    assert len(starters[1]) == len(starters[0]) - 2


def test_a_grid_gives_fixed_a_chain_for_each_of_its_points(tmp_path):
    grid = {"factory": "autocl_sweeper.search.grid.GridSearch"}
    run = Simulated(
        tmp_path / "run", plan("fixed", None, "x=1,2,3", search=grid), completes, devices=3
    )
    assert len(run.history) == 12 and len({t.suggestion.params["x"] for t in run.history}) == 3


@pytest.mark.parametrize(
    "protocol, settings",
    [
        ("greedy", {}),
        ("fixed", {}),
        ("first_k", {"first_k": 2}),
        ("random_chains", {}),
        ("beam", {"seeds": 2, "handover": {**HANDOVER, "s": "seed"}}),
        ("beam", {"extra_parents": 2, "handover": EXTRA}),
    ],
)
def test_a_sweep_goes_on_from_every_line_of_its_journal(protocol, settings, tmp_path):
    whole = Simulated(tmp_path / "whole", plan(protocol, 4, **settings), completes)
    records = whole.records()
    for length in range(1, len(records), 3):
        again = Simulated(
            tmp_path / str(length), plan(protocol, 4, **settings), completes, 1, records[:length]
        )
        assert again.trials() == whole.trials()
        assert again.best() == whole.best()


# -- extra parents ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("learns, pairing", [(False, "every"), (True, "every"), (True, "one")])
def test_every_suggestion_runs_with_the_extra_starts_too(learns, pairing, seeds, tmp_path):
    search = {**TEACHER, "pairing": pairing} if learns else RANDOM
    made = plan(
        jobs=None, popsize=3, tasks=TASKS[:3], search=search, extra_parents=2, seeds=seeds,
        handover={**EXTRA, "s": "seed"}, pipeline=True,
    )  # fmt: skip
    run = Simulated(tmp_path / "run", made, completes, devices=3)
    pairs = 2 if pairing == "every" else 1  # top_k
    assert Counter(t.stage for t in run.history) == {
        1: 3 * seeds,
        2: 3 * (pairs + 2) * seeds,
        3: 3 * (pairs + 2) * seeds,
    }
    assert len(run.history) == made.size
    told = "".join(lines(made, History()))
    assert told.count("and from 2 extra starts") == 2
    for stage in (2, 3):
        best, second = run.history.beams[stage - 1]
        starts = Counter((t.parent, t.extra) for t in run.history.stage(stage))
        assert {starts[best, extra] for extra in (1, 2)} == {3 * seeds}
        assert starts[best, 0] + starts[second, 0] == 3 * pairs * seeds
        assert starts.keys() <= {(best, 0), (second, 0), (best, 1), (best, 2)}
        for index in range(3):
            runs = [t for t in run.history.stage(stage) if t.suggestion.index == index]
            assert len({str(t.suggestion.params) for t in runs}) == 1


def test_extra_starts_are_told_apart_in_ranking_results_and_commands(tmp_path):
    def turns(lineage):
        score = {0: 0.5, 1: 0.9}[lineage[-1].extra] + 0.1 * len(lineage) * lineage[-1].repeat
        numbers = {"score": score}
        (tmp_path / "run" / lineage[-1].folder / "checkpoint").mkdir(parents=True, exist_ok=True)
        checkpoint = f"{tmp_path}/run/{lineage[-1].folder}/checkpoint"
        return Outcome(State.COMPLETE, numbers=numbers, returned="float", checkpoint=checkpoint)

    made = plan(
        jobs=None, popsize=1, tasks=TASKS[:2], extra_parents=1, seeds=2, top_k=1,
        handover={"init_from": "checkpoint", "merge.sources": "sources", "merge.extra": "extra", "s": "seed"},
    )  # fmt: skip
    run = Simulated(tmp_path / "run", made, turns)
    assert [(t.extra, t.repeat) for t in run.history.stage(2)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert run.history.beams == {1: (1,), 2: (5,)}  # runs of one start are one candidate
    commands = [one["overrides"] for one in run.records() if one["event"] == "start"]
    source = f"{tmp_path}/run/1_a/1/checkpoint"
    handed = [[text for text in one if text.startswith(("merge.", "init_"))] for one in commands]
    parents = [f"init_from={source}", f"merge.sources=[{source}]"]
    assert [sorted(one) for one in handed[:3]] == [[], [], parents]
    assert sorted(handed[4]) == [parents[0], "merge.extra=1", parents[1]]
    told = (tmp_path / "run" / "optimization_results.yaml").read_text()
    assert "extra: 1" in told and "mean_score: 1.0" in told
    header, *rows = (tmp_path / "run" / "trials.csv").read_text().splitlines()
    place = header.split(",").index("extra")
    assert [row.split(",")[place] for row in rows] == ["0", "0", "0", "0", "1", "1"]


def test_extra_starts_that_cannot_be_are_refused():
    for settings, words in (
        ({}, "no key of the app gets which of them"),
        ({"handover": EXTRA, "protocol": "fixed"}, "hydra.sweeper.protocol=fixed"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            plan(extra_parents=1, **settings)
    with pytest.raises(ConfigurationError, match="extra_parents=-1"):
        plan(extra_parents=-1)


# -- repeats ----------------------------------------------------------------------------------------


def test_repeats_have_seeds_of_their_own_and_the_mean_decides(tmp_path):
    scores = {0: [0.9, 0.1, 0.2], 1: [0.5, None, 0.6], 2: [None, None, None]}

    def turns(lineage):
        trial = lineage[-1]
        value = scores[trial.suggestion.params["x"]][trial.repeat]
        if value is None:
            return Outcome(State.FAIL, "it crashed")
        return Outcome(State.COMPLETE, numbers={"score": value}, returned="float", seconds=1)

    listed = [{"x": x} for x in scores]
    made = plan_of(
        "task=a",
        seeds=3,
        seed=7,
        top_k=1,
        task_params={"a": listed},
        handover={"trainer.s": "seed"},
    )
    run = Simulated(tmp_path / "run", made, turns)
    assert len(run.history) == 9
    commands = [made.overrides(trial, None) for trial in run.history]
    assert [text for command in commands for text in command if "trainer.s" in text] == [
        f"trainer.s={7 + trial.repeat}" for trial in run.history
    ]
    assert run.history.beams == {1: (5,)}  # 0.55 beats 0.4, and 0.6 is its best run
    told = (tmp_path / "run" / "optimization_results.yaml").read_text()
    assert "mean_score: 0.55" in told and "trials:\n  - 3\n  - 4\n  - 5" in told


# -- raising jobs -----------------------------------------------------------------------------------


def open_at(records, stage):
    """The journal as it was when this stage had begun."""
    place = next(
        n for n, one in enumerate(records) if one["event"] == "start" and one["stage"] == stage
    )
    return records[: place + 2]


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize(
    "before, after",
    [
        ({"jobs": 4}, {"jobs": 7}),
        ({"jobs": None, "popsize": 2, "rounds": 1}, {"jobs": None, "popsize": 2, "rounds": 3}),
        ({"jobs": None, "popsize": 2}, {"jobs": None, "popsize": 3}),
    ],
)
def test_jobs_may_be_raised_for_stages_that_are_open(pipeline, before, after, tmp_path):
    begun = Simulated(tmp_path / "begun", plan(pipeline=pipeline, **before), completes, 2)
    records = open_at(begun.records(), 3)
    closed = {one["stage"] for one in records if one["event"] == "select"}
    again = Simulated(tmp_path / "again", plan(pipeline=pipeline, **after), completes, 2, records)
    whole = Simulated(tmp_path / "whole", plan(pipeline=pipeline, **after), completes, 2)
    counts = [
        {n: Counter(t.stage for t in run.counted())[n] for n in range(1, 5)}
        for run in (begun, again, whole)
    ]
    assert closed == ({1} if pipeline else {1, 2})  # then the second one is still open
    for stage in range(1, 5):
        assert counts[1][stage] == counts[0 if stage in closed else 2][stage]
    assert [again.history.beams[n] for n in closed] == [begun.history.beams[n] for n in closed]
    # Another session still goes by what it was raised to.
    with pytest.raises(ConfigurationError, match="may not be lowered"):
        Simulated(tmp_path / "again", plan(pipeline=pipeline, **before), completes, 2)
    Simulated(tmp_path / "again", plan(pipeline=pipeline, **after), completes, 2)


@pytest.mark.parametrize(
    "before, after, words",
    [
        ({"jobs": 4}, {"jobs": 3}, "jobs: was 4, is 3"),
        ({"jobs": None, "popsize": 4}, {"jobs": None, "popsize": 3}, "popsize: was 4, is 3"),
        ({"jobs": None, "popsize": 4, "rounds": 2}, {"jobs": None, "popsize": 8, "rounds": 1},
         "rounds: was 2, is 1"),
        ({"jobs": None, "space": "x=1,2,3"}, {"jobs": 4, "space": "x=1,2,3"}, "jobs: was None, is 4"),
    ],
)  # fmt: skip
def test_lowering_them_is_refused(before, after, words, tmp_path):
    Simulated(tmp_path / "run", plan(**before), completes)
    with pytest.raises(ConfigurationError) as raised:
        Simulated(tmp_path / "run", plan(**after), completes)
    assert words in str(raised.value) and "set another hydra.sweep.dir" in str(raised.value)


def test_rounds_that_would_move_the_stages_of_a_begun_task_are_refused(tmp_path):
    one, two = Stage(1, "a", ListedSearch([{}])), Stage(2, "b", ListedSearch([{}]))
    history = History()
    history.start(Trial(0, 1, "a", Suggestion(0, {}), None))
    raised = [one, replace(one, number=2), replace(two, number=3)]
    refuse_moved(tmp_path, history, raised)  # only the first task has begun
    history.start(Trial(1, 2, "b", Suggestion(0, {}), 0))
    refuse_moved(tmp_path, history, [one, two])
    with pytest.raises(ConfigurationError, match=r"task 'b' has begun \(trial 1\)"):
        refuse_moved(tmp_path, history, raised)


# -- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"metric": "loss", "objective": "mean"}, ["metric=loss", "objective='mean'", "give one"]),
        ({"objective": "score >"}, ["objective='score >'", "min(...)"]),
        ({"selection": "best"}, ["selection='best'", "top_k, pareto, diverse"]),
        ({"protocol": "beams"}, ["protocol='beams'", "first_k", "random_chains"]),
        ({"first_k": 0, "protocol": "first_k"}, ["first_k=0", "at least 1"]),
        ({"seeds": 3}, ["seeds=3", "would be the same", "handover.KEY=seed"]),
        ({"seeds": 3, "jobs": 5, "handover": {"s": "seed"}}, ["jobs=5", "2 survivors", "take 6"]),
        ({"protocol": "fixed", "parents": "init"}, ["protocol=fixed", "parents=init"]),
        ({"protocol": "fixed", "task_params": {"b": [{"x": 1}]}}, ["protocol=fixed", "task 'b'"]),
        ({"protocol": "random_chains", "search": {"factory": "autocl_sweeper.search.grid.GridSearch"},
          "space": "x=1,2"}, ["random_chains", "GridSearch", "auto or random"]),
        ({"budget": {"hours": 3}}, ["'hours'", "jobs, device_hours, wall_clock"]),
        ({"budget": {"jobs": 0}}, ["budget.jobs=0", "above 0"]),
        ({"budget": {"jobs": 1.5}}, ["budget.jobs=1.5", "whole number"]),
        ({"budget": {"device_hours": "two"}}, ["device_hours='two'", "number above 0"]),
        ({"budget": {"wall_clock": "2 days and a bit"}}, ["wall_clock='2 days", "2h30m"]),
        ({"budget": {"wall_clock": -5}}, ["wall_clock=-5", "above 0"]),
        ({"protocol": "fixed", "jobs": None}, ["never ends", "hydra.sweeper.jobs"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_any_job(settings, words):
    with pytest.raises(ConfigurationError) as raised:
        plan(**settings)
    for word in words:
        assert word in str(raised.value)


def test_pareto_without_a_sequence_is_refused():
    with pytest.raises(ConfigurationError, match="selection=pareto compares tasks"):
        plan_of("x=1,2", selection="pareto")


# -- real jobs --------------------------------------------------------------------------------------

OURS = ("hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2",
        "hydra.launcher.warm=true", "hydra/sweeper/search=random", "task=a,b,c")  # fmt: skip


def test_fixed_chains_of_real_jobs_keep_their_configuration(chain: Bench) -> None:
    chain.run(*OURS, "lr=interval(0,1)", "hydra.sweeper.protocol=fixed", "hydra.sweeper.jobs=3")
    starts = {event["trial"]: event for event in chain.events("start")}
    assert len(starts) == 9
    for event in starts.values():
        parent = starts.get(event["parent"])
        assert parent is None or parent["params"] == event["params"]
    # lr, lr - 0.6 lr, lr - 0.6 lr + 0.36 lr: the largest lr is the best chain.
    best = max(event["params"]["lr"] for event in starts.values())
    told = chain.results()
    assert [entry["params"]["lr"] for entry in told["chain"]] == [best] * 3
    assert told["best_score"] == pytest.approx(best * 0.76, abs=1e-5)


def test_real_repeats_are_ranked_by_their_mean(chain: Bench) -> None:
    arguments = [*OURS[:-1], "task=a,b", "lr=1,2", "hydra/sweeper/search=grid"]
    chain.run(*arguments, "hydra.sweeper.seeds=2", "+hydra.sweeper.handover.momentum=seed",
              "hydra.sweeper.top_k=1")  # fmt: skip
    told = [text for event in chain.events("start") for text in event["overrides"]]
    assert sorted(text for text in told if "momentum" in text) == sorted(
        ["momentum=0", "momentum=1"] * 4
    )
    cells = Counter(
        (event["stage"], json.dumps(event["params"]), event["parent"])
        for event in chain.events("start")
    )
    assert len(cells) == 4 and set(cells.values()) == {2}
    scores = [event["score"] for event in chain.events("finish")]
    assert mean(scores) == pytest.approx(mean([1, 1, 2, 2, 2 - 0.6, 2 - 0.6, 2 - 1.2, 2 - 1.2]))
    header = (chain.sweep / "trials.csv").read_text().splitlines()[0]
    assert "repeat" in header.split(",")


def test_an_objective_with_an_unknown_name_stops_the_sweep_after_its_first_trial(
    chain: Bench,
) -> None:
    output = chain.run(*OURS, "lr=1,2,3,4", "hydra.sweeper.jobs=4", "hydra.launcher.cpu_slots=1",
                       "hydra.sweeper.objective=accuracy", status=1)  # fmt: skip
    assert "has no number 'accuracy' (it has: score)" in output
    assert "hydra.sweeper.objective='accuracy'" in output
    assert len(chain.ledger("end")) == 1
