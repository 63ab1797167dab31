"""A sweep folder as its readers see it: state, trials, attempts in time, from the journal alone."""

from __future__ import annotations

import os
import re
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

from autocl_sweeper.budget import Spent, spent
from autocl_sweeper.errors import SweepFolderError
from autocl_sweeper.journal import NAME, VERSION, Fold, Record, fold, read
from autocl_sweeper.types import History, State, Trial, is_skipped

S = "hydra.sweeper."
RESERVED = ("reserved_mib", "reserved_by")  # of the event `running`
SLACK_S = 5.0  # between the start of a process and its first line in the journal

Status: TypeAlias = Literal["finished", "running", "stopped", "open"]
"""`open`: not finished, and its controller is on another machine, where it may run or not."""


@dataclass(frozen=True)
class Attempt:
    """One job of a trial in time, in seconds since 1970. `end` is None while it runs."""

    trial: int
    number: int
    asked: float  # when the sweep started it
    began: float  # when it had its devices
    end: float | None
    devices: Sequence[str]  # empty: the journal does not say
    failed: str = ""  # why it ran again
    reserved_mib: int | None = None  # on each of its devices
    reserved_by: str = ""  # where that figure is from; empty: it could not share

    @property
    def reservation(self) -> str:
        """What it reserves, in words; empty where jobs do not share devices."""
        if self.reserved_mib is not None:
            return f"{self.reserved_mib} MiB reserved ({self.reserved_by})"
        words = {"": "", "alone": "alone", "number": "shared by number"}
        return words.get(self.reserved_by, f"alone ({self.reserved_by})")


