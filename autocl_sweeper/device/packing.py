"""Whether one more job may join a device: arithmetic on a reading and on what is claimed there.

A job counts as the larger of what it reserved and what it uses: while it loads, its use says
nothing yet. What nobody of us claims is foreign, and counts too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from autocl_sweeper.device.probe import Device


@dataclass(frozen=True)
class Claim:
    """One job's claim to a device, as its lock file tells the other sweeps of the account."""

    pid: int = 0  # who made it: the controller of a sweep
    holder: str = ""  # what for, in words for humans
    since: float = 0.0  # seconds since 1970
    job: int | None = None  # the session the job's processes are in; None until it has started
    # How many jobs its sweep wants on the device at most: 1 shares with nobody; None: memory decides.
    limit: int | None = 1
    reserved_mib: int | None = None  # None: nobody said, and nothing was measured
    declared_mib: int | None = None  # if set, its sweep shares only with those who reserve
    base_mib: int | None = None  # in use there before the first of those who hold it now came
    stage: int = 0
    like: str = ""  # the same for all jobs of its sweep that need the same memory
    unknown: bool = False  # what it needs: a job of another kind does not join it
    source: str = ""  # where the reservation is from

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"pid {self.pid}: {self.holder}{job}".rstrip(": ")


@dataclass(frozen=True)
class Use:
    """Who computes on a device. `by_job`: session -> MiB; None when NVML does not tell."""

    by_job: Mapping[int, int] | None
    strangers: Sequence[int] = ()  # pids that belong to none of the jobs


Relatives = Callable[[int], Collection[int] | None]


def relatives(pid: int) -> Collection[int] | None:
    """A process, its session and its ancestors; None when no such process is to be seen here.

    Inside a container the pids that NVML tells may be the host's.
    """
    try:
        found = {pid, os.getsid(pid)}
    except OSError:
        return None
    while pid > 1:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # it ended while we looked
            break
        found.add(pid)
    return found


def use_of(device: Device, jobs: Collection[int], related: Relatives = relatives) -> Use:
    """What each of `jobs` (sessions) uses, 0 for one that has not begun to compute.

    A process in a session of its own still belongs to the job it descends from.
    """
    by_job = dict.fromkeys(jobs, 0)
    strangers = []
    told = True
    for pid, used_mib in (device.processes or {}).items():
        kin = related(pid)
        job = next((job for job in jobs if kin is not None and job in kin), None)
        if job is not None:
            told = told and used_mib is not None
            by_job[job] += used_mib or 0
        elif kin is None and jobs:
            told = False  # it may be one of ours under a number of the host
        else:
            strangers.append(pid)
    # A list without any of ours may be one that leaves containers out.
    told = told and any(by_job.values()) if jobs else device.processes is not None
    return Use(by_job if told else None, strangers)


@dataclass(frozen=True)
class Balance:
    """MiB on a device: what is foreign, and what all the claims on it count as together."""

    foreign_mib: int
    claimed_mib: int


def balance(device: Device, claims: Sequence[Claim], ours: Claim, use: Use) -> Balance | None:
    """None when the device does not tell its memory.

    Where NVML does not tell whose memory it is, foreign is what was in use before the jobs came,
    and the jobs count as the larger of all they reserved and all that came on top.
    """
    if device.total_mib is None or device.free_mib is None:
        return None
    used_mib = device.total_mib - device.free_mib
    if not claims:
        return Balance(used_mib, 0)
    reserved = [_reserved_mib(claim, ours) for claim in claims]
    if use.by_job is None:
        base_mib = base_of(device, claims)
        return Balance(base_mib, max(sum(reserved), used_mib - base_mib))
    jobs_mib = [use.by_job.get(claim.job or 0, 0) for claim in claims]
    return Balance(
        max(0, used_mib - sum(jobs_mib)),
        sum(max(pair) for pair in zip(reserved, jobs_mib, strict=True)),
    )


