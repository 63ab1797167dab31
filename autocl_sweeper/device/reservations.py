"""How much memory the next job reserves on a device: by what jobs before it measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from autocl_sweeper.device.predicted import SizeModel, read_model
from autocl_sweeper.types import Need, Outcome, State

SAMPLED = 0.1  # above the largest peak that NVML showed now and then
REPORTED = 0.05  # above the largest peak that jobs reported of themselves
PREDICTED = 0.15  # above a peak that no job has had yet
CONTEXT_MIB = 1024  # of CUDA in a process, until a job has measured it
PEAKS_NEEDED = 3  # finished jobs of a stage before its reservation may fall below the declared one

T = TypeVar("T")
Source: TypeAlias = Literal[
    "reported", "budget", "model", "sampled", "declared", "unknown", "alone"
]


@dataclass(frozen=True)
class Reservation:
    """MiB of a device for one job, and where the figure is from. None: its need is unknown."""

    mib: int | None
    source: Source
    context_mib: int = CONTEXT_MIB

    @property
    def alone(self) -> bool:
        """Whether the job has to have its device for itself: its like ran out of memory beside others."""
        return self.source == "alone"

    def share_of(self, total_mib: int | None) -> float | None:
        """The share of a device's memory that the job's tensors may take; None: no limit."""
        if self.mib is None or not total_mib or self.mib <= self.context_mib:
            return None
        return min(1.0, (self.mib - self.context_mib) / total_mib)


@dataclass(frozen=True)
class Used:
    """What a finished job says about the memory of its like."""

    number: int = -1  # of its trial
    stage: int = 0
    need: Need = field(default_factory=Need)
    gpu: str = ""  # the model of its device; empty: not known
    sampled_mib: int | None = None  # its peak as NVML showed it; 0: it showed nothing
    reserved_mib: float | None = None  # likewise, by its own account, without the context
    context_mib: float | None = None
    static_mib: float | None = None
    model: SizeModel | None = None

    @property
    def says_something(self) -> bool:
        """Whether it has a figure at all."""
        return any((self.sampled_mib, self.reserved_mib, self.context_mib, self.model))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Used:
        model = found["model"] and SizeModel(
            **{key: _frozen(v) for key, v in found["model"].items()}
        )
        return cls(**{**found, "need": Need(**found["need"]), "model": model})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def used_by(
    number: int, stage: int, need: Need, outcome: Outcome, folder: Path | None
) -> Used | None:
    """What an ended job used; None: it did not complete, so it may not have come to its peak."""
    if outcome.state is not State.COMPLETE:
        return None
    use, numbers = outcome.device, outcome.numbers

    def mib(name: str) -> float | None:
        value = numbers.get(name, 0.0)
        return value if 0 < value < math.inf else None

    return Used(
        number,
        stage,
        need,
        use.gpu if use is not None else "",
        None if use is None else use.peak_mib or 0,
        mib("peak_reserved_mib"),
        mib("context_mib"),
        mib("static_mib"),
        read_model(folder) if folder is not None and mib("static_mib") else None,
    )


@dataclass
class _Seen:
    """Peaks of jobs with one key on one model of GPU."""

    reported_mib: float | None = None  # the largest that jobs reported, context included
    sampled: dict[int, tuple[int, int]] = field(default_factory=dict)  # stage -> largest, how many
    running_mib: int | None = None  # of a running job whose peak stopped growing


def _at(table: Mapping[str, T], gpu: str) -> list[T]:
    """Entries for this model of GPU; where one of the two is not known, those for any."""
    return [one for name, one in table.items() if not name or not gpu or name == gpu]


@dataclass
class Reservations:
    """Learns from finished jobs, in any order, what the next ones reserve."""

    _contexts: dict[str, float] = field(default_factory=dict)  # by model of GPU, of jobs of any key
    # By key or family, then by model of GPU.
    _seen: dict[str, dict[str, _Seen]] = field(default_factory=lambda: defaultdict(dict))
    _models: dict[str, dict[str, list[Used]]] = field(default_factory=lambda: defaultdict(dict))
    # Key -> jobs that are not complete since.
    _ran_out: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def of(
        self, need: Need, stage: int, gpu: str = "", declared_mib: int | None = None
    ) -> Reservation:
        """What a job reserves on a device of this model: the first figure there is."""
        context = math.ceil(max(_at(self._contexts, gpu), default=CONTEXT_MIB))
        if self._ran_out[need.key]:
            return Reservation(None, "alone", context)
        seen = _at(self._seen[need.key], gpu)
        if peaks := [one.reported_mib for one in seen if one.reported_mib is not None]:
            return Reservation(math.ceil(max(peaks) * (1 + REPORTED)), "reported", context)
        if need.budget_mib is not None and need.capped:
            return Reservation(need.budget_mib + context, "budget", context)
        has_sizes = need.batch is not None or need.length is not None
        models = _at(self._models[need.family], gpu) if has_sizes else []
        if predicted := [_predicted_mib(one, need) for known in models for one in known]:
            mib = math.ceil((max(predicted) + context) * (1 + PREDICTED))
            return Reservation(mib, "model", context)
        sampled_mib = _sampled_mib(seen, stage, declared_mib)
        if sampled_mib is None:
            return Reservation(None, "unknown", context)
        source: Source = "declared" if sampled_mib == declared_mib else "sampled"
        return Reservation(sampled_mib, source, context)

    def learn(self, used: Used) -> None:
        """Take what a finished job used."""
        key, gpu = used.need.key, used.gpu
        # A job that ran out of memory has run again, alone, and now its need is known.
        if used.reserved_mib is not None or used.sampled_mib:
            self._ran_out[key].discard(used.number)
        if used.context_mib is not None:
            self._contexts[gpu] = max(used.context_mib, self._contexts.get(gpu, 0.0))
        seen = self._seen[key].setdefault(gpu, _Seen())
        if used.reserved_mib is not None:
            context = used.context_mib
            if context is None:  # the driver's figure has both
                on_top = (used.sampled_mib or 0) - used.reserved_mib
                context = on_top if on_top > 0 else CONTEXT_MIB
            seen.reported_mib = max(used.reserved_mib + context, seen.reported_mib or 0.0)
        if used.sampled_mib:
            largest, count = seen.sampled.get(used.stage, (0, 0))
            seen.sampled[used.stage] = max(largest, used.sampled_mib), count + 1
        if used.model is not None:
            self._models[used.need.family].setdefault(gpu, []).append(used)

    def ran_out(self, number: int, need: Need) -> None:
        """A job ran out of memory beside others: its like run alone until it has completed."""
        self._ran_out[need.key].add(number)

    def expect(self, peak_mib: int, need: Need, gpu: str) -> bool:
        """A job that still runs has used so much and no more for a while; whether that is news."""
        found = self._seen[need.key].setdefault(gpu, _Seen())
        news = found.running_mib is None and not found.sampled
        found.running_mib = max(peak_mib, found.running_mib or 0)
        return news

    def finished(self, need: Need, stage: int) -> tuple[int, int]:
        """The largest sampled peak of a stage's jobs of this kind, and of how many."""
        found = [one.sampled.get(stage, (0, 0)) for one in self._seen[need.key].values()]
        return max((mib for mib, _ in found), default=0), sum(count for _, count in found)


