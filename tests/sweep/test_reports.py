"""Scores that jobs report on their way: from the training code into the journal, each once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from support.bench import Bench, wait_until
from support.plans import plan_of, sweep_of

import autocl_sweeper
from autocl_sweeper.executor.batches import BatchExecutor
from autocl_sweeper.executor.reports import ReportFiles
from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.journal import NAME, fold, read
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.reporter import VARIABLE, report
from autocl_sweeper.types import Cause, Job, Outcome, Report, State

# -- in the job -------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "0.reports"
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def test_the_package_itself_reports() -> None:
    assert autocl_sweeper.report is report


def test_outside_a_sweep_a_report_does_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    report(0.5, 1)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone" / "0.reports"))  # the sweep ended before
    report(0.5, 1)
    assert not list(tmp_path.iterdir())


def test_a_report_is_one_line_of_json(written: Path) -> None:
    for score in (0.5, 1, Fraction(1, 4), math.nan, math.inf, -math.inf):
        report(score, 7)
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert [line["score"] for line in lines] == [0.5, 1.0, 0.25, None, None, None]
    assert {line["step"] for line in lines} == {7}


@pytest.mark.parametrize(
    "score, step, words",
    [
        ("0.5", 1, "score is a str, not a number"),
        (None, 1, "score is a NoneType, not a number"),
        (True, 1, "score is a bool, not a number"),
        (0.5, -1, "step=-1.*not a whole number from 0"),
        (0.5, 1.5, "step=1.5.*not a whole number from 0"),
        (0.5, True, "step=True.*not a whole number from 0"),
    ],
)
def test_a_report_that_says_nothing_is_refused(
    score: Any, step: Any, words: str, written: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        report(score, step)
    assert not written.exists()


def _report_many(first: int) -> None:
    for step in range(first, first + 500):
        report(step / 7, step)


def test_reports_of_several_processes_do_not_mix(written: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(_report_many, range(0, 2000, 500)))
    found = [json.loads(line) for line in written.read_text().splitlines()]
    assert sorted(one["step"] for one in found) == list(range(2000))
    assert all(one["score"] == one["step"] / 7 for one in found)


# -- in the controller ------------------------------------------------------------------------------


def write(files: JobFiles, number: int, text: str) -> None:
    files.folder.mkdir(parents=True, exist_ok=True)
    with open(files.reports(number), "a") as file:
        file.write(text)


def line(score: float | None, step: int) -> str:
    return json.dumps({"score": score, "step": step}) + "\n"


def test_each_report_is_read_once_and_whole(tmp_path: Path) -> None:
    clock = [0.0]
    files = JobFiles.of(tmp_path)
    reports = ReportFiles(files, lambda: clock[0])
    reports.begin(3)
    assert reports.new() == []
    write(files, 3, line(0.5, 1) + line(0.25, 2)[:9])
    assert reports.new() == []  # it has looked just now
    clock[0] = 1.0
    assert reports.new() == [Report(3, 1, 0.5)]
    write(files, 3, line(0.25, 2)[9:] + "no report\n[1]\n" + line(None, 3))
    reports.end(3)
    second, third = reports.new()
    assert second == Report(3, 2, 0.25)
    assert third.step == 3 and math.isnan(third.score)
    clock[0] = 9.0
    assert reports.new() == []
    files.forget(3)
    reports.begin(3)  # another attempt
    write(files, 3, line(0.75, 1))
    reports.end(3)
    assert reports.new() == [Report(3, 1, 0.75)]


def test_of_a_job_that_is_taken_over_the_known_reports_are_not_read_again(tmp_path: Path) -> None:
    files = JobFiles.of(tmp_path)
    write(files, 0, "".join(line(0.5, step) for step in range(5)))
    reports = ReportFiles(files)
    reports.begin(0, known=3)
    assert [one.step for one in reports.new()] == [3, 4]


def test_what_a_batch_reported_is_read_after_it(tmp_path: Path) -> None:
    files = JobFiles.of(tmp_path)

    class Launcher:
        def launch(self, overrides: Sequence[Sequence[str]], first: int) -> list[None]:
            for number in range(first, first + len(overrides)):
                write(files, number, line(number / 2, 1))
            return [None] * len(overrides)

    executor = BatchExecutor(Launcher(), files, 2)
    for number in (4, 5):
        executor.submit(Job(number, ()))
    assert len(executor.wait(None)) == 2
    assert executor.reports() == [Report(4, 1, 2.0), Report(5, 1, 2.5)]
    assert executor.reports() == []


class Reporting(SimulatedExecutor):
    """Each job reports its number twice; the first attempt of trial 1 fails."""

    def __init__(self) -> None:
        super().__init__(1, self.end)
        self.fails = [1]
        self.said: list[Report] = []

    def end(self, job: Job) -> Outcome:
        self.said += [Report(job.number, step, job.number / 2) for step in (1, 2)]
        if job.number in self.fails:
            self.fails.remove(job.number)
            self.said[-1] = Report(job.number, 2, math.nan)
            return Outcome(State.FAIL, "it diverged", seconds=1.0, cause=Cause.EXCEPTION)
        return Outcome(State.COMPLETE, numbers={"score": 1.0}, returned="float", seconds=1.0)

    def reports(self) -> list[Report]:
        said, self.said = self.said, []
        return said


def test_reports_stand_in_the_journal_before_the_end_of_their_attempt(tmp_path: Path) -> None:
    plan = plan_of("task=a", "lr=1,2", retries=1)
    history = sweep_of(tmp_path, plan, Reporting()).run()
    events = [
        (record["event"], record["trial"], record.get("step"), record.get("score"))
        for record in read(tmp_path)
        if "trial" in record and record["event"] != "start"
    ]
    assert events == [
        ("report", 0, 1, 0.0),
        ("report", 0, 2, 0.0),
        ("finish", 0, None, 1.0),
        ("report", 1, 1, 0.5),
        ("report", 1, 2, None),
        ("attempt_failed", 1, None, None),
        ("report", 1, 1, 0.5),
        ("report", 1, 2, 0.5),
        ("finish", 1, None, 1.0),
    ]
    attempts = [record["attempt"] for record in read(tmp_path) if record["event"] == "report"]
    assert attempts == [1, 1, 1, 1, 2, 2]
    for one in (history, fold(read(tmp_path)).history):
        assert one.reports(1) == [Report(1, 1, 0.5), Report(1, 2, 0.5)]  # of the last attempt


def test_reports_written_while_no_controller_lived_are_journaled_when_it_goes_on(
    tmp_path: Path,
) -> None:
    plan = plan_of("task=a", "lr=1,2")
    files = JobFiles.of(tmp_path)
    sweep_of(tmp_path, plan, Reporting()).run()
    records = read(tmp_path)
    first = next(place for place, record in enumerate(records) if record["event"] == "report")
    (tmp_path / NAME).write_text("".join(json.dumps(r) + "\n" for r in records[: first + 1]))
    write(files, 0, line(0.0, 1) + line(0.125, 2) + line(0.25, 3))
    files.write_outcome(0, Outcome(State.COMPLETE, numbers={"score": 1.0}, returned="float"))
    history = sweep_of(tmp_path, plan, Reporting()).run()
    assert history.reports(0) == [Report(0, 1, 0.0), Report(0, 2, 0.125), Report(0, 3, 0.25)]
    steps = [
        record["step"] for record in read(tmp_path) if record.get("trial") == 0 and "step" in record
    ]
    assert steps == [1, 2, 3]


# -- with real jobs ---------------------------------------------------------------------------------

OURS = (
    "hydra/sweeper=autocl",
    "hydra/launcher=gpu",
    "hydra.launcher.cpu_slots=2",
    "task=a",
    "lr=1,2",
)
WARM = (*OURS, "hydra.launcher.warm=true")


def steps(chain: Bench) -> list[tuple[int, int, int, float]]:
    events = chain.events("report")
    return [(e["trial"], e["attempt"], e["step"], e["score"]) for e in events]


def test_a_report_is_in_the_journal_while_its_job_runs(chain: Bench) -> None:
    process = chain.start_held(2, *OURS, REPORTS="2")
    wait_until(lambda: len(steps(chain)) == 4, "both jobs reported twice")
    assert not chain.finished()
    chain.release(process)
    assert sorted(steps(chain)) == [(n, 1, step, n + 1) for n in (0, 1) for step in range(4)]
    assert chain.nothing_is_left()


def test_an_attempt_that_a_kill_cut_short_keeps_its_reports_and_the_next_starts_afresh(
    chain: Bench,
) -> None:
    process = chain.start_held(2, *WARM, REPORTS="1")
    wait_until(lambda: len(steps(chain)) == 2, "both jobs have reported")
    chain.kill(process)
    wait_until(chain.nothing_is_left, "the jobs are gone too")
    chain.hold.unlink()
    chain.run(*WARM, REPORTS="1")
    expected = [(n, 1, 0, n + 1) for n in (0, 1)] + [
        (n, 2, s, n + 1) for n in (0, 1) for s in (0, 1)
    ]
    assert sorted(steps(chain)) == sorted(expected)
    history = fold(chain.events()).history
    assert [one.step for one in history.reports(0)] == [0, 1]
