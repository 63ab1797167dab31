"""The values that travel between the rooms. Standard library only; nothing here does I/O."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal, TypeAlias

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
"""What a hyper-parameter can be: anything JSON can say, so that the journal can hold it."""


Origin: TypeAlias = Literal["init", "own", "carried", "model", "fresh", "enqueued"]


class State(str, Enum):
    """Optuna's words for the states of a trial."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


class Cause(str, Enum):
    """What kept a job from completing, where that decides what is done about it."""

    NONE = ""  # nothing did, or a journal of an earlier version that does not say
    EXCEPTION = "exception"  # its function raised
    CONFIGURATION = "configuration"  # it never composed, which no repetition can fix
    DEVICE_MEMORY = "device_memory"  # a device had no memory left for it
    EVALUATION_MEMORY = (
        "evaluation_memory"  # the same in an evaluation, which has batches of its own
    )
    HOST_MEMORY = "host_memory"  # the machine, or its control group, had none
    INFEASIBLE = "infeasible"  # it said that its settings cannot be trained, or did not fit alone
    INFEASIBLE_BUDGET = "infeasible budget"  # no plan of it fits its memory budget
    EXIT = "exit"  # it exited before its function returned
    SIGNAL = "signal"  # a signal that was not ours
    TIMEOUT = "timeout"
    STALL = "stall"  # it wrote nothing for too long
    DISK = "disk"  # a file system was full or broken
    RESULT = "result"  # what it returned cannot be ranked
    CANCELLED = "cancelled"  # it is not needed any more
    STOPPED = "stopped"  # its sweep was stopped
    DEVICE = "device"  # the device it ran on is lost or cannot be asked
    SKIPPED = "skipped"  # it said that it would repeat another job
    EARLY_STOPPED = "early_stopped"  # what it reported was not good enough to go on


OUT_OF_DEVICE_MEMORY = (Cause.DEVICE_MEMORY, Cause.EVALUATION_MEMORY)


@dataclass(frozen=True)
class Carried:
    """What a suggestion has from its source: a trial of an earlier task, or of another sweep."""

    task: str
    keys: int  # how many of the suggestion's keys have the value they had there
    sweep: str | None = None  # the folder of the other sweep; None: this one


@dataclass(frozen=True)
class Suggestion:
    """Hyper-parameters a search proposes for one stage: override key -> value.

    Keys are as the user typed them (`+new.key` keeps its plus). `index` counts the suggestions of
    one stage from 0, so that a search finds its place again in a replayed history.
    """

    index: int
    params: Mapping[str, Value]
    origin: Origin | None = None  # where a search has it from; None: it does not say
    source: int | None = None  # the trial whose parameters it takes up
    parent: int | None = None  # with pairing "one": the trial it starts from; None: the best parent
    carried: Carried | None = None


@dataclass(frozen=True)
class Later:
    """A search has no suggestion before a running trial of its stage ends."""


@dataclass(frozen=True)
class Report:
    """A score that a job reported on its way, after `step` steps. nan: it was not finite."""

    number: int  # of the trial
    step: int
    score: float


@dataclass(frozen=True)
class DeviceUse:
    """What a job had of its GPUs, sampled while it ran. None: nobody could tell, or it was short."""

    ids: tuple[str, ...]
    peak_mib: int | None = None  # of the job's own memory, on the device where it was largest
    # Per cent, the mean of all samples; of the whole device, if the job shared it.
    mean_utilisation: float | None = None
    max_temperature_c: int | None = None
    gpu: str = ""  # the model of the device, as NVML names it


@dataclass(frozen=True)
class Outcome:
    """How one job ended. `reason` says to people why it is not COMPLETE, `cause` to the sweep.

    `score` is None when not ranked; that of an early-stopped trial is its last report.

    `evaluations` are the scores on selection (dev) data by task, `tests` those on test data: they
    are reported and never ranked. `merged_from`: what the job's start was merged from, a weight for each
    (trial numbers where they are of this sweep). `numbers` holds whatever else the job returned.
    """

    state: State
    reason: str = ""
    score: float | None = None
    checkpoint: str | None = None
    evaluations: Mapping[str, float] = field(default_factory=dict)
    tests: Mapping[str, float] = field(default_factory=dict)
    merged_from: Mapping[str, float] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    log_tail: Sequence[str] = ()
    cause: Cause = Cause.NONE
    # Its end says nothing about the job: it runs again, and that is no retry. Not journaled.
    lost: bool = False
    returned: str = ""  # the type of what the task function returned; empty: it did not return
    device: DeviceUse | None = None  # None: no GPU, or another launcher's job
    # Hydra's own JobReturn, for callers that must hand it on. Never journaled.
    job_return: Any = None


