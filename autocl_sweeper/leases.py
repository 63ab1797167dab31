"""Leases of devices, which every sweep of the account on this machine respects.

A lease is a locked file, one per device, in one folder per account and machine. The lock belongs
to the open file, not to a process: a job that inherits the descriptor keeps the device leased
until it ends, however its launcher ended. What NVML says about memory comes seconds late, so the
lease decides, and the reading only refuses devices that somebody else computes on.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autocl_sweeper.devices import Device, Probe, short
from autocl_sweeper.errors import DeviceError


class Lease:
    """A device of ours until every process that has the descriptor closed it or ended.

    Give it to the job with `pass_fds=[lease.fileno()]` (or over a socket), then `close` our own
    copy when the job is reaped. A fork without exec inherits it as well.
    """

    def __init__(self, device_id: str, fd: int) -> None:
        self.device_id = device_id
        self._fd = fd

    def fileno(self) -> int:
        if self._fd < 0:
            raise ValueError(f"the lease of {self.device_id} is closed")
        return self._fd

    def close(self) -> None:
        """Give up our copy; the device stays leased while a job has one. Idempotent."""
        # Never LOCK_UN: it would take the lock from the job too, which shares the open file.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        return f"Lease({self.device_id!r}, fd={self._fd})"


class LeaseFolder:
    """The lock files of one account on one machine, the same for all its sweeps.

    `path` defaults to AUTOCL_LEASE_DIR, else /tmp/autocl-leases-<uid>. Containers that share GPUs
    must share this folder: set AUTOCL_LEASE_DIR to a mounted one. Raises DeviceError when others
    could tamper with it.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is None and os.environ.get("AUTOCL_LEASE_DIR"):
            path = Path(os.environ["AUTOCL_LEASE_DIR"])
        if path is None:
            # Not TMPDIR when it can be helped: two shells with different ones would not see
            # each other's leases.
            base = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir()
            path = Path(base) / f"autocl-leases-{os.geteuid()}"
        self.path = path
        self._prepare()

    def _prepare(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            found = self.path.lstat()
        except OSError as error:
            raise self._unusable(str(error)) from error
        if not stat.S_ISDIR(found.st_mode):
            raise self._unusable("it is not a folder (links are not followed)")
        if found.st_uid != os.geteuid():
            raise self._unusable(f"it belongs to uid {found.st_uid}, and we are {os.geteuid()}")
        if found.st_mode & stat.S_IWOTH:
            raise self._unusable("everybody may write into it; chmod 700 mends that")

    def _unusable(self, why: str) -> DeviceError:
        return DeviceError(
            f"the folder of device leases {self.path} cannot be used: {why}. "
            "Set AUTOCL_LEASE_DIR to a folder that only this account writes"
        )

    def file(self, device_id: str) -> Path:
        """Where the lock of this device lies; `fuser` on it shows the processes that hold it."""
        return self.path / (re.sub(r"[^A-Za-z0-9.-]", "_", device_id) + ".lock")

    def try_lease(self, device_id: str, holder: str) -> Lease | None:
        """The lease, or None while somebody has it. `holder` says to humans what it is for."""
        path = self.file(device_id)
        while True:
            try:
                # Python opens descriptors that do not survive exec: only pass_fds hands them on.
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:  # a cleaner of /tmp took the folder
                self._prepare()
                continue
            except OSError as error:
                raise self._unusable(str(error)) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # We never delete lock files: whoever opened the old file and whoever creates the
                # new one would each hold a lock of "the" device. A cleaner of /tmp may delete
                # one, so look whether the file we locked is still the one others will open.
                if os.path.samestat(os.fstat(fd), path.stat()):
                    break
            except FileNotFoundError:
                pass
            except BlockingIOError:
                os.close(fd)
                return None
            except OSError as error:  # a file system without flock
                os.close(fd)
                raise self._unusable(str(error)) from error
            os.close(fd)
        text = f"pid {os.getpid()}: {holder}\n".encode()
        with suppress(OSError):  # on a full disk the lock still holds
            os.pwrite(fd, text, 0)
            os.ftruncate(fd, len(text))
        return Lease(device_id, fd)

    def holder(self, device_id: str) -> str | None:
        """Who leased the device last, as "pid 4711: boolq/0003"; None: nobody ever.

        Asking whether the lease is still held would mean taking it for a moment, so do not:
        this is for a device that `try_lease` just refused.
        """
        try:
            text = self.file(device_id).read_bytes()[:1000]
        except OSError:
            return None
        line = text.decode(errors="replace").partition("\n")[0].rstrip(": ")
        pid = re.match(r"pid ([0-9]+)", line)
        if pid and not os.path.exists(f"/proc/{pid.group(1)}") and os.path.exists("/proc/self"):
            line += f" (ended; 'fuser {self.file(device_id)}' shows what it left running)"
        return line or None


@dataclass(frozen=True)
class Refusal:
    """Why there is no lease now: a reason for each device that was looked at."""

    count: int
    reasons: Mapping[str, str]  # by device id, in the order of the reading

    def __str__(self) -> str:
        reasons = [f"{short(device_id)} {reason}" for device_id, reason in self.reasons.items()]
        return f"{self.count} wanted: " + "; ".join(reasons)


def lease_free(
    probe: Probe,
    leases: LeaseFolder,
    count: int = 1,
    free_memory: float = 0.8,
    max_devices: int | None = None,
    holder: str = "",
    allow_processes: bool = False,
) -> list[Lease] | Refusal:
    """`count` devices that are free, or none at all and the reasons. Never waits.

    Free: leased by nobody, without a problem, `free_memory` (a share, 0 to 1) of its memory free,
    and, unless `allow_processes`, no foreign process computing on it. What a device does not tell
    does not count against it. Only the first `max_devices` are considered. Raises DeviceError
    when waiting cannot help: there are fewer devices than `count`.
    """
    considered = probe.devices()[:max_devices]
    # CUDA shows a process one MIG device, whatever the mask lists.
    able = [device for device in considered if count == 1 or not device.id.startswith("MIG-")]
    if not 1 <= count <= len(able):
        raise DeviceError(
            f"a job wants {count} devices, and {len(able)} can serve it (max_devices="
            f"{max_devices}; a MIG device serves only jobs of one device): "
            + (", ".join(f"{short(device.id)} {device.name}" for device in considered) or "none")
        )

    def unfit(device: Device | None) -> str:
        if device is None:
            return "is gone"
        if device.problem:
            return device.problem
        if device.total_mib is not None and device.free_mib is not None:
            needed_mib = math.ceil(free_memory * device.total_mib)
            if device.free_mib < needed_mib:
                share = int(100 * device.free_mib / device.total_mib)
                return (
                    f"has only {share} % of {device.total_mib} MiB free "
                    f"({device.free_mib} MiB, free_memory={free_memory} asks for {needed_mib})"
                )
        if device.processes and not allow_processes:
            return f"is in use: {device.processes} foreign process(es), see nvidia-smi"
        return ""

    reasons: dict[str, str] = {}
    taken: list[str] = []
    held: dict[str, Lease] = {}
    untried = list(able)
    try:
        while len(held) < count:
            # Stop when the rest cannot suffice: of two sweeps that each hold a part, the one
            # that is behind gives way, and the other finds all it needs.
            if len(held) + len(untried) < count:
                break
            device = untried.pop(0)
            if reason := unfit(device):
                reasons[device.id] = reason
            elif (lease := leases.try_lease(device.id, holder)) is None:
                taken.append(device.id)
            else:
                held[device.id] = lease
            if len(held) == count:
                # The reading is older than the leases: a job of another sweep may have
                # come and gone between them and left memory behind.
                now = {device.id: device for device in probe.devices()}
                for device_id in list(held):
                    if reason := unfit(now.get(device_id)):
                        reasons[device_id] = reason
                        held.pop(device_id).close()
        if len(held) == count:
            return list(held.values())
    except BaseException:
        for lease in held.values():
            lease.close()
        raise
    for device_id in taken:
        reasons[device_id] = f"is leased by {leases.holder(device_id) or 'somebody'}"
    for lease in held.values():
        lease.close()
        reasons[lease.device_id] = "is free, but does not suffice"
    for device in untried:
        reasons[device.id] = unfit(device) or "was not tried: it could not suffice"
    return Refusal(count, {device.id: reasons[device.id] for device in able})