def base_of(device: Device, claims: Sequence[Claim]) -> int:
    """MiB that were in use before the first of the jobs that hold the device now."""
    if not claims and device.total_mib is not None and device.free_mib is not None:
        return device.total_mib - device.free_mib
    return min((claim.base_mib for claim in claims if claim.base_mib is not None), default=0)


def _alike(claim: Claim, ours: Claim) -> bool:
    same_kind = (claim.holder, claim.like) == (ours.holder, ours.like)
    return same_kind and (claim.unknown or claim.stage == ours.stage)


def _reserved_mib(claim: Claim, ours: Claim) -> int:
    """A job like ours that started before anything was measured counts as ours now does."""
    if claim.reserved_mib is None:
        return (ours.reserved_mib or 0) if _alike(claim, ours) else 0
    return claim.reserved_mib


def refusal(
    device: Device,
    claims: Sequence[Claim],
    ours: Claim,
    free_memory: float,
    related: Relatives = relatives,
    keep_free_mib: int = 0,
) -> str:
    """Why a job with the claim `ours` may not join those of `claims` there; empty when it may.

    The strictest claim decides: no job joins where one wants or has the device alone, and there are
    never more jobs than each of them allows. `free_memory`: the share of the memory (0 to 1) that
    other programs must leave free when the first job comes. `keep_free_mib` is given to no job.
    """
    if device.problem:
        return device.problem
    strict = next((claim for claim in claims if claim.limit == 1), None)
    if strict or (claims and ours.limit == 1):
        return f"is leased by {'; '.join(map(str, claims))}"
    limits = [limit for limit in (ours.limit, *(c.limit for c in claims)) if limit is not None]
    if limits and len(claims) >= min(limits):
        return f"has {len(claims)} jobs, as many as all who use it allow (jobs_per_device)"
    if claims and ours.limit is None and device.total_mib is None:
        return "does not tell its memory, so memory_per_job_mib cannot share it"
    for claim in claims:
        if claim.holder != ours.holder and (
            (claim.declared_mib is not None and ours.reserved_mib is None)
            or (ours.declared_mib is not None and claim.reserved_mib is None)
        ):
            return f"is shared by memory with {claim}: a job that reserves none cannot join"
    if device.total_mib is not None:
        dark = [c for c in claims if c.unknown and not (_alike(c, ours) and not ours.unknown)]
        if dark or (claims and ours.unknown):
            return (
                "has a job, and it is not known yet what memory such jobs need: another one"
                " joins when that is measured or the job is over (memory_per_job_mib sets it at once)"
            )
    use = use_of(device, [claim.job for claim in claims if claim.job is not None], related)
    if use.strangers:
        return f"is in use: {len(use.strangers)} foreign process(es), see nvidia-smi"
    found = balance(device, claims, ours, use)
    if found is None:
        return ""
    assert device.total_mib is not None
    free_mib = device.total_mib - found.foreign_mib
    needed_mib = math.ceil(free_memory * device.total_mib)
    if not claims and free_mib < needed_mib:
        share = int(100 * free_mib / device.total_mib)
        return (
            f"has only {share} % of {device.total_mib} MiB free "
            f"({free_mib} MiB, free_memory={free_memory} asks for {needed_mib})"
        )
    left_mib = free_mib - found.claimed_mib - keep_free_mib
    kept = f", {keep_free_mib} kept free" if keep_free_mib else ""
    # A measured peak with its margin may exceed any device, and the job runs well on an empty one.
    reserved_mib = ours.reserved_mib if claims else ours.declared_mib
    if reserved_mib is not None and reserved_mib > left_mib:
        return (
            f"has {left_mib} of {device.total_mib} MiB to give, and a job reserves "
            f"{reserved_mib} ({found.foreign_mib} foreign, {found.claimed_mib} for "
            f"{len(claims)} job(s) there{kept})"
        )
    return ""
