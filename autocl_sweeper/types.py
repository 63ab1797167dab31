"""The values that travel between the rooms. Standard library only; nothing here does I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol, TypeAlias, runtime_checkable

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
"""What a hyper-parameter can be: anything JSON can say, so that the journal can hold it."""


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
    CONFIGURATION = "configuration"  # it never composed, which no repetition can mend
    DEVICE_MEMORY = "device_memory"  # a device had no memory left for it
    HOST_MEMORY = "host_memory"  # the machine, or its control group, had none
    EXIT = "exit"  # it exited before its function returned
    SIGNAL = "signal"  # a signal that was not ours
    TIMEOUT = "timeout"
    STALL = "stall"  # it wrote nothing for too long
    RESULT = "result"  # what it returned cannot be ranked
    CANCELLED = "cancelled"  # nobody needs it any more
    STOPPED = "stopped"  # its sweep was stopped
    DEVICE = "device"  # the device it ran on is lost or cannot be asked


@dataclass(frozen=True)
class Suggestion:
    """Hyper-parameters a search proposes for one stage: override key -> value.

    Keys are as the user typed them (`+new.key` keeps its plus). `index` counts the suggestions of
    one stage from 0, so that a search finds its place again in a replayed history.
    """

    index: int
    params: Mapping[str, Value]


@dataclass(frozen=True)
class DeviceUse:
    """What a job had of its GPUs, sampled while it ran. None: nobody could tell, or it was short."""

    ids: tuple[str, ...]
    peak_mib: int | None = None  # of the job's own memory, on the device where it was largest
    # Per cent, the mean of all samples; of the whole device, if the job shared it.
    mean_utilisation: float | None = None
    max_temperature_c: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How one job ended. `reason` says to people why it is not COMPLETE, `cause` to the sweep.

    `score` is None when not ranked.

    `evaluations` are the scores on selection (dev) data by task, `tests` those on test data: they
    are reported and never ranked. `numbers` holds whatever else the job returned.
    """

    state: State
    reason: str = ""
    score: float | None = None
    checkpoint: str | None = None
    evaluations: Mapping[str, float] = field(default_factory=dict)
    tests: Mapping[str, float] = field(default_factory=dict)
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
    outcome: Outcome | None = None

    @property
    def state(self) -> State:
        return State.RUNNING if self.outcome is None else self.outcome.state

    @property
    def score(self) -> float | None:
        return None if self.outcome is None else self.outcome.score


@dataclass(frozen=True)
class Job:
    """One process to run: a trial's number and the Hydra overrides that make it what it is."""

    number: int
    overrides: tuple[str, ...]
    alone: bool = False  # it ran out of device memory beside others: no other on its devices now
    stage: int = 0  # jobs of one stage are alike in what they need; 0: all there are


class History:
    """Every trial of a sweep, by number and by stage; each step costs the same at any size."""

    def __init__(self) -> None:
        self._stage_of: dict[int, tuple[int, int]] = {}  # number -> (stage, place in the stage)
        self._stages: dict[int, list[Trial]] = {}
        self._running: dict[int, None] = {}
        self._failures: Counter[int] = Counter()  # by stage
        self.beams: dict[int, tuple[int, ...]] = {}  # stage -> trial numbers, best first
        self.given_up: dict[int, None] = {}
        self.ending: dict[int, None] = {}  # given up, and their job is not over yet
        self.changes: list[Trial] = []  # every trial as it was after each change of it, in order

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

        Sorts the trials of a stage as they start when one waits for the other. Parents outside
        the beam come last; before it is known the number decides.
        """
        beam = self.beams.get(trial.stage - 1, ())
        rank = beam.index(trial.parent) if trial.parent in beam else len(beam)
        return trial.suggestion.index, rank, trial.number

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
        self._change(trial)
        self._running[trial.number] = None

    def finish(self, number: int, outcome: Outcome) -> Trial:
        """The trial with its outcome. Raises KeyError for a number that is not running."""
        del (self.ending if number in self.ending else self._running)[number]
        trial = replace(self[number], outcome=replace(outcome, job_return=None))
        self._failures[trial.stage] += outcome.state is State.FAIL
        return self._change(trial)

    def give_up(self, number: int, reason: str) -> Trial:
        """A trial that is over before its time, or over in vain: PRUNED, and never ranked.

        A running one is `ending` until `finish` tells how long its job took.
        """
        before = self[number]
        if number in self._running:
            del self._running[number]
            self.ending[number] = None
        self._failures[before.stage] -= before.state is State.FAIL
        self.given_up[number] = None
        return self._change(replace(before, outcome=given_up(before.outcome, reason)))

    def select(self, stage: int, beam: Sequence[int]) -> None:
        """Close a stage: its survivors are the parents of the next one."""
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


def given_up(outcome: Outcome | None, reason: str) -> Outcome:
    """The outcome of a trial that counts no more; what its job cost is still told."""
    if outcome is None:
        return Outcome(State.PRUNED, reason)
    return Outcome(State.PRUNED, reason, checkpoint=outcome.checkpoint, seconds=outcome.seconds)


class Search(Protocol):
    @property
    def size(self) -> int | None:
        """How many suggestions there are; None for a search without end."""
        ...

    def ask(self, history: Sequence[Trial]) -> Suggestion | None:
        """The next suggestion, given the trials of the stage; None when there is no other.

        Same history, same answer. Asked only after every parent got the last suggestion, so the
        next index is `history[-1].suggestion.index + 1`.
        """
        ...


@runtime_checkable
class IndexedSearch(Search, Protocol):
    """A search whose suggestions depend on their place alone, not on how others turned out.

    It may be asked ahead and in any order, so its stages can begin early and longest first.
    """

    def suggestion(self, index: int) -> Suggestion:
        """The suggestion at this place, from 0; there are `size` of them."""
        ...


class Selection(Protocol):
    def __call__(self, finished: Sequence[Trial]) -> list[Trial]:
        """The survivors, best first; ties go to the one that stands before the other.

        Selecting from the survivors so far and a newcomer gives what selecting from all would: who
        is out never returns. Trials that start from one are given up at once when it falls out.
        """
        ...


class Executor(Protocol):
    def free_slots(self) -> int: ...

    def submit(self, job: Job) -> None:
        """Never blocks."""
        ...

    def wait(self, timeout_s: float | None) -> list[tuple[Job, Outcome]]:
        """Jobs that ended since the last call, each exactly once.

        Waits at most `timeout_s` for one (None: until one ends); 0 only looks.
        """
        ...

    def cancel(self, job: Job) -> None:
        """End a job before its time. Does not wait; `wait` reports the end like any other.

        Nothing happens when `wait` has told its end already.
        """
        ...

    def adopt(self, job: Job) -> bool:
        """Take over a job that outlived its controller: `wait` will give its outcome. False: none."""
        ...

    def stop(self) -> None:
        """Begin to end what runs, in good order: `wait` gives what ends, then nothing.

        `close` before that ends the rest at once.
        """
        ...

    def close(self) -> None:
        """Idempotent; leaves no process behind."""
        ...
