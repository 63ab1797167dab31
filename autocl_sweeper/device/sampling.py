"""What jobs use of their devices, looked at now and then while any runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autocl_sweeper.device.packing import use_of
from autocl_sweeper.device.pool import Pool
from autocl_sweeper.device.probe import Device
from autocl_sweeper.device.samples import SampleFile
from autocl_sweeper.types import DeviceUse, Need

PERIOD_S = 2.0  # memory of training jobs levels off within seconds, and a look costs milliseconds
LEVEL_S = 10.0  # a job whose peak has not grown for so long has most likely shown what it needs
UNSEEN_S = 60.0  # and one that has used nothing for so long needs no memory to speak of


@dataclass
class _Watched:
    session: int
    ids: tuple[str, ...]
    base_mib: Mapping[str, int | None]
    file: SampleFile
    grown: float  # when its peak last grew by a twentieth, or it began
    need: Need
    gpu: str
    level_mib: int = 0  # its peak then
    peak_mib: int | None = None  # as NVML tells it of the job's own processes
    on_top_mib: int | None = None  # the most that came on top of what was there before
    crowded: bool = False  # seen beside others, so that what came on top may be theirs
    utilisation: list[int] = field(default_factory=list)
    temperature_c: int | None = None
    told: bool = False  # that a device of it is lost

    @property
    def seen_mib(self) -> int | None:
        """What is known of its peak so far. An empty one only says that NVML had nothing to tell."""
        return self.peak_mib or (None if self.crowded else self.on_top_mib)


class Sampler:
    """One thread that samples the devices of running jobs.

    `lost` is called, in that thread and once per job, with the number of a job whose device was
    taken out of service because nothing can go on there, and why. The creator calls `close`.
    """

    def __init__(self, pool: Pool, lost: Callable[[int, str], None]) -> None:
        self._pool = pool
        self._lost = lost
        self._jobs: dict[int, _Watched] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def add(
        self,
        number: int,
        session: int,
        ids: Sequence[str],
        base_mib: Mapping[str, int | None],
        path: Path,
        need: Need,
    ) -> None:
        """A job began. Without GPUs there is nothing to sample.

        `base_mib`: what was in use on a device before it or those it shares with came. `path`: the
        file that gets the samples of its devices. `need`: of the job, for those that need as much.
        """
        if not self._pool.probe.measured:
            return
        gpu, file = self._pool.known(ids[0]).name, SampleFile(path, time.time())
        job = _Watched(session, tuple(ids), base_mib, file, time.monotonic(), need, gpu)
        self._jobs[number] = job
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
            self._thread.start()

    def remove(self, number: int) -> DeviceUse | None:
        """A job ended: what it used; None without GPUs."""
        job = self._jobs.pop(number, None)
        if job is None:
            return None
        mean = sum(job.utilisation) / len(job.utilisation) if job.utilisation else None
        return DeviceUse(job.ids, job.seen_mib, mean, job.temperature_c, job.gpu)

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def sample(self) -> None:
        """One look at every device of a running job."""
        found = {device.id: device for device in self._pool.devices(load=True)}
        jobs = dict(self._jobs)
        sessions: dict[str, list[int]] = {}
        for job in jobs.values():
            for device_id in job.ids:
                sessions.setdefault(device_id, []).append(job.session)
        for number, job in jobs.items():
            seen = [found[name] for name in job.ids if name in found and not found[name].error]
            for device in seen:
                self._note(job, device, sessions[device.id])
            job.file.add(time.time(), seen)
            reasons = [self._pool.retired[name] for name in job.ids if name in self._pool.lost]
            if reasons and not job.told:
                job.told = True
                self._lost(number, reasons[0])
            self._look_whether_level(job)

    def _look_whether_level(self, job: _Watched) -> None:
        """Until a job has finished, others reserve by what those that run have come to use."""
        seen_mib, now = job.seen_mib or 0, time.monotonic()
        if seen_mib > job.level_mib * 1.05:
            job.level_mib, job.grown = seen_mib, now
        if now - job.grown >= (LEVEL_S if seen_mib else UNSEEN_S):
            self._pool.expect(seen_mib, job.need, job.gpu)

    def _note(self, job: _Watched, device: Device, ours: list[int]) -> None:
        by_job = use_of(device, ours).by_job
        if by_job is not None:
            job.peak_mib = max(by_job[job.session], job.peak_mib or 0)
        else:
            self._note_on_top(job, device)
        if device.utilisation is not None:
            job.utilisation.append(device.utilisation)
        if device.temperature_c is not None:
            job.temperature_c = max(device.temperature_c, job.temperature_c or 0)

    def _note_on_top(self, job: _Watched, device: Device) -> None:
        """Where NVML does not say whose memory it is, that of a job that was always alone."""
        occupied = self._pool.leases.look(device.id)
        if occupied is None:
            return
        job.crowded = job.crowded or len(occupied.claims) > 1
        base_mib = job.base_mib.get(device.id)
        if base_mib is None or device.total_mib is None or device.free_mib is None:
            return
        on_top_mib = max(0, device.total_mib - device.free_mib - base_mib)
        job.on_top_mib = max(on_top_mib, job.on_top_mib or 0)

    def _run(self) -> None:
        while not self._closed.wait(PERIOD_S):
            if self._jobs:
                self.sample()
