"""Sweeps that stop trials early: in virtual time against tables on paper, and with real jobs."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from support.bench import Bench, alive, wait_until
from support.journals import written_anew
from support.plans import plan_of, sweep_of

from autocl_sweeper.display.summary import print_summary
from autocl_sweeper.errors import JobContractError, NoSurvivorError
from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.journal import fold, read
from autocl_sweeper.types import Cause, Outcome, State, is_stopped

pytestmark = pytest.mark.usefixtures("no_fsync")
ASHA = {"rule": "asha", "max_steps": 900}
ONE_SECOND = [(float(n), 100 * n) for n in range(1, 10)]  # a report every second, 900 steps in 9 s


class Virtual:
    """A sweep of one task or more whose trials have the scores of a list, from their first report on."""

    def __init__(self, folder, scores, records=(), devices=1, fails=(), nan=(), grace_s=0.0,
                 reports=ONE_SECOND, finals=None, tasks="a", **settings):  # fmt: skip
        self.folder = folder
        self.scores, self.fails, self.nan = scores, dict(fails), nan
        self.reports, self.finals = reports, finals or scores
        folder.mkdir(exist_ok=True)
        if records:
            written_anew(folder, records)
        given = {
            "task_params": {task: [{"x": n} for n in range(len(scores))] for task in tasks},
            "handover": {"parent": "parent"},
            "top_k": 1,
            "prune": ASHA,
        }
        self.plan = plan_of(f"task={','.join(tasks)}", **{**given, **settings})
        self.executor = SimulatedExecutor(devices, self.end, grace_s, curve=self.curve)
        self.sweep = sweep_of(folder, self.plan, self.executor)
        self.history = self.sweep.history

    def run(self):
        self.sweep.run()
        return self

    @staticmethod
    def x(job):
        return int(next(t for t in job.overrides if t.startswith("x=")).partition("=")[2])

    def end(self, job):
        after_s = self.fails.get(self.x(job))
        if after_s is not None:
            return Outcome(State.FAIL, "it crashed", seconds=after_s, cause=Cause.EXCEPTION)
        numbers = {"score": self.finals[self.x(job)]}
        return Outcome(State.COMPLETE, numbers=numbers, returned="float", seconds=9.5)

    def curve(self, job):
        score = math.nan if self.x(job) in self.nan else self.scores[self.x(job)]
        return [(after_s, step, score) for after_s, step in self.reports]

    def states(self):
        return [(t.suggestion.index, t.state.value, t.score) for t in self.history]

    def table(self):
        return list(csv.DictReader((self.folder / "trials.csv").read_text().splitlines()))


def test_a_trial_that_ranks_low_at_a_rung_ends_there_and_its_device_is_free(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    # One device, so one after the other. At the first rung: 0.9 is rank 1 of 1; 0.5 is 2 of 2 and
    # one goes on; 0.95 is 1 of 3; 0.1 is 4 of 4.
    run = Virtual(tmp_path / "sweep", [0.9, 0.5, 0.95, 0.1]).run()
    assert run.states() == [
        (0, "COMPLETE", 0.9), (1, "PRUNED", 0.5), (2, "COMPLETE", 0.95), (3, "PRUNED", 0.1),
    ]  # fmt: skip
    spans = [(span.begin_s, span.end_s) for span in run.executor.busy]
    assert spans == [(0, 9.5), (9.5, 10.5), (10.5, 20), (20, 21)]
    assert run.history.beams == {1: (2,)} and not run.history.given_up
    stopped = run.history[1].outcome
    assert (stopped.cause, stopped.seconds) == (Cause.EARLY_STOPPED, 1.0)
    assert stopped.reason == "rank 2 of 2 at the rung of 100 steps, where 1 go on"
    assert run.history.reports(1)[-1].step == 100
    assert "1_a/1 stopped early at step 100, score=0.5: rank 2 of 2" in caplog.text

    told = yaml.safe_load((run.folder / "optimization_results.yaml").read_text())
    assert told["best_score"] == 0.95 and told["given_up"]["trials"] == 0
    # 900 + 100 + 900 + 100 steps done, 800 + 800 not; 9.5 s is the mean of the completed trials.
    assert told["stopped_early"] == {
        "trials": 2, "steps_saved": 1600, "steps_in_all": 3600, "seconds_saved": 17.0,
    }  # fmt: skip
    rows = [(row["state"], row["cause"], row["score"], row["step"]) for row in run.table()]
    assert rows == [
        ("COMPLETE", "", "0.9", "900"), ("PRUNED", "early_stopped", "0.5", "100"),
        ("COMPLETE", "", "0.95", "900"), ("PRUNED", "early_stopped", "0.1", "100"),
    ]  # fmt: skip
    lines = [json.loads(line) for line in (run.folder / "autoCL_result.txt").read_text().splitlines()
             if line.startswith("{")]  # fmt: skip
    assert [(one["trial"], one["status"], one["score"]) for one in lines[:-1]][1] == (
        1, "PRUNED", 0.5,
    )  # fmt: skip
    text = io.StringIO()
    print_summary(run.plan, run.history, run.folder, Console(file=text, width=200))
    line = (
        "Stopped early: 2 of 4 trials; about 1600 of 3600 steps (44%) and 17 s of jobs were saved"
    )
    assert line in text.getvalue() and "Given up" not in text.getvalue()


def test_a_stop_stands_in_the_line_of_the_report_that_brought_it(tmp_path):
    run = Virtual(tmp_path / "sweep", [0.9, 0.5], grace_s=0.5).run()
    events = [
        (one["event"], one.get("step"), "stopped" in one)
        for one in read(run.folder)
        if one.get("trial") == 1
    ]
    # Its job goes on for half a second, and what it might report then is no part of anything.
    assert events == [("start", None, False), ("report", 100, True), ("finish", None, False)]
    folded = fold(read(run.folder)).history
    assert folded[1] == run.history[1] and list(folded.stopped) == [1]
    assert not folded.ending and not folded.running()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_sweep_goes_on_from_every_line_of_its_journal_and_judges_no_report_twice(
    devices, tmp_path
):
    scores = [0.5, 0.9, 0.4, 0.95, 0.6]
    whole = Virtual(tmp_path / "whole", scores, devices=devices, grace_s=0.5).run()
    assert [n for n, trial in enumerate(whole.history) if is_stopped(trial)] == [2, 4]
    records = read(whole.folder)
    for length in range(1, len(records)):
        before = fold(records[:length]).history
        again = Virtual(tmp_path / str(length), scores, records[:length], devices, grace_s=0.5)
        again.run()
        for number in before.stopped:  # what was decided stays decided
            assert is_stopped(again.history[number]), length
            assert again.history[number].score == whole.history[number].score
        for trial in before:
            if trial.state is State.COMPLETE:
                assert again.history[trial.number] == trial
        assert again.history.beams == whole.history.beams == {1: (3,)}, length
        assert not again.history.ending and not again.history.running()
        if devices == 1:
            assert again.states() == whole.states(), length


def test_stopped_trials_are_results_of_the_stage_for_its_search_and_jobs_for_its_limit(tmp_path):
    search = {"factory": "support.searches.doubling", "pairing": "one", "at_once": 1}
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    run = Virtual(tmp_path / "sweep", scores, task_params={}, search=search, jobs=4)
    run.x = lambda job: Virtual.x(job).bit_length() - 1  # x is 1, 2, 4, 8
    run.run()
    assert [trial.state.value for trial in run.history] == ["COMPLETE"] + ["PRUNED"] * 3
    # `Doubling` doubles the best trial so far: that is always the first one, and stopped ones count.
    assert [trial.suggestion.params["x"] for trial in run.history] == [1, 2, 2, 2]


@pytest.mark.parametrize("pipeline", [True, False])
def test_only_complete_trials_are_parents_whatever_was_stopped(pipeline, tmp_path):
    stopped = 0
    for seed in range(12):
        dice = random.Random(seed)
        scores = [dice.randrange(10) / 10 for _ in range(6)]
        run = Virtual(
            tmp_path / str(seed), scores, devices=dice.randint(1, 4), tasks="abc", top_k=2,
            pipeline=pipeline, grace_s=dice.choice([0.0, 0.7]),
            fails={dice.randrange(6): dice.choice([0.5, 5.0])}, retries=dice.randint(0, 1),
        ).run()  # fmt: skip
        history = run.history
        for trial in history:
            parent = None if trial.parent is None else history[trial.parent]
            assert parent is None or parent.state is not State.RUNNING
            if trial.number not in history.given_up and parent is not None:
                assert (
                    parent.state is State.COMPLETE
                    and parent.number in history.beams[trial.stage - 1]
                )
            assert not (is_stopped(trial) and trial.number in history.given_up)
            assert not is_stopped(trial) or trial.attempt == 1  # a stop is no failure
        assert all(
            history[number].state is State.COMPLETE
            for beam in history.beams.values()
            for number in beam
        )
        assert len(history.beams) == 3 and not history.ending
        stopped += sum(is_stopped(trial) for trial in history)
    assert stopped > 12


def test_a_stage_with_stopped_trials_alone_runs_the_best_of_them_to_its_end(tmp_path):
    # Two devices: 0.9 and 0.5 reach the rung together, 0.5 is stopped; so is 0.7, which takes its
    # place. Then 0.9 crashes. 0.5 and 0.7 came equally far, 0.7 has the better score.
    run = Virtual(tmp_path / "sweep", [0.9, 0.5, 0.7], devices=2, fails={0: 4.0}).run()
    assert run.states() == [(0, "FAIL", None), (1, "PRUNED", 0.5), (2, "COMPLETE", 0.7)]
    assert run.history.beams == {1: (2,)} and run.history[2].attempt == 2
    starts = [(r["trial"], r["attempt"]) for r in read(run.folder) if r["event"] == "start"]
    assert starts == [(0, 1), (1, 1), (2, 1), (2, 2)]
    assert yaml.safe_load((run.folder / "optimization_results.yaml").read_text())[
        "stopped_early"]["trials"] == 1  # fmt: skip
    records = read(run.folder)
    for length in range(1, len(records)):
        again = Virtual(
            tmp_path / str(length), [0.9, 0.5, 0.7], records[:length], 2, {0: 4.0}
        ).run()
        (best,) = again.history.beams[1]
        assert again.history[best].state is State.COMPLETE, length


def test_of_stopped_trials_the_one_that_came_furthest_runs_again(tmp_path):
    # 0.9 and 0.6 pass the first rung as the first two of k=2; at the second 0.6 and 0.5 ... are
    # judged among those that came there. The best three crash before their ends.
    run = Virtual(
        tmp_path / "sweep",
        [0.9, 0.8, 0.3, 0.85],
        devices=4,
        top_k=2,
        fails={0: 5.0, 1: 5.0, 3: 5.0},
    ).run()
    # At 100: ranks in order of number: 0.9 1/1, 0.8 2/2, 0.3 3/3 > 2, 0.85 2/4: goes on.
    # At 300: 0.9 1/1, 0.8 2/2, 0.85 2/3. So 0.3 alone is stopped, and runs again.
    assert [state for _, state, _ in run.states()] == ["FAIL", "FAIL", "COMPLETE", "FAIL"]
    run = Virtual(
        tmp_path / "later", [0.9, 0.8, 0.7, 0.95], devices=2, top_k=1, fails={0: 5.0, 3: 5.0},
        prune={**ASHA, "rungs": [0.5]}, reports=[(1.0, 100), (2.0, 450)],
    ).run()  # fmt: skip
    assert run.history.beams == {1: (1,)}


def test_where_no_trial_is_left_that_could_run_again_the_sweep_stops(tmp_path):
    run = Virtual(tmp_path / "sweep", [0.9, 0.5], devices=2, fails={0: 4.0, 1: 4.0})
    with pytest.raises(NoSurvivorError):
        run.run()
    assert [t.state for t in run.history] == [State.FAIL, State.FAIL]
    assert run.history[1].attempt == 2


def test_a_report_of_no_use_is_complained_of_once_and_the_trial_goes_on(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    reports = [(1.0, 100), (2.0, 100), (3.0, 50), (4.0, 300), (5.0, 900)]
    run = Virtual(tmp_path / "back", [0.9], reports=reports).run()
    assert [one.step for one in run.history.reports(0)] == [100, 300, 900]
    assert run.history[0].state is State.COMPLETE and run.history.reported(0) == 5
    (record,) = caplog.records
    assert record.message == (
        "trial 0 (task 'a') reported step 100 after step 100: a report whose step is not larger is"
        " dropped"
    )
    caplog.clear()
    run = Virtual(tmp_path / "nan", [0.9, 0.8], nan=[0, 1]).run()
    assert [t.state for t in run.history] == [State.COMPLETE, State.PRUNED]
    assert run.history[1].score is None  # not finite, and never a score
    assert [record.message for record in caplog.records] == [
        f"trial {n} (task 'a') reported a score that is not finite at step 100: it ranks last there"
        for n in (0, 1)
    ]
    caplog.clear()
    Virtual(tmp_path / "both", [0.9], nan=[0], reports=[(1.0, 100), (2.0, 50), (3.0, 900)]).run()
    assert ["not finite" in record.message for record in caplog.records] == [True, False]


@pytest.mark.parametrize("reports, words", [
    (ONE_SECOND, r"reported up to step 900 only, but.*has a rung at 3000 steps.*max_steps"),
    ([], r"is complete and reported no score.*autocl_sweeper.report\(score, step\)"),
])  # fmt: skip
def test_a_rung_beyond_the_reported_steps_stops_the_sweep_with_the_first_completed_trial(
    reports, words, tmp_path
):
    far = {"rule": "asha", "max_steps": 9000}
    run = Virtual(tmp_path / "sweep", [0.9, 0.5, 0.7], prune=far, reports=reports)
    with pytest.raises(JobContractError, match=r"(?s)" + words):
        run.run()
    assert [trial.state for trial in run.history] == [State.COMPLETE]
    again = Virtual(run.folder, [0.9, 0.5, 0.7], prune=far, reports=reports)
    with pytest.raises(JobContractError):  # at once, without another job
        again.run()
    assert len(again.history) == 1
    mended = Virtual(run.folder, [0.9, 0.5, 0.7], prune=ASHA if reports else None, reports=reports)
    assert len(mended.run().history) == 3


def test_a_rung_that_other_trials_reach_is_not_beyond(tmp_path):
    """The first to complete may be the shortest of a space with trainings of several lengths."""
    run = Virtual(tmp_path / "sweep", [0.9, 0.5], devices=2)
    run.curve = lambda job: [(1.0, 50, 0.1)] if run.x(job) == 0 else [(2.0, 400, 0.9)]
    run.end = lambda job: replace(Virtual.end(run, job), seconds=3.0 + run.x(job))
    run.executor._run, run.executor._curve = run.end, run.curve
    run.run()
    assert [t.state for t in run.history] == [State.COMPLETE] * 2


def test_early_stopping_goes_off_for_a_stage_where_reports_say_nothing_and_says_so(
    tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    # Eight complete (a warm-up keeps the rungs from stopping them), then two with low reports.
    rising = [n / 10 for n in range(8)]
    scores = [*rising, 0.01, 0.02]
    finals = [*reversed(rising), 0.5, 0.5]
    run = Virtual(tmp_path / "sweep", scores, finals=finals, top_k=1)
    run.run()
    # Rising scores: each of the first eight ranks 1 of n at its rung and completes.
    assert all(t.state is State.COMPLETE for t in run.history)
    assert "early stopping is off for task 'a': the scores at 100 steps say little" in caplog.text
    agreeing = Virtual(tmp_path / "agree", scores, finals=[*rising, 0.5, 0.5]).run()
    assert [t.state.value for t in agreeing.history][8:] == ["PRUNED", "PRUNED"]


def test_the_median_rule_stops_a_trial_in_a_sweep(tmp_path):
    run = Virtual(tmp_path / "sweep", [0.5, 0.6, 0.7, 0.55, 0.65], prune="median").run()
    # The median of 0.5, 0.6 and 0.7 is 0.6: 0.55 falls at a ninth of the 900 steps of trial 0.
    assert [t.state.value for t in run.history] == [*["COMPLETE"] * 3, "PRUNED", "COMPLETE"]
    assert run.history.reports(3)[-1].step == 100


# -- with real jobs ---------------------------------------------------------------------------------

OURS = (
    "hydra/sweeper=autocl",
    "hydra/launcher=gpu",
    "hydra.launcher.cpu_slots=2",
    "hydra.launcher.warm=true",
    "hydra.launcher.order=submitted",
    "hydra.sweeper.top_k=1",
    "task=a",
)


@pytest.fixture
def curve(benches) -> Bench:
    return benches("curve")


def test_real_jobs_end_when_they_are_stopped_and_others_take_their_devices(curve: Bench) -> None:
    """lr=9 holds one slot to the end; on the other, each that reaches step 1 is stopped there."""
    process = curve.start_held(
        4, *OURS, "hydra/sweeper/prune=asha", "hydra.sweeper.prune.max_steps=9", "lr=9,1,2,3",
        "pace_s=0.05", HOLDS="[9, 1, 2, 3]", FIRST="9",
    )  # fmt: skip
    wait_until(lambda: len(curve.finished()) == 3, "the low ones were stopped")
    output = curve.release(process)
    finished = curve.finished()
    states = [(finished[n]["state"], finished[n]["cause"]) for n in range(4)]
    assert states == [("COMPLETE", ""), *[("PRUNED", "early_stopped")] * 3]
    steps = [e["trial"] for e in curve.ledger("step")]
    assert steps.count(0) == 9 and all(1 <= steps.count(n) < 9 for n in (1, 2, 3))
    assert [e["trial"] for e in curve.ledger("end")] == [0]
    assert (curve.sweep / "1_a/0/checkpoint/model").exists()
    assert not list(curve.sweep.glob("1_a/[123]/checkpoint"))
    assert "Stopped early: 3 of 4 trials; about 24 of 36 steps (67%)" in output
    assert "1_a/1 stopped early at step 1, score=1: rank 2 of 2" in output
    assert curve.results()["stopped_early"]["trials"] == 3
    assert curve.nothing_is_left()


def test_killed_between_the_decision_and_the_end_of_the_job_the_job_ends_on_resume(
    curve: Bench,
) -> None:
    command = (
        *OURS, "hydra.sweeper.prune={rule:asha,max_steps:9}", "lr=9,1", "pace_s=0.2",
        "hydra.launcher.on_controller_death=finish", "hydra.launcher.grace_s=120",
    )  # fmt: skip
    process = curve.start_held(2, *command, HOLDS="[9, 1]", STUBBORN="1", PACE_S='{"9": 0}')
    stopped = wait_until(
        lambda: [e for e in curve.events("report") if "stopped" in e], "a trial was stopped"
    )
    pid = next(e["pid"] for e in curve.ledger("start") if e["trial"] == 1)
    assert [one["trial"] for one in stopped] == [1] and alive(pid)
    curve.kill(process)
    assert alive(pid) and 1 not in curve.finished()  # it ignores SIGTERM
    curve.hold.unlink()
    output = curve.run(*command)
    finished = curve.finished()
    assert (finished[1]["state"], finished[1]["cause"]) == ("PRUNED", "early_stopped")
    assert finished[1]["score"] == 1.0 and finished[0]["state"] == "COMPLETE"
    assert [e["attempt"] for e in curve.events("start") if e["trial"] == 1] == [1]
    assert "Stopped early: 1 of 2 trials" in output
    assert not alive(pid)
    wait_until(curve.nothing_is_left, "the fork server of the dead controller is gone too")


@pytest.mark.parametrize("arguments, words", [
    (["hydra.sweeper.prune=ashaa", "task=a"], "hydra.sweeper.prune='ashaa' is not a rule"),
    (["hydra/sweeper/prune=asha", "hydra.sweeper.prune.max_steps=0", "task=a"],
     "hydra.sweeper.prune.max_steps=0, but it is a whole number from 1 on"),
    (["hydra.sweeper.prune=asha", "hydra/launcher=basic", "task=a"],
     "ends jobs early, which BasicLauncher cannot do"),
    (["hydra.sweeper.prune=asha"], "this sweep ranks none: it has no sequence"),
])  # fmt: skip
def test_what_cannot_stop_trials_is_refused_before_any_job(
    arguments: list[str], words: str, curve: Bench
) -> None:
    given = ["hydra/sweeper=autocl", "hydra/launcher=gpu", "lr=1,2"]
    kept = [g for g in given if g.partition("=")[0] not in {a.partition("=")[0] for a in arguments}]
    output = curve.run(*kept, *arguments, status=1)
    assert words in output and "Traceback" not in output
    assert curve.ledger() == [] and not Path(curve.sweep, "1_a").exists()
