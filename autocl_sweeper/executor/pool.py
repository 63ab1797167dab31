"""The devices that jobs of one executor may get, and the rule by which they get them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocl_sweeper.devices import Probe
from autocl_sweeper.leases import Lease, LeaseFolder, Refusal, lease_free

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
        return tuple(lease.fileno() for lease in self.leases)

    def close(self) -> None:
        for lease in self.leases:
            lease.close()


@dataclass
class Pool:
    """The devices that jobs of one executor may get, and the rule by which they get them."""

    probe: Probe
    leases: LeaseFolder
    count: int = 1  # per job
    free_memory: float = 0.8
    max_devices: int | None = None
    holder: str = ""
    refusal: str = ""  # why the last `acquire` gave nothing; empty when it gave

    def acquire(self, *, alone: bool = False) -> Grant | None:
        """Devices for one job, or None while none is free. Raises DeviceError if none can ever be.

        `alone`: nobody else on them, whatever sharing the pool allows. So far every job is.
        """
        found = lease_free(
            self.probe, self.leases, self.count, self.free_memory, self.max_devices, self.holder
        )
        if isinstance(found, Refusal):
            self.refusal = str(found)
            return None
        self.refusal = ""
        ids = [lease.device_id for lease in found]
        return Grant(found, told(ids, self.probe.environment(ids)))


def told(ids: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job with these devices, and what a job of several processes divides."""
    lease = {DEVICES: ",".join(ids)}
    if "OMP_NUM_THREADS" in environment:  # ours, not the user's
        lease[THREADS] = environment["OMP_NUM_THREADS"]
    return {**environment, **lease}