@dataclass(frozen=True)
class Trial:
    """A suggestion with a parent, numbered once and for ever. `parent` is a trial number."""

    number: int
    stage: int  # 1 is the first task
    task: str
    suggestion: Suggestion
    parent: int | None
    folder: str = ""  # relative to the sweep folder; empty: the user's own sweep.subdir
    attempt: int = 1
    repeat: int = 0  # of the same suggestion with the same parent, with another seed
    extra: int = 0  # which start beside its parent's own the job makes, from 1; 0: the parent's
    outcome: Outcome | None = None

    @property
    def state(self) -> State:
        return State.RUNNING if self.outcome is None else self.outcome.state

    @property
    def score(self) -> float | None:
        return None if self.outcome is None else self.outcome.score


def is_skipped(trial: Trial) -> bool:
    """Whether its job ended by saying that it would repeat another one."""
    return trial.outcome is not None and trial.outcome.cause is Cause.SKIPPED


def is_stopped(trial: Trial) -> bool:
    """Whether it was stopped early for what it reported, and did not run again or fall since."""
    return trial.outcome is not None and trial.outcome.cause is Cause.EARLY_STOPPED


@dataclass(frozen=True)
class Job:
    """One process to run: a trial's number and the Hydra overrides that make it what it is."""

    number: int
    overrides: tuple[str, ...]
    alone: bool = False  # it ran out of device memory beside others: no other on its devices now
    stage: int = 0  # jobs of one stage are alike in what they need; 0: all there are
    reported: int = 0  # of a job to adopt: how many of its reports are known already
    # What tells it from its siblings: override key -> value; None: its overrides do.
    params: Mapping[str, Value] | None = None
    folder: str = ""  # its own, absolute; empty: known to the job alone
    need: Need | None = None  # of a job that was composed elsewhere; None: its settings say


@dataclass(frozen=True)
class Need:
    """What decides how much device memory a job takes. Jobs with equal keys take the same."""

    key: str = ""
    family: str = ""  # the same without micro-batch and length limit
    batch: float | None = None  # sequences of a micro-batch; None: not among its settings
    length: float | None = None  # the length limit, tokens
    budget_mib: int | None = None  # what it plans for
    capped: bool = False  # whether the job itself holds to that budget


