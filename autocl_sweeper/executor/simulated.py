"""An executor whose jobs take no time: its clock jumps to the next end. For tests and benchmarks."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autocl_sweeper.types import Cause, Job, Outcome, Report, State


@dataclass(frozen=True)
class Interval:
    """A device was busy with a job. Times are seconds of the simulated clock."""

    number: int
    device: int
    begin_s: float
    end_s: float


class SimulatedExecutor:
    """`devices` alike, one job each. `run` says how a job ends, its duration in `Outcome.seconds`.

    A cancelled job goes on for `grace_s`. `before_waiting` is called each time the clock is about
    to move, when everything that may start has started. `curve` gives what a job reports: seconds
    after its start, step, score.
    """

    def __init__(
        self,
        devices: int,
        run: Callable[[Job], Outcome],
        grace_s: float = 0.0,
        before_waiting: Callable[[], None] = lambda: None,
        curve: Callable[[Job], Sequence[tuple[float, int, float]]] = lambda job: (),
    ) -> None:
        self.clock_s = 0.0
        self.busy: list[Interval] = []
        self._free = list(range(devices))
        self._run = run
        self._grace_s = grace_s
        self._before_waiting = before_waiting
        self._running: dict[int, tuple[Interval, Job, Outcome]] = {}
        self._curve = curve
        self._reports: list[tuple[float, int, int, Report]] = []  # when, job, step, what

    def free_slots(self) -> int:
        return len(self._free)

    def submit(self, job: Job) -> None:
        device, outcome = self._free.pop(0), self._run(job)
        end_s = self.clock_s + outcome.seconds
        self._running[job.number] = Interval(job.number, device, self.clock_s, end_s), job, outcome
        for after_s, step, score in self._curve(job):
            if after_s > outcome.seconds:
                break
            due = self.clock_s + after_s
            insort(self._reports, (due, job.number, step, Report(job.number, step, score)))

    def wait(self, timeout_s: float | None) -> list[tuple[Job, Outcome]]:
        """What has ended by now; unless with 0, time passes until something ends or is reported."""
        if timeout_s != 0.0 and self._running:
            self._before_waiting()
            due = [self._next().end_s, *(when for when, *_ in self._reports[:1])]
            self.clock_s = max(self.clock_s, min(due))
        ended = []
        while self._running and (busy := self._next()).end_s <= self.clock_s:
            _, job, outcome = self._running.pop(busy.number)
            insort(self._free, busy.device)
            self.busy.append(busy)
            ended.append((job, replace(outcome, seconds=busy.end_s - busy.begin_s)))
        return ended

    def reports(self) -> list[Report]:
        due = [report for when, _, _, report in self._reports if when <= self.clock_s]
        del self._reports[: len(due)]
        return due

    def cancel(self, job: Job) -> None:
        if job.number in self._running:
            busy, job, _ = self._running[job.number]
            end_s = min(busy.end_s, self.clock_s + self._grace_s)
            self._reports = [entry for entry in self._reports if entry[1] != job.number]
            cancelled = Outcome(State.FAIL, "cancelled", cause=Cause.CANCELLED)
            self._running[job.number] = replace(busy, end_s=end_s), job, cancelled

    def adopt(self, job: Job) -> bool:
        return False

    def stop(self) -> None: ...

    def close(self) -> None: ...

    def _next(self) -> Interval:
        """Of the jobs that run, the one that ends first."""
        running = (busy for busy, _, _ in self._running.values())
        return min(running, key=lambda busy: (busy.end_s, busy.number))