def _sampled_mib(seen: Sequence[_Seen], stage: int, declared_mib: int | None) -> int | None:
    """The largest peak of the stage's jobs and a margin; not less than declared while few are over.

    Where none is over: what is declared, else what such jobs of other stages needed, else what
    those that run have shown so far.
    """
    here = [one.sampled[stage] for one in seen if stage in one.sampled]
    if here:
        mib = math.ceil(max(mib for mib, _ in here) * (1 + SAMPLED))
        few = sum(count for _, count in here) < PEAKS_NEEDED
        return max(declared_mib, mib) if declared_mib is not None and few else mib
    if declared_mib is not None:
        return declared_mib
    others = [mib for one in seen for mib, _ in one.sampled.values()]
    running = [one.running_mib for one in seen if one.running_mib is not None]
    known = others or running
    return math.ceil(max(known) * (1 + SAMPLED)) if known else None


def _predicted_mib(like: Used, need: Need) -> float:
    """MiB of the largest batch of a job that differs in micro-batch or length from a finished one."""
    assert like.model is not None and like.static_mib is not None
    rows = need.batch / like.need.batch if need.batch and like.need.batch else 1.0
    left = None if need.budget_mib is None else need.budget_mib - like.static_mib
    limits = like.need.length, need.length
    return like.static_mib + like.model.peak_mib(rows, limits, left)