@dataclass(frozen=True)
class Overview:
    """A sweep as of its last event."""

    folder: Path
    records: Sequence[Record]
    state: Fold
    setup: Record  # the `sweep` event

    @property
    def history(self) -> History:
        return self.state.history

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return dict(self.setup["fingerprint"])

    @property
    def name(self) -> str:
        """The last part of the folder; for `<date>/<time>` both."""
        folder = self.folder.absolute()
        dated = folder.name.replace("-", "").isdigit()
        return "/".join(folder.parts[-2:]) if dated else folder.name

    @property
    def maximize(self) -> bool:
        return bool(self.fingerprint.get(f"{S}direction") != "minimize")

    @property
    def tasks(self) -> list[str]:
        """The sequence; without one, nothing."""
        return list(self.fingerprint.get(f"{S}sequence") or [])

    @property
    def as_of(self) -> float:
        return float(self.records[-1]["time"])

    @property
    def begun(self) -> float:
        return float(self.records[0]["time"])

    @cached_property
    def status(self) -> Status:
        if self.state.ended:
            return "finished"
        session = next((r for r in reversed(self.records) if r["event"] == "session"), None)
        if session is None:
            return "stopped"
        if session["host"] != socket.gethostname():
            return "open"
        return "running" if _lives(session["pid"], session["time"]) else "stopped"

    @property
    def planned(self) -> int | None:
        """Trials of the whole sweep, where the journal says."""
        found = (r.get("jobs") for r in reversed(self.records) if r["event"] == "session")
        jobs = next(found, None)
        return None if jobs is None else int(jobs)

    @cached_property
    def spent(self) -> Spent:
        return spent(self.records)

    @cached_property
    def counts(self) -> Counter[str]:
        """Trials by state, those given up apart."""
        history = self.history
        return Counter(
            "given up" if t.number in history.given_up or is_skipped(t) else t.state.value
            for t in history
        )

    @property
    def done(self) -> int:
        """Trials that are over, those given up apart."""
        return len(self.history) - self.counts["RUNNING"] - self.counts["given up"]

    @cached_property
    def chain(self) -> list[Trial]:
        """The chain that ends in the best survivor of the last stage; of an open sweep, so far."""
        history = self.history
        if history.beams and (last := history.beams[len(history.beams)]):
            return history.lineage(history[last[0]])
        best = self._best_of(1)
        return [] if best is None else [best]

    @cached_property
    def leader(self) -> Trial | None:
        """The best trial of the stage that runs, as soon as one has a score; else the best chain's last."""
        best = self._best_of(self.history.open_stage)
        return self.chain[-1] if best is None and self.chain else best

    def _best_of(self, stage: int) -> Trial | None:
        scored = [
            (trial.score, trial)
            for trial in self.history.stage(stage)
            if trial.state is State.COMPLETE and trial.score is not None
            if trial.number not in self.history.given_up
        ]
        sign = -1.0 if self.maximize else 1.0
        ranked = sorted(scored, key=lambda one: (sign * one[0], one[1].number))
        return ranked[0][1] if ranked else None

    @property
    def elapsed_s(self) -> float:
        """Wall clock of all sessions; a running session counts until now."""
        since = time.time() - self.as_of if self.status == "running" else 0.0
        return self.spent.wall_clock_s + max(0.0, since)

    @cached_property
    def left_s(self) -> float | None:
        """Estimated from the mean duration of a trial and from how many jobs run side by side."""
        took = [trial.outcome.seconds for trial in self.history if trial.outcome is not None]
        if self.planned is None or not took or not self.lanes or self.status == "finished":
            return None
        return max(0.0, (self.planned - self.done) * fmean(took) / len(self.lanes))

    @cached_property
    def attempts(self) -> list[Attempt]:
        """Every job of every trial, in the order they were started."""
        found: dict[int, Attempt] = {}  # trial -> its attempt that is not over
        done: list[Attempt] = []
        last = self.begun

        def end(number: int, time_s: float, why: str = "") -> None:
            if (one := found.pop(number, None)) is not None:
                end_s = max(one.began, time_s)
                done.append(replace(one, end=end_s, failed=why))

        for record in self.records:
            match record["event"]:
                case "session":  # what ran before died with its controller, or is adopted
                    for number in list(found):
                        end(number, last, "its controller ended")
                case "start":
                    at = record["time"]
                    found[record["trial"]] = Attempt(
                        record["trial"], record["attempt"], at, at, None, ()
                    )
                case "running" if (one := found.get(record["trial"])) is not None:
                    devices, at = record["device"], record["time"]
                    share = {key: record[key] for key in RESERVED if key in record}
                    found[record["trial"]] = replace(one, began=at, devices=devices, **share)
                case "finish":
                    used = (record.get("device") or {}).get("ids", ())
                    if (one := found.get(record["trial"])) is not None and not one.devices:
                        began = max(one.asked, record["time"] - record["seconds"])
                        found[one.trial] = replace(one, began=began, devices=used)
                    end(record["trial"], record["time"])
                case "attempt_failed":
                    end(record["trial"], record["time"], record["reason"] or "lost")
            last = record["time"]
        if self.status in ("finished", "stopped"):
            for number in list(found):
                end(number, last, "its controller ended")
        return sorted([*done, *found.values()], key=lambda one: (one.asked, one.trial))

    @property
    def running(self) -> list[Attempt]:
        return [one for one in self.attempts if one.end is None]

    def overrides_of(self, number: int) -> list[str]:
        """A job's command line without Hydra's own keys; paths of this folder where it lies now."""
        trial = self.history[number]
        every = self.state.overrides.get(number, ())
        found = [one for one in every if not one.lstrip("+~").startswith("hydra.")]
        parent = None if trial.parent is None else self.history[trial.parent].outcome
        if parent is None or parent.checkpoint is None:
            return found
        # A checkpoint in the folder is relative in the journal and absolute on the command line.
        path = re.compile(rf"(/[^\[\],='\"]*/){re.escape(parent.checkpoint)}(?![\w/])")
        begun_at = next((match[1] for one in found if (match := path.search(one))), None)
        if begun_at is None:
            return found
        return [one.replace(begun_at, f"{self.folder.absolute()}/") for one in found]

    def attempts_of(self, number: int) -> list[Attempt]:
        return [one for one in self.attempts if one.trial == number]

    @cached_property
    def lanes(self) -> dict[str, list[Attempt]]:
        """Attempts by device; where the journal names none, by as many lanes as ran side by side."""
        known: dict[str, list[Attempt]] = {}
        free_at: dict[str, float] = {}
        for one in sorted(self.attempts, key=lambda one: one.began):
            names = list(one.devices)
            if not names:
                open_lanes = [lane for lane, at in free_at.items() if at <= one.began + 0.05]
                names = [open_lanes[0] if open_lanes else f"slot {len(free_at) + 1}"]
                free_at[names[0]] = one.end if one.end is not None else float("inf")
            for name in names:
                known.setdefault(name, []).append(one)
        return dict(sorted(known.items()))

    @cached_property
    def pauses(self) -> list[tuple[float, float]]:
        """From when to when no controller wrote, between two sessions."""
        return [
            (before["time"], record["time"])
            for before, record in pairwise(self.records)
            if record["event"] == "session" and before["event"] != "sweep"
            if record["time"] > before["time"]
        ]

    def open_s(self, time_s: float) -> float:
        """Seconds from the sweep's begin to a moment, without the pauses between sessions."""
        paused = sum(max(0.0, min(end, time_s) - begin) for begin, end in self.pauses)
        return float(time_s - self.begun - paused)

    @cached_property
    def window_s(self) -> float:
        """From the first job's start to the last event, without the pauses between sessions."""
        if not self.attempts:
            return 0.0
        begin = min(one.began for one in self.attempts)
        return self.open_s(self.as_of) - self.open_s(begin)

    def busy_of(self, device: str) -> float | None:
        """The share of that time in which a device had a job."""
        worked = until = 0.0
        for one in self.lanes.get(device, ()):  # several jobs may share it: a second counts once
            end = self.as_of if one.end is None else one.end
            worked += max(0.0, end - max(one.began, until))
            until = max(until, end)
        return min(1.0, worked / self.window_s) if self.window_s > 0 else None

    @cached_property
    def busy(self) -> float | None:
        """The mean of that over the devices that had jobs."""
        found = [share for device in self.lanes if (share := self.busy_of(device)) is not None]
        return fmean(found) if found else None

    @property
    def stages(self) -> int:
        """Stages begun."""
        return max((trial.stage for trial in self.history), default=0)

    def task_of(self, stage: int) -> str:
        """The task of a stage; empty without a sequence."""
        begun = self.history.stage(stage)
        if begun:
            return begun[0].task
        return self.tasks[stage - 1] if stage <= len(self.tasks) else ""

    def ranked(self, stage: int) -> list[Trial]:
        """Trials of a stage: its beam in order, then by score, then those without one."""
        beam = {number: place for place, number in enumerate(self.history.beams.get(stage, ()))}
        sign = -1.0 if self.maximize else 1.0
        given_up = self.history.given_up

        def key(trial: Trial) -> tuple[float, ...]:
            if trial.number in beam:
                return (0, beam[trial.number])
            if trial.state is State.RUNNING:
                return (2, trial.number)
            if trial.state is State.FAIL:
                return (4, trial.number)
            if trial.number in given_up or trial.score is None:
                return (3, trial.number)
            return (1, sign * trial.score, trial.number)

        return sorted(self.history.stage(stage), key=key)