class History:
    """Every trial of a sweep, by number and by stage; each step costs the same at any size."""

    def __init__(self) -> None:
        self._stage_of: dict[int, tuple[int, int]] = {}  # number -> (stage, place in the stage)
        self._stages: dict[int, list[Trial]] = {}
        self._running: dict[int, None] = {}
        self._failures: Counter[int] = Counter()  # by stage
        self.beams: dict[int, tuple[int, ...]] = {}  # stage -> trial numbers, best first
        self.given_up: dict[int, None] = {}
        self.stopped: dict[int, None] = {}  # stopped early once; those that ran again among them
        self.ending: dict[int, None] = {}  # given up or stopped, and their job is not over yet
        self.changes: list[Trial] = []  # every trial as it was after each change of it, in order
        self._reports: dict[int, list[Report]] = {}
        self._reported: Counter[int] = Counter()  # the same with those that were dropped

    def __len__(self) -> int:
        return len(self._stage_of)

    def __iter__(self) -> Iterator[Trial]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Trial:
        stage, place = self._stage_of[number]
        return self._stages[stage][place]

    def __contains__(self, number: int) -> bool:
        return number in self._stage_of

    @property
    def open_stage(self) -> int:
        """The first stage without a beam. Trials of later ones may yet lose their parents."""
        return len(self.beams) + 1

    @property
    def failures(self) -> int:
        """Failed trials whose parents stay: those of other trials may never count."""
        return sum(n for stage, n in self._failures.items() if stage <= self.open_stage)

    def running(self) -> list[Trial]:
        return [self[number] for number in list(self._running)]  # a display may ask meanwhile

    def stage(self, stage: int) -> Sequence[Trial]:
        """The trials of one stage in the order they started; a live view, not a copy."""
        return self._stages.get(stage, ())

    def place(self, trial: Trial) -> tuple[int, int, int]:
        """Where a trial stands in its stage, whenever it ran: suggestion, rank of its parent.

        Sorts the trials of a stage as they start when one waits for the other. Extra starts come
        behind the parents, parents outside the beam last; before it is known the number decides.
        """
        beam = self.beams.get(trial.stage - 1, ())
        rank = beam.index(trial.parent) if trial.parent in beam else len(beam)
        rank = len(beam) + trial.extra if trial.extra else rank
        return trial.suggestion.index, rank, trial.number

    def reports(self, number: int) -> Sequence[Report]:
        """Reports of a trial's last attempt, each with a larger step than the one before; a live view."""
        return self._reports.get(number, ())

    def reported(self, number: int) -> int:
        """How many reports the last attempt made, those that were dropped among them."""
        return self._reported[number]

    def start(self, trial: Trial) -> None:
        """Add a running trial, or take one up again (running or failed) with its next attempt.

        Trials are numbered from 0 without gaps. Raises ValueError for any other number.
        """
        if trial.number in self._stage_of:
            self._failures[trial.stage] -= self[trial.number].state is State.FAIL
        elif trial.number == len(self):
            trials = self._stages.setdefault(trial.stage, [])
            self._stage_of[trial.number] = (trial.stage, len(trials))
            trials.append(trial)
        else:
            raise ValueError(f"trial {trial.number} starts, but {len(self)} is next")
        self._reports.pop(trial.number, None)
        self._reported.pop(trial.number, None)
        self._change(trial)
        self._running[trial.number] = None

    def report(self, report: Report) -> bool:
        """Add a report of a trial's current attempt. Raises KeyError for an unknown trial.

        False: its step is not larger than that of the one before, so it is dropped.
        """
        trial = self[report.number]
        self._reported[report.number] += 1
        reports = self._reports.setdefault(report.number, [])
        if reports and report.step <= reports[-1].step:
            return False
        reports.append(report)
        self._change(trial)
        return True

    def stop(self, number: int, reason: str) -> Trial:
        """A running trial that goes no further: PRUNED, with the score of its last report.

        It is `ending` until `finish` tells how long its job took. Raises KeyError for a number that
        is not running, IndexError for a trial without a report.
        """
        del self._running[number]
        self.ending[number] = self.stopped[number] = None
        score = self._reports[number][-1].score
        kept = score if math.isfinite(score) else None
        outcome = Outcome(State.PRUNED, reason, score=kept, cause=Cause.EARLY_STOPPED)
        return self._change(replace(self[number], outcome=outcome))

    def finish(self, number: int, outcome: Outcome) -> Trial:
        """The trial with its outcome. Raises KeyError for a number that is not running."""
        del (self.ending if number in self.ending else self._running)[number]
        trial = replace(self[number], outcome=replace(outcome, job_return=None))
        self._failures[trial.stage] += outcome.state is State.FAIL
        return self._change(trial)

    def give_up(self, number: int, reason: str) -> Trial:
        """A trial that is over before its time, or given up: PRUNED, and never ranked.

        A running one is `ending` until `finish` tells how long its job took.
        """
        before = self[number]
        if number in self._running:
            del self._running[number]
            self.ending[number] = None
        self._failures[before.stage] -= before.state is State.FAIL
        self.given_up[number] = None
        self.stopped.pop(number, None)
        outcome = Outcome(State.PRUNED, reason)
        if (was := before.outcome) is not None:  # what its job cost is still reported
            outcome = replace(outcome, checkpoint=was.checkpoint, seconds=was.seconds)
        return self._change(replace(before, outcome=outcome))

    def select(self, stage: int, beam: Sequence[int]) -> None:
        """Close a stage: its survivors are the parents of the next one. Raises KeyError for others."""
        for number in beam:
            self._stage_of[number]
        self.beams[stage] = tuple(beam)

    def lineage(self, trial: Trial) -> list[Trial]:
        """The chain of a trial: its first ancestor first, the trial itself last."""
        chain = [trial]
        while chain[-1].parent is not None:
            chain.append(self[chain[-1].parent])
        return chain[::-1]

    def _change(self, trial: Trial) -> Trial:
        stage, place = self._stage_of[trial.number]
        self._stages[stage][place] = trial
        self.changes.append(trial)
        return trial
