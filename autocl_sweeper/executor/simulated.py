"""An executor whose jobs take no time: its clock jumps to the next end. For tests and benchmarks."""

from __future__ import annotations

import heapq
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
        self._running: dict[int, tuple[int, float, float, Job, Outcome]] = {}
        self._ends: list[tuple[float, int]] = []
        self._curve = curve
        self._reports: list[tuple[float, int, int, Report]] = []  # when, job, step, what

    def free_slots(self) -> int:
        return len(self._free)

    def submit(self, job: Job) -> None:
        device = heapq.heappop(self._free)
        outcome = self._run(job)
        self._plan_end(device, self.clock_s, self.clock_s + outcome.seconds, job, outcome)
        for after_s, step, score in self._curve(job):
            if after_s > outcome.seconds:
                break
            due = self.clock_s + after_s
            report = Report(job.number, step, score)
            heapq.heappush(self._reports, (due, job.number, step, report))

    def wait(self, timeout_s: float | None) -> list[tuple[Job, Outcome]]:
        """What has ended by now; unless with 0, time passes until something ends or is reported."""
        if timeout_s != 0.0 and self._running:
            self._before_waiting()
            due = self._reports[0][0] if self._reports else self._next_end()
            self.clock_s = max(self.clock_s, min(due, self._next_end()))
        ended = []
        while self._running and self._next_end() <= self.clock_s:
            _, number = heapq.heappop(self._ends)
            device, begin, end, job, outcome = self._running.pop(number)
            heapq.heappush(self._free, device)
            self.busy.append(Interval(number, device, begin, end))
            ended.append((job, replace(outcome, seconds=end - begin)))
        return ended

    def reports(self) -> list[Report]:
        due = []
        while self._reports and self._reports[0][0] <= self.clock_s:
            due.append(heapq.heappop(self._reports)[3])
        return due

    def cancel(self, job: Job) -> None:
        if job.number in self._running:
            device, begin, end, job, _ = self._running[job.number]
            kept = [entry for entry in self._reports if entry[1] != job.number]
            heapq.heapify(kept)
            self._reports = kept
            cancelled = Outcome(State.FAIL, "cancelled", cause=Cause.CANCELLED)
            self._plan_end(device, begin, min(end, self.clock_s + self._grace_s), job, cancelled)

    def adopt(self, job: Job) -> bool:
        return False

    def stop(self) -> None: ...

    def close(self) -> None: ...

    def _plan_end(self, device: int, begin: float, end: float, job: Job, outcome: Outcome) -> None:
        self._running[job.number] = device, begin, end, job, outcome
        heapq.heappush(self._ends, (end, job.number))

    def _next_end(self) -> float:
        """Of the jobs that run; an end that a cancelled job was to have is forgotten."""
        while True:
            end, number = self._ends[0]
            if number in self._running and self._running[number][2] == end:
                return end
            heapq.heappop(self._ends)