def look(folder: Path) -> Overview:
    """The sweep in this folder, over or not. Raises SweepFolderError."""
    try:
        records = read(folder)
    except OSError as error:
        raise SweepFolderError(
            f"'{folder}' holds no sweep: {error.strerror or error} ('{NAME}').\n"
            "  Name the sweep's own folder, its hydra.sweep.dir: autocl status runs/first."
        ) from error
    setup = next((record for record in records if record["event"] == "sweep"), None)
    if setup is None:
        raise SweepFolderError(
            f"'{folder / NAME}' has no sweep in it yet: nothing has begun there.\n"
            "  Look again when the sweep has started."
        )
    if setup.get("version") != VERSION:
        raise SweepFolderError(
            f"'{folder / NAME}' is a journal of version {setup.get('version')!r}; this package reads"
            f" version {VERSION}.\n  Use the version of autocl-sweeper that wrote it."
        )
    try:
        return Overview(folder, records, fold(records), setup)
    except (KeyError, ValueError, TypeError) as error:
        raise SweepFolderError(
            f"The journal '{folder / NAME}' cannot be read: {error!r}.\n"
            "  It is of a later version, or it is damaged."
        ) from error


def newest(home: Path = Path("multirun")) -> Path:
    """The folder of the sweep that wrote last, in the current folder or below `multirun/`.

    Raises SweepFolderError.
    """
    if (Path() / NAME).exists():
        return Path()
    found = [path for pattern in ("*", "*/*") for path in home.glob(f"{pattern}/{NAME}")]
    if not found:
        raise SweepFolderError(
            f"No sweep folder is named, and there is none here or below '{home}'.\n"
            "  Name it as the last word, as hydra.sweep.dir had it: autocl status runs/first."
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent


def _lives(pid: int, since: float) -> bool:
    """Whether the process that wrote at this time still runs; another one may have its number by now."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        boot = next(
            line for line in Path("/proc/stat").read_text().splitlines() if line[:5] == "btime"
        )
    except OSError:
        return False
    fields = status.rpartition(")")[2].split()  # state first; its start is the 20th, in ticks
    started = int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return fields[0] != "Z" and started <= since + SLACK_S
