"""Which devices a job may use: a fresh reading of them, and leases every sweep respects.

A lease is a locked file, one per device, in one folder per account and machine. The lock belongs
to the open file, not to a process: a job that inherits the descriptor keeps the device leased
until it ends, however its launcher ended. What NVML says about memory comes seconds late, so the
lease decides, and the reading only refuses devices that somebody else computes on.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from autocl_sweeper.errors import ConfigurationError, DeviceError

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
# How a parent says "no GPU from here on". Slurm writes NoDevFiles for a job that asked for none.
_END = ("-1", "NoDevFiles")
_MIB = 2**20


@dataclass(frozen=True)
class Device:
    """One thing to lease, as it was at the moment of a reading."""

    id: str  # UUID, "GPU-..." or "MIG-..."; "cpu-0" for a CPU slot
    name: str
    total_mib: int | None = None  # None: not known (a CPU slot, or memory shared with the host)
    free_mib: int | None = None
    processes: int | None = None  # computing on it, this process not counted; None: not known
    problem: str = ""  # why it cannot be used now, in NVML's words


def short(device_id: str) -> str:
    """The id as a log line says it: GPU-3f1c2a4b."""
    known = re.match(r"(GPU|MIG)-[0-9a-f]{8}(?=-)", device_id)
    return known.group() if known else device_id


class Probe(Protocol):
    def devices(self) -> list[Device]:
        """A fresh reading of every device in the pool; the same order each time."""
        ...

    def environment(self, ids: Sequence[str]) -> dict[str, str]:
        """The variables that make these devices, and no others, visible to a job."""
        ...


def find_probe(cpu_slots: int | None, environ: Mapping[str, str]) -> Probe:
    """The GPUs `environ` lets us use; CPU slots where there is none.

    `cpu_slots=None`: as many as there are cores for jobs of OMP_NUM_THREADS threads. Raises
    DeviceError when there are GPUs that cannot be read, or CUDA_VISIBLE_DEVICES names one that
    does not exist: training on the CPU by mistake wastes a night.
    """
    visible = environ.get(VISIBLE)
    if visible is not None and not _entries(visible):
        return CpuProbe(cpu_slots, environ, hide_gpus=True)
    try:
        return NvmlProbe(environ)
    except _NoGPU as none:
        cpu = CpuProbe(cpu_slots, environ)
        level = logging.INFO if visible is None else logging.WARNING
        named = "" if visible is None else f"; {VISIBLE}={visible} has no effect"
        log.log(level, "no GPU (%s): jobs run on %d CPU slots%s", none, cpu.slots, named)
        return cpu


class _NoGPU(DeviceError):
    """There is no GPU here for us; not a fault."""


def _cuda_environment(ids: Sequence[str]) -> dict[str, str]:
    # By UUID the order setting is without effect on the mask, but some programs go on to ask
    # NVML for their device by number: then both must count alike.
    return {VISIBLE: ",".join(ids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _entries(visible: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES lists, up to the entry that ends it on purpose."""
    listed = visible.strip(" ,")
    entries = [entry.strip() for entry in listed.split(",")] if listed else []
    ends = [place for place, entry in enumerate(entries) if entry in _END]
    return entries[: ends[0]] if ends else entries


