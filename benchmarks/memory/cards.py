"""The GPUs of this machine as a measurement sees them: what differs between them, and who else computes there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from autocl_sweeper.device.packing import relatives, use_of
from autocl_sweeper.device.probe import Device, Probe, find_probe, short

ROOT = Path(__file__).resolve().parents[2]
DIFFERS = 1.01  # ratio of medians of cards above which all compared runs go to one of them
TIMES = 3  # of the fixed job on each card
LOOK_S = 2.0  # between two looks at a card while a run is measured


class NoCard(Exception):
    """This machine has no GPU, or lacks the one that `--card` names."""


@dataclass(frozen=True)
class Card:
    """One reading of a GPU; None: the driver does not say."""

    id: str  # UUID
    name: str
    memory_mib: int | None
    driver: str | None
    pcie: str | None  # generation and lanes now, and at most
    clock_mhz: int | None  # of the multiprocessors
    max_clock_mhz: int | None
    memory_clock_mhz: int | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: int | None
    utilisation: int | None  # per cent
    free_mib: int | None
    foreign: tuple[int, ...]  # processes that are neither this one nor started by it
    hidden: tuple[
        int, ...
    ]  # numbers of the host's, in a container: one of them may be this process
    problem: str = ""


STEADY = ("memory_mib", "driver", "pcie", "max_clock_mhz", "power_limit_w")


def cards(probe: Probe | None = None) -> list[Card]:
    """A reading of every GPU that CUDA_VISIBLE_DEVICES allows. Raises NoCard where there is none."""
    probe = probe or find_probe(1, os.environ)
    if not probe.measured:
        raise NoCard(
            "there is no GPU here: NVML shows none that this account and CUDA_VISIBLE_DEVICES may use. Go "
            "where nvidia-smi lists one, or measure small models on the CPU: "
            "python -m benchmarks.memory run --card cpu --out <folder>"
        )
    return [_read(device) for device in probe.devices(load=True)]


def card(uuid: str, probe: Probe | None = None) -> Card:
    """The GPU whose UUID begins like that. Raises NoCard where not exactly one does."""
    found = cards(probe)
    matching = [one for one in found if one.id.startswith(uuid)]
    if len(matching) != 1:
        there = ", ".join(one.id for one in found)
        raise NoCard(
            f"--card {uuid}: {len(matching)} GPUs have a UUID that begins so. Here are {there}"
        )
    return matching[0]


def _read(device: Device) -> Card:
    import pynvml  # type: ignore[import-untyped, unused-ignore]

    nvml: Any = pynvml

    def ask(function: str, *arguments: Any) -> Any:
        """None where a driver or a board does not support it."""
        try:
            return getattr(nvml, function)(*arguments)
        except nvml.NVMLError:
            return None

    pids = [*(device.processes or {})]
    handle = ask("nvmlDeviceGetHandleByUUID", device.id)
    pcie = [
        ask(f"nvmlDeviceGet{when}PcieLink{what}", handle)
        for when in ("Curr", "Max")
        for what in ("Generation", "Width")
    ]
    power = ask("nvmlDeviceGetPowerUsage", handle)
    limit = ask("nvmlDeviceGetEnforcedPowerLimit", handle)
    return Card(
        id=device.id,
        name=device.name,
        memory_mib=device.total_mib,
        driver=ask("nvmlSystemGetDriverVersion"),
        pcie=None if None in pcie else "gen {} x{} of gen {} x{}".format(*pcie),
        clock_mhz=ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
        max_clock_mhz=ask("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
        power_w=None if power is None else power / 1000,
        power_limit_w=None if limit is None else limit / 1000,
        temperature_c=device.temperature_c,
        utilisation=device.utilisation,
        free_mib=device.free_mib,
        foreign=tuple(use_of(device, [os.getpid()]).strangers),
        hidden=tuple(pid for pid in pids if relatives(pid) is None),
        problem=device.problem,
    )


def differences(found: Sequence[Card]) -> list[str]:
    """A line for each property in which cards of one model differ."""
    lines = []
    for name in dict.fromkeys(one.name for one in found):
        alike = [one for one in found if one.name == name]
        for key in STEADY:
            values = {str(getattr(one, key)): short(one.id) for one in alike}
            if len(values) > 1:
                shown = ", ".join(f"{value} ({who})" for value, who in values.items())
                lines.append(f"{name}: {key} differs: {shown}")
    return lines


def table(found: Sequence[Card]) -> str:
    """A block of lines per card, then what differs between cards of one model."""
    lines = []
    for one in found:
        lines.append(f"{one.id}  {one.name}")
        for field in fields(Card)[2:]:
            value = getattr(one, field.name)
            if isinstance(value, tuple):
                value = ", ".join(map(str, value)) or "none"
            if value not in (None, ""):
                lines.append(f"  {field.name:18}{value}")
    models = len({one.name for one in found})
    lines.append(f"{len(found)} GPUs, {models} models")
    lines += differences(found) or ["cards of one model do not differ in what the driver says"]
    return "\n".join(lines)


def show_gpus(timed: bool) -> str:
    """All cards and how they differ; timed: also in the time of a fixed job."""
    found = cards()
    if not timed:
        return table(found)
    times = {one.id: [_fixed_job(one.id) for _ in range(TIMES)] for one in found}
    return f"{table(found)}\n{verdict(times)}"


def _fixed_job(uuid: str) -> float:
    """Milliseconds of a step of the fixed load on a card, in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.memory.load"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": uuid}
    done = subprocess.run(
        argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout)


def verdict(times: Mapping[str, Sequence[float]]) -> str:
    """Whether compared runs may be spread over these cards. times: ms of the fixed job on each."""
    lines = [
        f"{uuid}  {median(own):.2f} ms ({min(own):.2f} to {max(own):.2f})"
        for uuid, own in times.items()
    ]
    medians = [median(own) for own in times.values()]
    ratio = max(medians) / min(medians)
    advice = "keep all compared runs on one of them, by --card" if ratio > DIFFERS else "within 1 %"
    return "\n".join([*lines, f"medians differ by {100 * (ratio - 1):.1f} %: {advice}"])


class Watch:
    """Looks at a card before, while and after a run; None: there is no card to look at.

    Enter it where the run begins. A look fails where the driver does: the run fails with it.
    """

    def __init__(self, reader: Callable[[], Card] | None, period_s: float = LOOK_S) -> None:
        self.reader, self.period_s = reader, period_s
        self.looks: list[Card] = []
        self.failure: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        if self.reader is not None:
            self.looks.append(self.reader())
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.reader is not None:
            self._over.set()
            self._thread.join()
            self.looks.append(self.reader())

    def _run(self) -> None:
        assert self.reader is not None
        while not self._over.wait(self.period_s):
            try:
                self.looks.append(self.reader())
            except Exception as error:
                self.failure = error
                return

    @property
    def foreign(self) -> list[int]:
        """Processes of others that were seen at any look; one hidden process is this one."""
        return sorted({pid for one in self.looks for pid in (*one.foreign, *one.hidden[1:])})

    @property
    def void(self) -> str:
        """Why the run does not count; empty where it does."""
        if self.failure is not None:
            return f"the card could not be watched: {self.failure}"
        if self.foreign:
            return f"other processes computed on the card: {', '.join(map(str, self.foreign))}"
        return ""
