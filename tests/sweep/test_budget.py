"""Budgets end a sweep in good order and a larger one goes on; what would run can be asked first."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from support.bench import Bench, wait_until
from support.lineages import Simulated, completes, landscape
from support.plans import RANDOM, plan_of

from autocl_sweeper.budget import Budget, Spent, spent
from autocl_sweeper.display.dry_run import print_plan
from autocl_sweeper.errors import ChangedSweepError
from autocl_sweeper.journal import outcome_to_json
from autocl_sweeper.types import DeviceUse, Outcome, State

pytestmark = pytest.mark.usefixtures("no_fsync")
HOUR_S = 3600


def plan(budget=None, pipeline=False, **settings):
    given = {"jobs": 4, "search": RANDOM, "handover": {"parent": "parent"}, "init": False}
    made = plan_of("task=a,b,c", "x=interval(0, 1)", budget=budget or {}, **{**given, **settings})
    return replace(made, strategy=made.strategy.scheduled(pipeline, None))


def results(run):
    import yaml

    return yaml.safe_load((run.folder / "optimization_results.yaml").read_text())


@pytest.mark.parametrize("text, seconds", [
    (90, 90), (0.5, 0.5), ("90s", 90), ("2h30m", 9000), ("1.5h", 5400), ("1d 2h", 93600), ("5m", 300),
])  # fmt: skip
def test_a_duration_is_seconds_or_numbers_with_units(text, seconds):
    assert Budget.of({"wall_clock": text}).wall_clock_s == seconds


@pytest.mark.parametrize("jobs", range(1, 12))
def test_a_budget_of_jobs_ends_the_sweep_with_its_best_chain_and_a_larger_one_goes_on(
    jobs, tmp_path
):
    whole = Simulated(tmp_path / "whole", plan(), completes)
    run = Simulated(tmp_path / "run", plan({"jobs": jobs}), completes)
    assert run.sweep.stopped == f"{jobs} of {jobs} jobs (hydra.sweeper.budget.jobs)"
    assert run.trials() == whole.trials()[:jobs]
    assert not run.history.running()
    last = run.history.stage(run.history.open_stage) or run.history.stage(
        run.history.open_stage - 1
    )
    best = max(last, key=lambda trial: landscape(run.history.lineage(trial)))
    assert run.best() == [trial.suggestion.params for trial in run.history.lineage(best)]
    told = results(run)
    assert told["budget_used_up"] == run.sweep.stopped
    assert told["beams"][last[0].stage][0] == best.number
    assert [e["event"] for e in run.records()].count("end") == 0

    same = Simulated(tmp_path / "run", plan({"jobs": jobs}), completes)
    assert same.trials() == run.trials() and same.sweep.stopped
    more = Simulated(tmp_path / "run", plan({"jobs": 99}), completes)
    assert more.sweep.stopped is None and more.trials() == whole.trials()
    assert more.history.beams == whole.history.beams and more.best() == whole.best()
    assert "budget_used_up" not in results(more)


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9])
def test_nothing_starts_after_the_time_is_used_up_and_what_runs_finishes(pipeline, share, tmp_path):
    whole = Simulated(tmp_path / "whole", plan(pipeline=pipeline), completes, devices=2)
    bound_s = share * whole.executor.clock_s
    budget = {"wall_clock": bound_s}
    run = Simulated(tmp_path / "run", plan(budget, pipeline), completes, devices=2)
    begun = [span for span in whole.executor.busy if span.begin_s < bound_s]
    if len(begun) < len(whole.history):
        assert run.sweep.stopped and "budget.wall_clock" in run.sweep.stopped
    else:  # with its last job begun a sweep ends as if it had no budget
        assert share == 0.9 and run.sweep.stopped is None
    assert len(run.history) == len(begun)
    assert all(span.begin_s < bound_s for span in run.executor.busy)
    assert all(trial.state in (State.COMPLETE, State.PRUNED) for trial in run.history)


def test_device_hours_count_what_running_jobs_took_so_far(tmp_path):
    def turns(lineage):
        long = lineage[-1].suggestion.index == 0
        return replace(completes(lineage), seconds=(9 if long else 1) * HOUR_S)

    # On two devices: 9 hours, and beside them one after the other of 1 hour.
    run = Simulated(tmp_path / "run", plan({"device_hours": 4}), turns, devices=2)
    # After 1 h 2 are used, after 2 h 4 are.
    assert len(run.history) == 3
    assert run.sweep.stopped == "11 of 4 device-hours (hydra.sweeper.budget.device_hours)"
    again = Simulated(tmp_path / "run", plan({"device_hours": 11.5}), turns, devices=2)
    assert len(again.history) == 4  # the 11 hours of before count


@pytest.mark.parametrize("budget, attempts", [({"jobs": 2}, 2), ({"wall_clock": 1.5}, 1)])
def test_a_retry_is_no_further_job_but_takes_time(budget, attempts, tmp_path):
    tried = []

    def turns(lineage):
        tried.append(lineage[-1].number)
        if lineage[-1].number == 1 and tried.count(1) == 1:
            return Outcome(State.FAIL, "it crashed", seconds=1)
        return replace(completes(lineage), seconds=1)

    run = Simulated(tmp_path / "run", plan(budget, retries=2), turns)
    assert tried.count(1) == attempts and run.sweep.stopped
    more = Simulated(tmp_path / "run", plan(retries=2), turns)
    assert tried.count(1) == 2 and len(more.history) == 12


def test_earlier_sessions_count_from_their_first_event_to_their_last():
    def finish(seconds, devices, time):
        use = DeviceUse(tuple(map(str, range(devices)))) if devices else None
        outcome = Outcome(State.COMPLETE, seconds=seconds, device=use)
        return {"event": "finish", "trial": 0, **outcome_to_json(outcome), "time": time}

    records = [
        {"event": "sweep", "time": 100.0},
        {"event": "session", "time": 101.0},
        finish(20.0, 0, 150.0),
        {"event": "attempt_failed", "device_seconds": 8.0, "time": 160.0},
        {"event": "attempt_failed", "time": 161.0},  # a journal of an earlier version
        {"event": "session", "time": 900.0},
        finish(10.0, 4, 930.0),
    ]
    assert spent(records) == Spent(60 + 30, 20 + 8 + 40)
    assert spent([]) == Spent()


# -- dry run ----------------------------------------------------------------------------------------


def printed(plan, folder, edited=()):
    console = Console(file=io.StringIO(), width=200)
    print_plan(plan, folder, edited, console)
    return console.file.getvalue()


def test_a_dry_run_prints_stages_suggestions_jobs_and_no_estimate_before_a_trial(tmp_path):
    made = plan({"jobs": 9}, init=True)
    told = printed(made, tmp_path / "none")
    first = [made.stages[0].search.suggestion(place).params["x"] for place in range(3)]
    for place, value in enumerate(first):
        assert f"    {place}: x={value:.4g}  [fresh]" in told
    assert "stage 1  a: random, 4 jobs from the initial model" in told
    assert (
        "stage 2  b: random, 4 jobs from up to 2 parents (each suggestion with every one)" in told
    )
    assert f"composed: task=a x={first[0]}" in told
    assert "12 jobs in all\n" in told and "budget: jobs=9" in told
    assert "estimate: none, because" in told and "carry_from" in told
    assert not (tmp_path / "none").exists()


def test_a_dry_run_of_a_begun_sweep_says_where_it_stands_and_how_long_the_rest_takes(tmp_path):
    def turns(lineage):
        return replace(completes(lineage), seconds=60.0)

    run = Simulated(tmp_path / "run", plan({"jobs": 6}), turns, devices=2)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    told = printed(plan({"jobs": 9}), run.folder)
    assert f"done: trials {list(run.history.beams[1])} survived" in told
    assert "12 jobs in all, 6 of them begun in this folder" in told
    # 6 jobs of a minute are left.
    assert (
        "about 3:00 with 2 side by side and 0.1 device-hours, as the 6 finished trials in" in told
    )
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before

    relay = {"factory": "autocl_sweeper.search.relay.RelaySearch"}
    carried = printed(plan(carry_from=str(run.folder), search=relay), tmp_path / "new")
    assert "[carried from a, trial" in carried and "1 of 1 keys carried]" in carried
    assert "about 6:00 with 2 side by side and 0.2 device-hours" in carried
    with pytest.raises(ChangedSweepError, match=r"hydra\.sweeper\.seed: was 0, is 1"):
        printed(plan(seed=1), run.folder)
    with pytest.raises(ChangedSweepError, match="may not be lowered"):
        printed(plan(jobs=3), run.folder)


def test_a_search_that_learns_says_what_it_would_ask_first(tmp_path):
    learns = {"factory": "support.searches.doubling", "at_once": 2}
    told = printed(plan(search=learns), tmp_path)
    assert "    0: x=1  [the app's own configuration]\n    1: x=1  [the app's own" in told
    assert "for instance, before anything is known: 0: x=1" in told


# -- real jobs --------------------------------------------------------------------------------------

COMMAND = ("hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=1",
           "hydra.launcher.warm=true", "hydra.launcher.order=submitted", "task=a,b", "lr=range(1,9)",
           "hydra/sweeper/search=random", "hydra.sweeper.pipeline=false")  # fmt: skip
BUDGET = "+hydra.sweeper.budget.jobs"


def best_lrs(bench: Bench) -> list[int]:
    """Of the chains that ran: a score is the first lr minus 0.6 of the second."""
    starts = {event["trial"]: event for event in bench.events("start")}
    chains = [
        (starts[event["parent"]]["params"]["lr"], event["params"]["lr"])
        for event in starts.values()
        if event["stage"] == 2
    ]
    return [*max(chains, key=lambda chain: chain[0] - 0.6 * chain[1])]


def test_killed_under_a_budget_it_ends_within_it_and_a_larger_one_goes_on_with_more_jobs(
    chain: Bench,
) -> None:
    process = chain.start(*COMMAND, f"{BUDGET}=5", "hydra.sweeper.jobs=4", LASTS_S="0.2")
    wait_until(lambda: len(chain.finished()) >= 2, "two jobs finished")
    chain.kill(process)
    output = chain.run(*COMMAND, f"{BUDGET}=5", "hydra.sweeper.jobs=4")
    assert "The budget is used up: 5 of 5 jobs (hydra.sweeper.budget.jobs)" in output
    assert "Stage 2 of 2 is open; to go on, run the same command with a larger" in output
    assert len(chain.finished()) == 5
    told = chain.results()
    assert [entry["params"]["lr"] for entry in told["chain"]] == best_lrs(chain)
    assert told["beams"][2] == [4] and len(told["beams"][1]) == 2
    assert chain.nothing_is_left()

    output = chain.run(*COMMAND, f"{BUDGET}=99", "hydra.sweeper.jobs=6")
    assert "hydra.sweeper.jobs: was 4, is 6 (for the stages still open)" in output
    told = chain.results()
    assert [entry["params"]["lr"] for entry in told["chain"]] == best_lrs(chain)
    assert "budget_used_up" not in told
    starts = [event for event in chain.events("start") if event["attempt"] == 1]
    assert [sum(event["stage"] == stage for event in starts) for stage in (1, 2)] == [4, 6]
    different = {json.dumps([e["stage"], e["params"], e["parent"]]) for e in starts}
    assert len(different) == 10


def test_a_dry_run_starts_no_job_and_makes_no_folder(chain: Bench) -> None:
    output = chain.run(*COMMAND, "hydra.sweeper.jobs=6", "hydra.sweeper.dry_run=true")
    assert "stage 2  b: random, 6 jobs from up to 2 parents" in output
    assert "0: lr=1  [the app's own configuration]" in output
    assert "composed: task=b lr=1 init_from='<checkpoint>'" in output
    assert not chain.sweep.exists() and not chain.ledger()
    left = {path.name for path in chain.folder.iterdir()}
    assert left <= {"output-0", "leases"}
