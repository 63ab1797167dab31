"""The devices that jobs of one executor may get, and the rule by which they get them."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autocl_sweeper.device.choice import Refusal, lease_free, refuse_too_few
from autocl_sweeper.device.leases import Lease, LeaseFolder
from autocl_sweeper.device.packing import Claim
from autocl_sweeper.device.probe import Device, Probe, find_probe, short
from autocl_sweeper.device.reservations import Reservation, Reservations, Used
from autocl_sweeper.errors import ConfigurationError, DeviceError, InfeasibleBudgetError
from autocl_sweeper.types import Need

log = logging.getLogger(__name__)

# How long a device must be in trouble, seen at least twice, before it is taken out of service.
LOST_S = 1.0  # it says that it is lost or needs a reset
SICK_S = 30.0  # it cannot be asked for another reason; jobs on it may be well all the same

DEVICES = "AUTOCL_DEVICES"  # in a job's environment: what is leased to it, with commas
THREADS = "AUTOCL_THREADS"  # likewise: the OMP_NUM_THREADS that we chose for the whole job
LEASE_MIB = "AUTOCL_MEMORY_MIB"  # what it reserves on each of its devices, where it may share them
SHARE = "AUTOCL_MEMORY_FRACTION"  # the share of a device's memory that its tensors may take then


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
        """MiB in use on a device before the first of those that are on it now came; None: not known."""
        return {lease.device_id: lease.claim.base_mib for lease in self.leases}

    @property
    def reserved(self) -> tuple[int | None, str]:
        """MiB of the job on each of its devices, the most of them, and where the figure is from."""
        if self.alone:
            return None, "alone"
        claims = [lease.claim for lease in self.leases]
        most = max(claims, key=lambda claim: claim.reserved_mib or 0)
        return most.reserved_mib, most.source

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
    keep_free_mib: int = 0
    reservations: Reservations = field(default_factory=Reservations)
    refusal: str = ""  # why the last `acquire` gave nothing; empty when it gave
    clock: Callable[[], float] = time.monotonic
    retired: dict[str, str] = field(default_factory=dict)  # id -> why it is out of service
    lost: set[str] = field(default_factory=set)  # those of them on which no job can go on
    # Stages and needs of the jobs started last, the newest last: the next one is most likely alike.
    _latest: list[tuple[int, Need]] = field(default_factory=lambda: [(0, Need())])
    _seen: dict[str, Device] = field(default_factory=dict)  # at the last reading
    # Keys of jobs that were over, or ran for long, without memory that NVML could show.
    _unseen: set[str] = field(default_factory=set)
    _trouble: dict[str, float] = field(default_factory=dict)  # id -> when it began
    _contested: set[str] = field(default_factory=set)  # leased twice, after a lock file was deleted
    _watching: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, settings: Mapping[str, Any], holder: str) -> Pool:
        """The pool that the keys of hydra/launcher=gpu describe, checked.

        Raises ConfigurationError, and DeviceError when no device here could ever serve a job.
        """
        slots = settings["cpu_slots"]
        share = "a share from 0 to 1 is needed (0.8: four fifths of a device are free of others)"
        pause = "the seconds between two starts on a device cannot be negative"
        kept = "the memory of a device that no job gets cannot be negative"
        rules = {
            "free_memory": (0, 1, share),
            "stagger_s": (0, math.inf, pause),
            "keep_free_mib": (0, math.inf, kept),
        }
        numbers = ("devices_per_job", "jobs_per_device", "max_devices", "memory_per_job_mib")
        rules |= dict.fromkeys(numbers, (1, math.inf, "at least 1 is needed"))
        for key, (least, most, rule) in rules.items():
            if (value := settings[key]) is not None and not least <= value <= most:
                raise ConfigurationError(
                    f"hydra.launcher.{key}={value:g}: {rule}. No job was started."
                )
        alike = ("free_memory", "max_devices", "jobs_per_device", "memory_per_job_mib", "stagger_s",
                 "keep_free_mib")  # fmt: skip
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
        if needed_mib is not None and not self.probe.measured:
            log.warning(
                f"hydra.launcher.memory_per_job_mib={needed_mib} has no effect on CPU slots: they"
                f" are shared by number alone (jobs_per_device={self.jobs_per_device})"
            )
            self.memory_per_job_mib = None
        elif needed_mib is not None and (said := self._too_much(needed_mib)):
            raise DeviceError(
                f"hydra.launcher.memory_per_job_mib={needed_mib} is more than {said}"
                "\n  Lower it, make the job smaller, or leave it out to give each job a whole"
                " device. No job was started."
            )

    def _too_much(self, needed_mib: int) -> str:
        """Why a job that reserves so much on each of its devices never fits; empty when it may."""
        considered = self.devices()[: self.max_devices]
        least_mib = needed_mib + self.keep_free_mib
        if sum(d.total_mib is None or d.total_mib >= least_mib for d in considered) >= self.count:
            return ""
        kept = f" less keep_free_mib={self.keep_free_mib}" if self.keep_free_mib else ""
        lines = "\n".join(f"  {short(d.id)} {d.name}: {d.total_mib} MiB{kept}" for d in considered)
        whose = "any device has" if self.count == 1 else "enough devices have"
        of_each = f"A job reserves it on each of its devices (devices_per_job={self.count})."
        return f"{whose}:\n{lines}\n  {of_each}"

    def refuse_budget(self, need: Need) -> None:
        """Raises InfeasibleBudgetError for a budget that no device has, of a job that may share one."""
        if not self.shares or need.budget_mib is None or not need.capped:
            return
        if said := self._too_much(need.budget_mib):
            raise InfeasibleBudgetError(
                f"the job's memory budget of {need.budget_mib} MiB (memory.budget_gib) is more than"
                f" {said}\n  Lower the budget, or give jobs whole devices"
                " (hydra.launcher.jobs_per_device=1)."
            )

    @property
    def shares(self) -> bool:
        """Whether jobs may share devices at all."""
        return self.jobs_per_device > 1 or self.memory_per_job_mib is not None

    def acquire(
        self,
        *,
        alone: bool = False,
        stage: int | None = None,
        need: Need | None = None,
        insist: bool = False,
    ) -> Grant | None:
        """Devices for one job, or None while none is free.

        `alone`: no other job on them, even if the pool allows sharing. With `alone` or `insist`, the
        shared device with the fewest jobs takes no further ones until it is empty. `stage` and
        `need` describe the job. None: it is not known yet. Then the smaller need of the last two
        kinds of jobs counts, and the caller asks `suits` once it knows the job.
        Raises DeviceError if none can ever be: too few devices, or too few still in service.
        """
        alike = self._latest if stage is None else [(stage, need or Need())]
        shared = self.shares and not alone
        claim = Claim(os.getpid(), self.holder)
        if shared:
            claim = replace(claim, limit=self.jobs_per_device if self.jobs_per_device > 1 else None)

        def claim_on(device: Device) -> Claim:
            found = [self._claim(claim, device, one, of) for one, of in reversed(alike)]
            known = [one for one in found if one.reserved_mib is not None]
            return min(known, key=lambda one: one.reserved_mib or 0, default=found[0])

        found = lease_free(
            self,
            self.leases,
            self.count,
            self.free_memory,
            self.max_devices,
            claim=claim,
            claim_on=claim_on if shared else None,
            stagger_s=self.stagger_s,
            retired=dict(self.retired),
            insist=alone or insist,
            keep_free_mib=self.keep_free_mib,
        )
        if isinstance(found, Refusal):
            self.refusal = str(found)
            return None
        self.refusal = ""
        ids = [lease.device_id for lease in found]
        return Grant(found, told(ids, self.probe.environment(ids)), alone=claim.limit == 1)

    def _claim(self, claim: Claim, device: Device, stage: int, need: Need) -> Claim:
        """A claim to share a device with what such a job reserves there."""
        reservation = self.reservation(need, stage, device.name)
        if not self.probe.measured:  # CPU slots are shared by number alone
            return replace(claim, stage=stage)
        unknown = reservation.mib is None and (reservation.alone or need.key not in self._unseen)
        by_number = reservation.mib is None and not unknown
        return replace(
            claim,
            reserved_mib=reservation.mib,
            declared_mib=self.memory_per_job_mib,
            stage=stage,
            like=hashlib.sha256(need.key.encode()).hexdigest()[:12] if need.key else "",
            unknown=unknown,
            source="number" if by_number else reservation.source,
        )

    def suits(self, grant: Grant, stage: int, need: Need) -> bool:
        """Whether devices leased before the job was known serve it; their claims are the job's then."""
        if grant.alone:
            return True
        exact = [
            (lease, self._claim(lease.claim, self.known(lease.device_id), stage, need))
            for lease in grant.leases
        ]
        for lease, claim in exact:
            before_mib = lease.claim.reserved_mib or 0
            if claim.unknown > lease.claim.unknown or (claim.reserved_mib or 0) > before_mib:
                return False
        for lease, claim in exact:
            lease.note(claim)
        return True

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
        held = [lease for name in ids if (lease := self.leases.try_lease(name, self.holder))]
        return Grant(held, {}) if held else None

    # -- memory --

    def reservation(self, need: Need, stage: int, gpu: str = "") -> Reservation:
        """What a job reserves on each of its devices of this model."""
        return self.reservations.of(need, stage, gpu, self.memory_per_job_mib)

    def must_be_alone(self, need: Need) -> bool:
        """Whether jobs with this need run alone: one of them ran out of memory beside others."""
        return self.shares and self.reservation(need, 0).alone

    def began(self, grant: Grant, session: int, stage: int, need: Need) -> None:
        """A job runs on these devices, in this session: tell the other sweeps too."""
        others = [one for one in self._latest if one != (stage, need)]
        self._latest = [*others[-1:], (stage, need)]
        for lease in grant.leases:
            lease.note(replace(lease.claim, job=session))

    def environment(self, grant: Grant, need: Need, stage: int) -> dict[str, str]:
        """How a job that may share its devices learns what it reserves, and to which share that is."""
        mib, _ = grant.reserved
        if grant.alone or mib is None or not self.probe.measured:
            return {}
        found = {LEASE_MIB: str(mib)}
        shares = [
            self.reservation(need, stage, device.name).share_of(device.total_mib)
            for device in map(self.known, grant.ids)
        ]
        known = [share for share in shares if share is not None]
        return found | ({SHARE: f"{min(known):.4f}"} if known else {})

    def learn(self, used: Used) -> None:
        """Record what a finished job used."""
        stage, need, gpu = used.stage, used.need, used.gpu
        before = self.reservation(need, stage, gpu)
        self.reservations.learn(used)
        if used.sampled_mib == 0 and used.reserved_mib is None:
            self._unseen.add(need.key)
        now = self.reservation(need, stage, gpu)
        if self.shares and now.mib != before.mib:
            peak_mib, finished = self.reservations.finished(need, stage)
            why = f"the largest of {finished} used {peak_mib}"
            if now.source != "sampled":
                why = "by the peak they reported" if now.source == "reported" else now.source
            log.info(f"jobs{_kind(stage, need)} reserve {now.mib} MiB from now on: {why}")

    def expect(self, peak_mib: int, need: Need | None = None, gpu: str = "") -> None:
        """A job that still runs has used so much at most, and no more for a while.

        0: nothing was to be seen of it, and so jobs share by their number alone until one is seen.
        """
        need = need or Need()
        if not peak_mib:
            self._unseen.add(need.key)
            return
        news = self.reservations.expect(peak_mib, need, gpu)
        if self.shares and news and self.memory_per_job_mib is None:
            found = self.reservation(need, 0, gpu)
            log.info(
                f"jobs{_kind(0, need)} reserve {found.mib} MiB until one has finished: one that runs"
                f" uses {peak_mib}"
            )

    def known(self, device_id: str) -> Device:
        """A device as it was at the last reading."""
        return self._seen.get(device_id) or Device(device_id, "")

    # -- health --

    def devices(self, load: bool = False) -> list[Device]:
        """A fresh reading, which also decides who stays in service."""
        found = self.probe.devices(load)
        self._seen = {device.id: device for device in found}
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


def _kind(stage: int, need: Need) -> str:
    of_stage = f" of stage {stage}" if stage else ""
    return f"{of_stage} with {need.key}" if need.key else of_stage