class NvmlProbe:
    """NVIDIA GPUs and MIG devices, in PCI order or as CUDA_VISIBLE_DEVICES lists them.

    A GPU in MIG mode is not a device, its instances are; naming the GPU means all of them.
    An error of one GPU becomes its `problem`, the others stay usable. Raises DeviceError when the
    driver cannot be asked at all or CUDA_VISIBLE_DEVICES does not fit.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = environ or {}
        try:
            import pynvml  # type: ignore[import-untyped, unused-ignore]
        except ImportError as error:
            raise DeviceError(
                f"cannot look for GPUs: {error}. Install nvidia-ml-py, "
                f'or set {VISIBLE}="" to run on CPU slots'
            ) from error
        self._nvml: Any = pynvml
        try:
            # Never shut down: other libraries of this process use NVML too, and it ends with us.
            pynvml.nvmlInit()
            self._count: int = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            if error.value in (
                pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
                pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
                28,  # GPU_NOT_FOUND; older versions of the module have no name for it
            ):
                raise _NoGPU(_words(error)) from error
            raise DeviceError(
                f"the NVIDIA driver is installed but cannot be asked: "
                f"{_words(error)}. After a driver update the machine needs a restart; nvidia-smi should say the "
                f'same. To run on CPU slots instead, set {VISIBLE}=""'
            ) from error
        self._seen: dict[int, tuple[str, str]] = {}  # number -> UUID and name of a GPU
        self._pool: list[str] | None = None
        found = self._read()
        visible = environ.get(VISIBLE)
        if visible is not None:
            self._pool = self._resolve(visible, found, environ)
        elif not found:
            raise _NoGPU("NVML shows no GPU that this account may use")

    def devices(self) -> list[Device]:
        found = self._read()
        if self._pool is None:
            return [device for _, device in found]
        # A dictionary, because a pool may name a GPU and one of its MIG devices.
        chosen = {
            device.id: device
            for name in self._pool
            for gpu, device in found
            if name in (gpu, device.id)
        }
        return list(chosen.values())

    def environment(self, ids: Sequence[str]) -> dict[str, str]:
        return _cuda_environment(ids)

    def _read(self) -> list[tuple[str, Device]]:
        """(UUID of the GPU, device) in PCI order; several for a GPU in MIG mode."""
        return [
            (gpu, device) for number in range(self._count) for gpu, device in self._read_gpu(number)
        ]

    def _read_gpu(self, number: int) -> Iterator[tuple[str, Device]]:
        nvml = self._nvml
        # A lost GPU does not even give its UUID: remember, so that it keeps its name and place.
        uuid, name = self._seen.get(number, (f"GPU number {number}", "unknown"))
        try:
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
            except nvml.NVMLError as error:
                # NVML counts GPUs that a container or Slurm keeps from us; CUDA does not.
                if error.value == nvml.NVML_ERROR_NO_PERMISSION and number not in self._seen:
                    return
                raise
            uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
            self._seen[number] = uuid, name
            if not self._in_mig_mode(handle):
                problem = ""
                if self._optional(nvml.nvmlDeviceGetComputeMode, handle) == (
                    nvml.NVML_COMPUTEMODE_PROHIBITED
                ):
                    problem = "its compute mode is Prohibited (nvidia-smi -c 0 allows jobs)"
                yield uuid, self._read_device(handle, uuid, name, problem)
                return
            instances = list(self._mig_handles(handle))
        except nvml.NVMLError as error:
            yield uuid, Device(uuid, name, problem=_words(error))
            return
        if not instances:
            yield uuid, Device(uuid, name, problem="in MIG mode without a compute instance")
        for handle in instances:
            try:
                part = nvml.nvmlDeviceGetUUID(handle)
                title = self._optional(nvml.nvmlDeviceGetName, handle) or f"MIG of {name}"
                yield uuid, self._read_device(handle, part, title)
            except nvml.NVMLError as error:
                # Destroyed while we looked; or the GPU is lost, which its parent tells next time.
                log.debug("a MIG device of %s is left out: %s", uuid, error)

    def _read_device(self, handle: Any, uuid: str, name: str, problem: str = "") -> Device:
        try:
            total_mib, free_mib = self._memory_mib(handle)
        except self._nvml.NVMLError as error:
            return Device(uuid, name, problem=problem or _words(error))
        return Device(uuid, name, total_mib, free_mib, self._processes(handle), problem)

    def _memory_mib(self, handle: Any) -> tuple[int | None, int | None]:
        nvml = self._nvml
        try:
            try:
                memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
            except nvml.NVMLError as error:
                if error.value not in (
                    nvml.NVML_ERROR_FUNCTION_NOT_FOUND,  # drivers before 510
                    25,  # ARGUMENT_VERSION_MISMATCH
                ):
                    raise
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            # Boards that share the host's memory (GB10, Jetson) have none of their own to tell.
            if error.value == nvml.NVML_ERROR_NOT_SUPPORTED:
                return None, None
            raise
        # `used` counts the driver's reserve in one version and not in the other: never read it.
        return memory.total // _MIB, memory.free // _MIB

    def _processes(self, handle: Any) -> int | None:
        nvml = self._nvml
        try:
            try:
                running = nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
            except nvml.NVMLError as error:
                if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                    raise
                running = nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle)
        except nvml.NVMLError:  # not permitted, not supported: memory has to tell
            return None
        # A script that touched CUDA while Hydra loaded it must not lock itself out for ever.
        return len([process for process in running if process.pid != os.getpid()])

    def _in_mig_mode(self, handle: Any) -> bool:
        try:
            current, _ = self._nvml.nvmlDeviceGetMigMode(handle)
        except self._nvml.NVMLError as error:
            if error.value in (
                self._nvml.NVML_ERROR_NOT_SUPPORTED,
                self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            ):
                return False
            raise
        return bool(current)

    def _mig_handles(self, handle: Any) -> Iterator[Any]:
        nvml = self._nvml
        for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            except nvml.NVMLError as error:
                if error.value != nvml.NVML_ERROR_NOT_FOUND:  # places have gaps
                    raise

    def _optional(self, function: Any, handle: Any) -> Any:
        try:
            return function(handle)
        except self._nvml.NVMLError:
            return None

    def _resolve(
        self, visible: str, found: Sequence[tuple[str, Device]], environ: Mapping[str, str]
    ) -> list[str]:
        """UUIDs of GPUs and MIG devices that CUDA_VISIBLE_DEVICES names.

        CUDA drops everything from the first entry it does not understand; a sweep would then run
        on less than was asked for without a word, so here such an entry raises.
        """
        gpus = list(dict.fromkeys(gpu for gpu, _ in found))
        ids = list(dict.fromkeys([*gpus, *(device.id for _, device in found)]))
        pool: list[str] = []
        for entry in _entries(visible):
            if re.fullmatch(r"[0-9]+", entry):
                matches = gpus[int(entry) :][:1]
            elif entry in ids:
                matches = [entry]
            elif re.match(r"(GPU|MIG)-", entry):
                matches = [name for name in ids if name.startswith(entry)]
            else:
                matches = []
            if len(matches) != 1 or matches[0] in pool:
                fault = "fits several devices" if len(matches) > 1 else "is not a device here"
                if matches and matches[0] in pool:
                    fault = "comes twice"
                exist = [
                    f"  {gpus.index(gpu)}: {device.id} {device.name} {device.problem}".rstrip()
                    for gpu, device in found
                ]
                raise DeviceError(
                    f"{VISIBLE}={visible}: '{entry}' {fault}. Name GPUs by number in PCI order "
                    "(as nvidia-smi counts), by UUID or by the beginning of one. There are:\n"
                    + ("\n".join(exist) or "  none that this account may use")
                )
            pool += matches
        models = {device.name for _, device in found}
        if (
            any(entry.isdigit() for entry in _entries(visible))
            and len(models) > 1
            and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
        ):
            log.warning(
                "%s=%s is read in PCI order: %s. CUDA by itself puts the fastest GPU first; "
                "set CUDA_DEVICE_ORDER=PCI_BUS_ID or name UUIDs to be sure",
                VISIBLE,
                visible,
                ", ".join(pool),
            )
        return pool


def _words(error: Exception) -> str:
    return f"NVML: {error}".rstrip(".")


class CpuProbe:
    """CPU slots `cpu-0`, `cpu-1`, ...: as many jobs side by side as the cores carry.

    `hide_gpus`: there may be GPUs, and jobs must not see them.
    """

    def __init__(
        self, slots: int | None, environ: Mapping[str, str], hide_gpus: bool = False
    ) -> None:
        if slots is not None and slots < 1:
            raise ConfigurationError(f"cpu_slots={slots}: at least 1 is needed, or null for auto")
        cores = _usable_cores()
        # OMP_NUM_THREADS may list one number per nesting level: the first counts.
        given = re.match(r"\s*([1-9][0-9]*)", environ.get("OMP_NUM_THREADS", ""))
        self.slots = slots or max(1, cores // int(given.group(1) if given else 1))
        self._threads = None if given else max(1, cores // self.slots)
        self._hide_gpus = hide_gpus
        self._devices = [Device(f"cpu-{number}", "CPU slot") for number in range(self.slots)]

    def devices(self) -> list[Device]:
        return list(self._devices)

    def environment(self, ids: Sequence[str]) -> dict[str, str]:
        variables = {}
        if self._threads is not None:
            # Without it every job starts a thread per core of the machine and all are slower.
            variables["OMP_NUM_THREADS"] = str(self._threads * len(ids))
        if self._hide_gpus:
            variables[VISIBLE] = ""
        return variables


def _usable_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class FakeProbe:
    """Devices that are whatever a test or a simulation says they are."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self._devices = {device.id: device for device in devices}

    @classmethod
    def gpus(cls, count: int, total_mib: int = 81559) -> FakeProbe:
        """`count` idle GPUs; the last digits of the UUID are their number."""
        uuids = [f"GPU-fa{number:06x}-0000-0000-0000-{number:012x}" for number in range(count)]
        return cls(Device(uuid, "Fake GPU", total_mib, total_mib - 500, 0) for uuid in uuids)

    def devices(self) -> list[Device]:
        return list(self._devices.values())

    def environment(self, ids: Sequence[str]) -> dict[str, str]:
        return _cuda_environment(ids)

    def change(self, device_id: str, **figures: Any) -> None:
        """From the next reading on the device has these figures, as `free_mib=100`."""
        self._devices[device_id] = replace(self._devices[device_id], **figures)


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
