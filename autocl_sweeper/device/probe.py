"""Which devices a job may use: a fresh reading of NVML, or CPU slots where there is no GPU."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from autocl_sweeper.errors import ConfigurationError, DeviceError

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
# How a parent says "no GPU from here on". Slurm writes NoDevFiles for a job that asked for none.
_END = ("-1", "NoDevFiles")
_MIB = 2**20
# NVML's codes for a GPU that only a reset brings back: GPU_IS_LOST (an Xid 79) and RESET_REQUIRED.
_LOST = (15, 16)


@dataclass(frozen=True)
class Device:
    """One thing to lease, as it was at the moment of a reading."""

    id: str  # UUID, "GPU-..." or "MIG-..."; "cpu-0" for a CPU slot
    name: str
    total_mib: int | None = None  # None: not known (a CPU slot, or memory shared with the host)
    free_mib: int | None = None
    # pid -> MiB (None: not told) of what computes on it, this process left out; None: not known.
    processes: Mapping[int, int | None] | None = None
    problem: str = ""  # why it cannot be used now, in NVML's words
    error: int = 0  # NVML's code, when the problem is that the device could not be asked
    utilisation: int | None = None  # per cent of the last moments; None: not asked or not known
    temperature_c: int | None = None

    @property
    def lost(self) -> bool:
        """Whether no job can go on there, and none will before somebody resets it."""
        return self.error in _LOST


def short(device_id: str) -> str:
    """The id as a log line says it: GPU-3f1c2a4b."""
    known = re.match(r"(GPU|MIG)-[0-9a-f]{8}(?=-)", device_id)
    return known.group() if known else device_id


class Probe(Protocol):
    @property
    def measured(self) -> bool:
        """Whether the devices have memory and figures of their own to look at."""
        ...

    def devices(self, load: bool = False) -> list[Device]:
        """A fresh reading of every device in the pool; the same order each time.

        With `load` also utilisation and temperature, which cost more calls.
        """
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

    measured = True

    def __init__(self, environ: Mapping[str, str] = {}) -> None:
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
                f"the NVIDIA driver is installed but does not answer: "
                f"{_words(error)}. After a driver update the machine needs a restart; nvidia-smi should say the "
                f'same. To run on CPU slots instead, set {VISIBLE}=""'
            ) from error
        self._seen: dict[int, tuple[str, str]] = {}  # number -> UUID and name of a GPU
        self._parts: dict[str, dict[str, str]] = {}  # UUID of a GPU -> its MIG devices with names
        self._pool: list[str] | None = None
        found = self._read()
        visible = environ.get(VISIBLE)
        if visible is not None:
            self._pool = self._resolve(visible, found, environ)
        elif not found:
            raise _NoGPU("NVML shows no GPU that this account may use")

    def devices(self, load: bool = False) -> list[Device]:
        found = self._read(load)
        if self._pool is None:
            return [device for _, device in found]
        # A dictionary, because a pool may name a GPU and one of its MIG devices.
        chosen = {d.id: d for name in self._pool for gpu, d in found if name in (gpu, d.id)}
        return list(chosen.values())

    def environment(self, ids: Sequence[str]) -> dict[str, str]:
        return _cuda_environment(ids)

    def _read(self, load: bool = False) -> list[tuple[str, Device]]:
        """(UUID of the GPU, device) in PCI order; several for a GPU in MIG mode."""
        return [found for number in range(self._count) for found in self._read_gpu(number, load)]

    def _read_gpu(self, number: int, load: bool) -> Iterator[tuple[str, Device]]:
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
                mode = self._optional(nvml.nvmlDeviceGetComputeMode, handle)
                problem = ""
                if mode == nvml.NVML_COMPUTEMODE_PROHIBITED:
                    problem = "its compute mode is Prohibited (nvidia-smi -c 0 allows jobs)"
                device = self._read_device(handle, uuid, name, problem)
                yield uuid, self._with_load(device, handle, handle) if load else device
                return
            instances = list(self._mig_handles(handle))
        except nvml.NVMLError as error:
            # The instances of a GPU are as lost as it is, and jobs know them by their own ids.
            for part, title in (self._parts.get(uuid) or {uuid: name}).items():
                yield uuid, Device(part, title, problem=_words(error), error=error.value)
            return
        self._parts[uuid] = {}
        if not instances:
            yield uuid, Device(uuid, name, problem="in MIG mode without a compute instance")
        for instance in instances:
            try:
                part = nvml.nvmlDeviceGetUUID(instance)
                title = self._optional(nvml.nvmlDeviceGetName, instance) or f"MIG of {name}"
                self._parts[uuid][part] = title
                device = self._read_device(instance, part, title)
                yield uuid, self._with_load(device, instance, handle) if load else device
            except nvml.NVMLError as error:
                # Destroyed while we looked; or the GPU is lost, which its parent tells next time.
                log.debug("a MIG device of %s is left out: %s", uuid, error)

    def _read_device(self, handle: Any, uuid: str, name: str, problem: str = "") -> Device:
        try:
            total_mib, free_mib = self._memory_mib(handle)
        except self._nvml.NVMLError as error:
            return Device(uuid, name, problem=problem or _words(error), error=error.value)
        return Device(uuid, name, total_mib, free_mib, self._processes(handle), problem)

    def _with_load(self, device: Device, handle: Any, gpu: Any) -> Device:
        """Utilisation is unknown under MIG, where the temperature is that of the whole GPU."""
        nvml = self._nvml
        rates = self._optional(nvml.nvmlDeviceGetUtilizationRates, handle)
        temperature = None
        # The old name goes with CUDA 14, the new one is unknown to old drivers and old modules.
        for name in ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"):
            if temperature is None and hasattr(nvml, name):
                temperature = self._optional(getattr(nvml, name), gpu, nvml.NVML_TEMPERATURE_GPU)
        return replace(device, utilisation=rates and int(rates.gpu), temperature_c=temperature)

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

    def _processes(self, handle: Any) -> dict[int, int | None] | None:
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
        return {
            process.pid: None if process.usedGpuMemory is None else process.usedGpuMemory // _MIB
            for process in running
            if process.pid != os.getpid()
        }

    def _in_mig_mode(self, handle: Any) -> bool:
        nvml = self._nvml
        try:
            return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
                return False
            raise

    def _mig_handles(self, handle: Any) -> Iterator[Any]:
        nvml = self._nvml
        for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            except nvml.NVMLError as error:
                if error.value != nvml.NVML_ERROR_NOT_FOUND:  # places have gaps
                    raise

    def _optional(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
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
        several_models = len({device.name for _, device in found}) > 1
        by_number = any(entry.isdigit() for entry in _entries(visible))
        if by_number and several_models and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            log.warning(
                f"{VISIBLE}={visible} is read in PCI order: {', '.join(pool)}. CUDA by itself puts"
                " the fastest GPU first; set CUDA_DEVICE_ORDER=PCI_BUS_ID or name UUIDs to be sure"
            )
        return pool


def _words(error: Exception) -> str:
    return f"NVML: {error}".rstrip(".")


class CpuProbe:
    """CPU slots `cpu-0`, `cpu-1`, ...: as many jobs side by side as the cores carry.

    `hide_gpus`: there may be GPUs, and jobs must not see them.
    """

    measured = False

    def __init__(
        self, slots: int | None, environ: Mapping[str, str], hide_gpus: bool = False
    ) -> None:
        if slots is not None and slots < 1:
            raise ConfigurationError(f"cpu_slots={slots}: at least 1 is needed, or null for auto")
        cores = len(os.sched_getaffinity(0))
        given = first_number("OMP_NUM_THREADS", environ)
        self.slots = slots or max(1, cores // (given or 1))
        self._threads = None if given else max(1, cores // self.slots)
        self._hide_gpus = hide_gpus
        self._devices = [Device(f"cpu-{number}", "CPU slot") for number in range(self.slots)]

    def devices(self, load: bool = False) -> list[Device]:
        return list(self._devices)

    def environment(self, ids: Sequence[str]) -> dict[str, str]:
        variables = {}
        if self._threads is not None:
            # Without it every job starts a thread per core of the machine and all are slower.
            variables["OMP_NUM_THREADS"] = str(self._threads * len(ids))
        if self._hide_gpus:
            variables[VISIBLE] = ""
        return variables


def first_number(variable: str, environ: Mapping[str, str]) -> int | None:
    """How many threads a variable such as OMP_NUM_THREADS asks for; it may list nesting levels."""
    found = re.match(r"\s*([1-9][0-9]*)", environ.get(variable, ""))
    return int(found[1]) if found else None


class FakeProbe:
    """Devices that are whatever a test or a simulation says they are."""

    measured = True

    def __init__(self, devices: Iterable[Device]) -> None:
        self._devices = {device.id: device for device in devices}

    @classmethod
    def gpus(cls, count: int, total_mib: int = 81559) -> FakeProbe:
        """`count` idle GPUs; the last digits of the UUID are their number."""
        uuids = [f"GPU-fa{number:06x}-0000-0000-0000-{number:012x}" for number in range(count)]
        return cls(Device(uuid, "Fake GPU", total_mib, total_mib - 500, {}) for uuid in uuids)

    def devices(self, load: bool = False) -> list[Device]:
        return list(self._devices.values())

    def environment(self, ids: Sequence[str]) -> dict[str, str]:
        return _cuda_environment(ids)

    def change(self, device_id: str, **figures: Any) -> None:
        """From the next reading on the device has these figures, as `free_mib=100`."""
        self._devices[device_id] = replace(self._devices[device_id], **figures)
