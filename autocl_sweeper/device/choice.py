"""Which devices a job gets: those that are free, or the reason against each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from autocl_sweeper.device.leases import Lease, LeaseFolder, Occupied
from autocl_sweeper.device.packing import Claim, base_of, refusal
from autocl_sweeper.device.probe import Device, short
from autocl_sweeper.errors import DeviceError


@dataclass(frozen=True)
class Refusal:
    """Why there is no lease now: a reason for each device that was looked at."""

    count: int
    reasons: Mapping[str, str]  # by device id, in the order of the reading

    def __str__(self) -> str:
        reasons = [f"{short(device_id)} {reason}" for device_id, reason in self.reasons.items()]
        return f"{self.count} wanted: " + "; ".join(reasons)


class Readable(Protocol):
    def devices(self) -> list[Device]: ...


def lease_free(
    probe: Readable,
    leases: LeaseFolder,
    count: int = 1,
    free_memory: float = 0.8,
    max_devices: int | None = None,
    *,
    claim: Claim | None = None,
    claim_on: Callable[[Device], Claim] | None = None,
    stagger_s: float = 0.0,
    retired: Mapping[str, str] = {},
    insist: bool = False,
    keep_free_mib: int = 0,
) -> list[Lease] | Refusal:
    """`count` devices that are free, or none at all and the reasons. Never waits.

    A device is free if it has no lease and no problem, no foreign process computes on it, and
    `free_memory` (a share, 0 to 1) of its memory is unused. A figure it does not give is no reason.
    A `claim` whose limit is not 1 is content with a place beside others (`packing.refusal`
    decides), and the emptiest devices come first; `claim_on` gives it for each
    device, with what such a job reserves there. Devices on which a job started less than
    `stagger_s` ago wait. Who wants an empty device, and gets none because others share them, has
    one emptied if it has no device at all, or with `insist`. Only the first `max_devices` are
    considered, and of them not the `retired` (id -> why). Raises DeviceError when waiting cannot
    help: there are fewer devices than `count`.
    """
    claim = claim or Claim(os.getpid())
    own = claim_on or (lambda device: claim)
    considered = probe.devices()[:max_devices]
    # CUDA shows a process one MIG device, whatever the mask lists.
    able = [device for device in considered if count == 1 or not device.id.startswith("MIG-")]
    refuse_too_few(count, max_devices, considered, retired)
    able = [device for device in able if device.id not in retired]
    wants_all = claim.limit == 1 or any(own(d).unknown for d in able if d.total_mib is not None)
    seen: dict[str, Occupied] = {}

    def unfit(device: Device | None, occupied: Occupied) -> str:
        if device is None:
            return "has disappeared"
        theirs = occupied.claims
        reason = refusal(device, theirs, own(device), free_memory, keep_free_mib=keep_free_mib)
        if reason.startswith("is leased by"):
            return f"is leased by {'; '.join(leases.words(device.id, one) for one in theirs)}"
        return reason

    def objection(device: Device, occupied: Occupied) -> str:
        seen[device.id] = occupied
        if occupied.wanted_by is not None and not (wants_all or insist):
            return f"is kept for {occupied.wanted_by}, which waits to have it alone"
        # The same words each time: who waits logs a reason when it changes.
        if 0 <= time.time() - occupied.last_start < stagger_s:
            return f"had a start less than {stagger_s:g} s ago (stagger_s)"
        return unfit(device, occupied)

    reasons: dict[str, str] = {}
    held: dict[str, Lease] = {}
    untried = list(able)
    if claim.limit != 1:
        untried.sort(key=lambda device: len((leases.look(device.id) or Occupied()).claims))
    with ExitStack() as given_back:
        # Stop when too few are left to try. If two sweeps each hold some of the devices, the one
        # that holds fewer gives up first, and the other gets all it needs.
        while len(held) < count <= len(held) + len(untried):
            device = untried.pop(0)
            dated = replace(own(device), since=time.time(), base_mib=None)
            taken = leases.take(device.id, dated, partial(objection, device))
            if isinstance(taken, str):
                reasons[device.id] = taken
                continue
            held[device.id] = given_back.enter_context(closing(taken))
            taken.note(replace(taken.claim, base_mib=base_of(device, seen[device.id].claims)))
            if len(held) == count:
                # The reading is older than the leases: a job of another sweep may have
                # come and gone between them and left memory behind.
                now = {device.id: device for device in probe.devices()}
                for device_id in list(held):
                    if reason := unfit(now.get(device_id), seen[device_id]):
                        reasons[device_id] = reason
                        held.pop(device_id).close()
        if len(held) == count:
            if wants_all or insist:
                for device in able:
                    leases.unwant(device.id, claim.pid)
            given_back.pop_all()
            return list(held.values())
    reasons |= dict.fromkeys(held, "is free, but one alone is not enough")
    for device in untried:
        reason = unfit(device, Occupied())
        reasons[device.id] = reason or "was not tried: it would not be enough"
    # A device that this sweep already has becomes free in time: no other has to be emptied for it.
    has_one = any(other.pid == claim.pid for there in seen.values() for other in there.claims)
    if insist or (wants_all and not has_one):
        _want_shared(leases, able, seen, count, claim)
    return Refusal(count, {d.id: reasons[d.id] for d in considered if d.id in reasons})


def _want_shared(
    leases: LeaseFolder,
    able: Sequence[Device],
    seen: Mapping[str, Occupied],
    count: int,
    claim: Claim,
) -> None:
    """Ask for one shared device to be emptied: else jobs that share it may follow each other for ever.

    One that is ours already comes first, then the one with the fewest jobs.
    """
    shared = []
    for device in able:
        there = seen.get(device.id, Occupied())
        joined = there.claims and all(other.limit != 1 for other in there.claims)
        other = there.wanted_by
        if joined and not device.problem and (other is None or other.pid == claim.pid):
            shared.append((other is None, len(there.claims), device.id))
    for _, _, device_id in sorted(shared)[:count]:
        leases.want(device_id, claim)


def refuse_too_few(
    count: int,
    max_devices: int | None,
    considered: Sequence[Device],
    retired: Mapping[str, str] = {},
) -> None:
    """Raises DeviceError when no waiting gives a job `count` devices, and says why for each."""
    faults = {}
    for device in considered:
        if count > 1 and device.id.startswith("MIG-"):
            faults[device.id] = "a MIG device serves only jobs of one device"
        elif device.id in retired:
            faults[device.id] = f"out of service: {retired[device.id]}"
    serving = len(considered) - len(faults)
    if 1 <= count <= serving:
        return
    seen = [
        f"  {short(device.id)} {device.name}: "
        f"{faults.get(device.id) or device.problem or 'can serve'}"
        for device in considered
    ]
    raise DeviceError(
        f"a job wants {count} devices, and {serving} can serve it "
        f"(hydra.launcher.devices_per_job={count}, max_devices={max_devices}):\n"
        + ("\n".join(seen) or "  no device is there")
        + (
            "\n  What finished is kept. Repair the devices out of service, or leave them out"
            " (CUDA_VISIBLE_DEVICES), then rerun the same command."
            if retired
            else "\n  Ask for fewer, or show the sweep more (max_devices, CUDA_VISIBLE_DEVICES)."
        )
    )
