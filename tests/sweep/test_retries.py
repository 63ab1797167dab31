"""Jobs that failed run again: when, how often, and while other trials run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.bench import Bench
from support.plans import plan_of, sweep_of

from autocl_sweeper.errors import ConfigurationError, NoSurvivorError, TooManyFailuresError
from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.journal import NAME, fold, read
from autocl_sweeper.retries import Retries, delay_s
from autocl_sweeper.sweep.loop import Sweep
from autocl_sweeper.types import Cause, Job, Outcome, State


def test_retries_come_soon_at_first_then_ever_later_up_to_a_limit() -> None:
    assert [delay_s(5.0, retry) for retry in (1, 2, 3, 4)] == [5.0, 10.0, 20.0, 40.0]
    assert delay_s(5.0, 10_000) == 600.0
    assert delay_s(3600.0, 4) == 3600.0  # asked for
    assert delay_s(0.0, 3) == 0.0


def test_what_waits_comes_out_when_it_is_due_and_in_that_order() -> None:
    clock = [0.0]
    waiting: Retries[str] = Retries(0, 0.0, lambda: clock[0])
    assert (waiting.due(), waiting.wait_s()) == (False, None)
    waiting.add("late", 10.0)
    waiting.add("soon", 2.0)
    assert (bool(waiting), waiting.due(), waiting.wait_s()) == (True, False, 2.0)
    waiting.add("first")
    waiting.add("second")
    assert (waiting.due(), waiting.wait_s()) == (True, None)
    assert [waiting.pop(), waiting.pop()] == ["first", "second"]
    clock[0] = 2.0
    assert (waiting.due(), waiting.pop(), waiting.wait_s()) == (True, "soon", 8.0)
    clock[0] = 11.0
    assert (waiting.due(), waiting.pop(), bool(waiting)) == (True, "late", False)


@pytest.mark.parametrize("cause", Cause)
def test_a_failure_is_worth_a_retry_unless_it_is_bound_to_come_again(cause: Cause) -> None:
    full = {Cause.DEVICE_MEMORY, Cause.EVALUATION_MEMORY}
    unfit = {Cause.INFEASIBLE, Cause.INFEASIBLE_BUDGET}
    hopeless = {Cause.CONFIGURATION, Cause.CANCELLED, *full, *unfit}
    retries: Retries[int] = Retries(2, 5.0)
    failed = Outcome(State.FAIL, cause=cause)
    ends = [retries.after(7, failed) for _ in range(3)]
    assert ends == ([None] * 3 if cause in hopeless else [5.0, 10.0, None])
    assert retries.after(7, replace(failed, lost=True)) == 0.0  # and that is no retry
    assert retries.alone == ({7} if cause in full else set())
    assert retries.after(8, Outcome(State.COMPLETE, cause=cause)) is None


@pytest.mark.parametrize("cause", [Cause.EXIT, Cause.INFEASIBLE, Cause.INFEASIBLE_BUDGET])
def test_a_sweep_continued_with_more_retries_runs_no_infeasible_trial_again(
    tmp_path: Path, cause: Cause
) -> None:
    ran: list[int] = []

    def end(job: Job) -> Outcome:
        ran.append(job.number)
        if ran.count(0) == 1 and job.number == 0:
            return Outcome(State.FAIL, "too small", seconds=1.0, cause=cause)
        return Outcome(State.COMPLETE, numbers={"score": 1.0}, returned="float", seconds=1.0)

    def run(**settings: int) -> None:
        plan = plan_of("task=a", "lr=1,2", **settings)
        executor = SimulatedExecutor(1, end)
        sweep_of(tmp_path, plan, executor).run()

    with pytest.raises(TooManyFailuresError):
        run(max_failures=0)
    run(max_failures=1, retries=2)
    assert ran.count(0) == (2 if cause is Cause.EXIT else 1) and ran.count(1) == 1


@pytest.mark.parametrize(
    ("cause", "advice"),
    [(Cause.EXIT, "hydra.sweeper.retries=1 to run them again"),
     (Cause.INFEASIBLE_BUDGET, "they never run again: give a larger budget")],
)  # fmt: skip
def test_a_task_without_a_survivor_says_what_would_help(
    tmp_path: Path, cause: Cause, advice: str
) -> None:
    executor = SimulatedExecutor(1, lambda job: Outcome(State.FAIL, "no", seconds=1.0, cause=cause))
    plan = plan_of("task=a,b", "lr=1,2")
    with pytest.raises(NoSurvivorError, match=advice):
        sweep_of(tmp_path, plan, executor).run()


class VirtualTime(SimulatedExecutor):
    """Both clocks of a sweep too; jobs fail as often as told. Waiting for nothing takes its time."""

    def __init__(self, fails: dict[int, int], now_s: float = 0.0) -> None:
        super().__init__(1, self.end)
        self.fails = fails
        self.clock_s = now_s
        self.starts: list[tuple[int, float]] = []

    def end(self, job: Job) -> Outcome:
        self.starts.append((job.number, self.clock_s))
        self.fails[job.number] = self.fails.get(job.number, 0) - 1
        if self.fails[job.number] >= 0:
            return Outcome(State.FAIL, "exit status 3", seconds=1.0, cause=Cause.EXIT)
        return Outcome(State.COMPLETE, numbers={"score": 1.0}, returned="float", seconds=10.0)

    def wait(self, timeout_s: float | None) -> list[tuple[Job, Outcome]]:
        if not self._running:
            self.clock_s += timeout_s or 0.0
        return super().wait(timeout_s)

    def time(self) -> float:
        return self.clock_s

    def monotonic(self) -> float:
        return self.clock_s


def run_in_virtual_time(folder: Path, executor: VirtualTime) -> list[tuple[int, float]]:
    """A sweep of two trials on one device: who started when."""
    plan = plan_of("task=a", "lr=1,2", retries=3, retry_delay_s=100.0)
    sweep = sweep_of(folder, plan, executor, clock=executor)
    assert [trial.state for trial in sweep.run()] == [State.COMPLETE] * 2
    return executor.starts


def test_while_a_retry_waits_for_its_time_other_trials_run(tmp_path: Path) -> None:
    # By hand: 0 fails at 1, and 100 s later again, at 102; then 200 s go by.
    starts = run_in_virtual_time(tmp_path, VirtualTime({0: 2}))
    assert starts == [(0, 0.0), (1, 1.0), (0, 101.0), (0, 302.0)]


@pytest.mark.parametrize(
    "resumed_at, runs_at",
    [(1_050.0, 1_200.0), (1_199.0, 1_200.0), (40_000.0, 40_000.0), (500.0, 700.0)],
    ids=["early", "just before", "long after", "by a clock that is behind"],
)
def test_a_retry_that_waited_when_its_controller_died_waits_out_the_rest(
    tmp_path: Path, resumed_at: float, runs_at: float
) -> None:
    run_in_virtual_time(tmp_path / "whole", VirtualTime({0: 2}))
    records = read(tmp_path / "whole")
    second = [place for place, e in enumerate(records) if e["event"] == "attempt_failed"][1]
    cut = [*records[:second], {**records[second], "time": 1_000.0}]
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / NAME).write_text("".join(json.dumps(record) + "\n" for record in cut))
    assert run_in_virtual_time(folder, VirtualTime({}, resumed_at)) == [(0, runs_at)]


def test_a_job_that_no_longer_composes_stops_the_sweep_and_runs_again_when_mended(
    tmp_path: Path,
) -> None:
    mended = False

    def end(job: Job) -> Outcome:
        if mended or job.number == 0:
            return Outcome(State.COMPLETE, numbers={"score": 1.0}, returned="float", seconds=1.0)
        why = "Could not find 'model/gone'"
        return Outcome(State.FAIL, why, cause=Cause.CONFIGURATION, log_tail=("the last line",))

    def swept() -> Sweep:
        plan = plan_of("task=a", "lr=1,2,3", retries=3)
        executor = SimulatedExecutor(1, end)
        return sweep_of(tmp_path, plan, executor)

    with pytest.raises(ConfigurationError, match=r"(?s)Trial 1 .*not be composed: .*last line"):
        swept().run()
    state = fold(read(tmp_path))
    assert [trial.state for trial in state.history] == [State.COMPLETE, State.RUNNING]
    assert not any(event["event"] == "attempt_failed" for event in read(tmp_path))
    mended = True
    assert [trial.state for trial in swept().run()] == [State.COMPLETE] * 3


def test_a_trial_between_two_attempts_is_known_as_such_after_a_kill() -> None:
    start = {
        "event": "start", "trial": 0, "stage": 1, "task": "a", "suggestion": 0, "params": {},
        "parent": None, "folder": "0", "attempt": 1, "overrides": [],
    }  # fmt: skip
    failed = {"event": "attempt_failed", "trial": 0, "attempt": 1, "reason": "", "lost": True}
    memory = {**failed, "cause": "device_memory"}
    assert (fold([start]).over, fold([start]).alone) == (set(), set())
    assert (fold([start, failed]).over, fold([start, failed]).alone) == ({0}, set())
    assert (fold([start, memory]).over, fold([start, memory]).alone) == ({0}, {0})
    again = fold([start, memory, {**start, "attempt": 2}])
    assert (again.over, again.alone) == (set(), {0})


def test_alone_the_launcher_retries_crashes_as_often_as_asked(
    benches: Callable[..., Bench],
) -> None:
    bench = benches("faults")
    output = bench.run(
        "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2", "fault=fine,sigkill,no_device_memory",
        "task=a", "hydra.launcher.retries=2", "hydra.launcher.retry_delay_s=0.1", status=1,
    )  # fmt: skip
    assert output.count("#1 runs again in 0.1 s: killed by SIGKILL") == 1
    assert output.count("#1 runs again in 0.2 s: killed by SIGKILL") == 1
    assert "#0 runs again" not in output and "#2 runs again" not in output
    assert len(list((bench.sweep / "1").glob("job.log*"))) == 3
    assert bench.nothing_is_left()
