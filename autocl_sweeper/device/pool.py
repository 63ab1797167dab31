"""The devices that jobs of one executor may get, and the rule by which they get them."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autocl_sweeper.device.leases import Lease, LeaseFolder, Refusal, lease_free, refuse_too_few
from autocl_sweeper.device.packing import Claim
from autocl_sweeper.device.probe import Device, Probe, find_probe, short
from autocl_sweeper.errors import ConfigurationError, DeviceError

log = logging.getLogger(__name__)

MARGIN = 0.1  # what a job may need above the largest peak measured so far
PEAKS_NEEDED = 3  # finished jobs of a stage before its reservation may fall below the declared one
# How long a device must be in trouble, seen at least twice, before it is taken out of service.
LOST_S = 1.0  # it says that it is lost or needs a reset
SICK_S = 30.0  # it cannot be asked for another reason; jobs on it may be well all the same

DEVICES = "AUTOCL_DEVICES"  # in a job's environment: what is leased to it, with commas
THREADS = "AUTOCL_THREADS"  # likewise: the OMP_NUM_THREADS that we chose for the whole job


@dataclass(frozen=True)
class Grant:
    """Devices leased for one job. `close` gives back our copy; the job's own keeps them leased."""

    leases: Sequence[Lease]
    environment: Mapping[str, str]
    alone: bool = True  # no other job gets on these devices while this one has them

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(lease.device_id for lease in self.leases)

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple(fd for lease in self.leases for fd in lease.filenos())

    @property
    def base_mib(self) -> dict[str, int | None]:
        """What was in use on a device before the first of those that are on it now came."""
        return {lease.device_id: lease.claim.base_mib for lease in self.leases}

    def began(self, session: int, stage: int, reserved_mib: int | None) -> None:
        """Tell the other sweeps which processes are the job's, and what it reserves after all."""
        for lease in self.leases:
            lease.note(replace(lease.claim, job=session, stage=stage, reserved_mib=reserved_mib))

    def close(self) -> None:
        for lease in self.leases:
            lease.close()


@dataclass
class Pool:
    """The devices of a sweep: leased for its jobs, watched, and taken out of service when sick.

    Jobs share devices when `jobs_per_device` is above 1, or `memory_per_job_mib` is set; then the
    memory reserved there decides (`packing`), and the number only if it is above 1 as well.
    `acquire` is for one thread; the rest may be called from any.
    """

    probe: Probe
    leases: LeaseFolder
    count: int = 1  # per job
    free_memory: float = 0.8
    max_devices: int | None = None
    holder: str = ""
    jobs_per_device: int = 1
    memory_per_job_mib: int | None = None
    stagger_s: float = 0.0
    refusal: str = ""  # why the last `acquire` gave nothing; empty when it gave
    clock: Callable[[], float] = time.monotonic
    retired: dict[str, str] = field(default_factory=dict)  # id -> why it is out of service
    lost: set[str] = field(default_factory=set)  # those of them on which no job can go on
    # Stages that jobs were last started of, the newest last: the next one is most likely of these.
    _latest: list[int] = field(default_factory=lambda: [0])
    _peaks: dict[int, tuple[int, int]] = field(default_factory=dict)  # stage -> largest, how many
    _expected_mib: int | None = None  # by what jobs that still run use; None: none has shown it
    _unseen: bool = False  # one was over, or ran for long, and used nothing that anybody could see
    _trouble: dict[str, float] = field(default_factory=dict)  # id -> when it began
    _contested: set[str] = field(default_factory=set)  # leased twice, after a lock file was deleted
    _watching: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, settings: Mapping[str, Any], holder: str) -> Pool:
        """The pool that the keys of hydra/launcher=gpu describe, checked.

        Raises ConfigurationError, and DeviceError when no device here could ever serve a job.
        """
        slots = settings["cpu_slots"]
        for key in ("devices_per_job", "jobs_per_device", "max_devices", "memory_per_job_mib"):
            if settings[key] is not None and settings[key] < 1:
                raise ConfigurationError(
                    f"hydra.launcher.{key}={settings[key]}: at least 1 is needed."
                    " No job was started."
                )
        if not 0 <= settings["free_memory"] <= 1:
            raise ConfigurationError(
                f"hydra.launcher.free_memory={settings['free_memory']}: a share from 0 to 1 is"
                " needed (0.8: four fifths of a device are free of others). No job was started."
            )
        if settings["stagger_s"] < 0:
            raise ConfigurationError(
                f"hydra.launcher.stagger_s={settings['stagger_s']:g}: the seconds between two"
                " starts on a device cannot be negative. No job was started."
            )
        alike = ("free_memory", "max_devices", "jobs_per_device", "memory_per_job_mib", "stagger_s")
        pool = cls(
            find_probe(None if slots in (None, "auto") else int(slots), os.environ),
            LeaseFolder(),
            count=settings["devices_per_job"],
            holder=holder,
            **{key: settings[key] for key in alike},
        )
        pool.check()
        return pool

    def check(self) -> None:
        """Raises DeviceError when no device, as they are built, could ever serve a job."""
        considered = self.probe.devices()[: self.max_devices]
        refuse_too_few(self.count, self.max_devices, considered)
        needed_mib = self.memory_per_job_mib
        if needed_mib is None:
            return
        if not self.probe.measured:
            log.warning(
                f"hydra.launcher.memory_per_job_mib={needed_mib} has no effect on CPU slots: they"
                f" are shared by number alone (jobs_per_device={self.jobs_per_device})"
            )
            self.memory_per_job_mib = None
            return
        wide = [d for d in considered if d.total_mib is None or d.total_mib >= needed_mib]
        if len(wide) < self.count:
            raise DeviceError(
                f"hydra.launcher.memory_per_job_mib={needed_mib} is more than "
                + ("any device has:\n" if self.count == 1 else "enough devices have:\n")
                + "\n".join(f"  {short(d.id)} {d.name}: {d.total_mib} MiB" for d in considered)
                + f"\n  A job reserves it on each of its devices (devices_per_job={self.count})."
                "\n  Lower it, make the job smaller, or leave it out to give each job a whole"
                " device. No job was started."
            )

    @property
    def shares(self) -> bool:
        """Whether jobs may share devices at all."""
        return self.jobs_per_device > 1 or self.memory_per_job_mib is not None

    def acquire(self, *, alone: bool = False, stage: int | None = None) -> Grant | None:
        """Devices for one job, or None while none is free.

        `alone`: nobody else on them, whatever sharing the pool allows; while it is asked for, the
        shared device with the fewest jobs takes no further ones. `stage`: of the job; None: not known yet, so
        that the larger reservation of the last two stages counts.
        Raises DeviceError if none can ever be: too few devices, or too few still in service.
        """
        claim = Claim(os.getpid(), self.holder)
        if self.shares and not alone:
            stages = self._latest if stage is None else [stage]
            known = [mib for one in stages if (mib := self.reservation_mib(one)) is not None]
            claim = replace(
                claim,
                limit=self.jobs_per_device if self.jobs_per_device > 1 else None,
                reserved_mib=max(known, default=self.memory_per_job_mib),
                declared_mib=self.memory_per_job_mib,
                stage=stages[-1],
            )
        found = lease_free(
            self,
            self.leases,
            self.count,
            self.free_memory,
            self.max_devices,
            claim=claim,
            stagger_s=self.stagger_s,
            retired=dict(self.retired),
            insist=alone,
            unknown=claim.reserved_mib is None and not self._unseen,
        )
        if isinstance(found, Refusal):
            self.refusal = str(found)
            return None
        self.refusal = ""
        ids = [lease.device_id for lease in found]
        return Grant(found, told(ids, self.probe.environment(ids)), alone=claim.limit == 1)

    def announce(self, grant: Grant) -> None:
        """Lock anew what is leased for a job that runs, where its lock files were deleted."""
        for lease in grant.leases:
            if not self.leases.announce(lease) and lease.device_id not in self._contested:
                self._contested.add(lease.device_id)
                log.warning(
                    "%s: its lock file was deleted, and another sweep uses the device too. Do not"
                    " delete files in '%s'", short(lease.device_id), self.leases.path,
                )  # fmt: skip

    def take_over(self, ids: Sequence[str]) -> Grant | None:
        """Devices of a job that another controller started and that holds no lease itself any more.

        None: it does, or it shared them, so that its claim is not known.
        """
        if self.shares:
            return None
        found = [self.leases.try_lease(device_id, self.holder) for device_id in ids]
        held = [lease for lease in found if lease is not None]
        return Grant(held, {}) if held else None

    # -- memory --

    def reservation_mib(self, stage: int) -> int | None:
        """What the next job of a stage reserves on each of its devices; None: nobody knows.

        The largest peak among the stage's finished jobs and a margin; not less than declared
        while few have finished, since the next setting may be a larger model. Where none has and
        nothing is declared: what other stages needed, or what jobs that run have shown so far.
        """
        declared_mib = self.memory_per_job_mib
        if stage not in self._peaks:
            if declared_mib is not None:
                return declared_mib
            others = max((mib for mib, _ in self._peaks.values()), default=self._expected_mib)
            return None if others is None else math.ceil(others * (1 + MARGIN))
        peak_mib, finished = self._peaks[stage]
        measured_mib = math.ceil(peak_mib * (1 + MARGIN))
        if declared_mib is not None and finished < PEAKS_NEEDED:
            return max(declared_mib, measured_mib)
        return measured_mib

    def began(self, grant: Grant, session: int, stage: int) -> None:
        """A job of `stage` runs on these devices, in this session."""
        others = [one for one in self._latest if one != stage]
        self._latest = [*others[-1:], stage]
        grant.began(session, stage, self.reservation_mib(stage) if self.shares else None)

    def learn(self, stage: int, peak_mib: int, finished: int = 1) -> None:
        """Record the peak memory, on one device, of finished jobs of a stage."""
        before_mib = self.reservation_mib(stage)
        largest_mib, before = self._peaks.get(stage, (0, 0))
        self._peaks[stage] = max(largest_mib, peak_mib), before + finished
        now_mib = self.reservation_mib(stage)
        if self.shares and now_mib != before_mib:
            of_stage = f" of stage {stage}" if stage else ""
            log.info(
                f"jobs{of_stage} reserve {now_mib} MiB from now on: the largest of"
                f" {before + finished} used {max(largest_mib, peak_mib)}"
            )

    def expect(self, peak_mib: int) -> None:
        """A job that still runs has used so much at most, and no more for a while.

        0: nothing was to be seen of it, and so jobs share by their number alone until one is seen.
        """
        if not peak_mib:
            self._unseen = True
            return
        known = self._expected_mib is not None
        self._expected_mib = max(peak_mib, self._expected_mib or 0)
        if self.shares and not known and not self._peaks and self.memory_per_job_mib is None:
            reserved_mib = math.ceil(peak_mib * (1 + MARGIN))
            log.info(
                f"jobs reserve {reserved_mib} MiB until one has finished: one that runs uses"
                f" {peak_mib}"
            )

    # -- health --

    def devices(self, load: bool = False) -> list[Device]:
        """A fresh reading, which also decides who stays in service."""
        found = self.probe.devices(load)
        now = self.clock()
        with self._watching:
            for device in found:
                if not device.error:
                    self._trouble.pop(device.id, None)
                    continue
                since = self._trouble.setdefault(device.id, now)
                if device.lost and now - since >= LOST_S:
                    self.lost.add(device.id)
                    self._retire(device)
                elif now - since >= SICK_S:
                    self._retire(device)
        return found

    def failed_on(self, ids: Collection[str]) -> str:
        """Why a job that just failed on these devices is not to blame; empty when it may be.

        A device that cannot be asked at this very moment is taken out of service.
        """
        for device in self.devices():
            if device.id in ids and device.error:
                with self._watching:
                    self._retire(device)
        reasons = [f"{short(name)}: {self.retired[name]}" for name in ids if name in self.retired]
        return "; ".join(reasons)

    def _retire(self, device: Device) -> None:
        if device.id not in self.retired:
            self.retired[device.id] = device.problem
            log.warning("%s is out of service for this sweep: %s", short(device.id), device.problem)


def told(ids: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job with these devices, and what a job of several processes divides."""
    lease = {DEVICES: ",".join(ids)}
    if "OMP_NUM_THREADS" in environment:  # ours, not the user's
        lease[THREADS] = environment["OMP_NUM_THREADS"]
    return {**environment, **lease}
