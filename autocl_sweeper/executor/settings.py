"""The keys of `hydra/launcher=gpu`, as the executor they describe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from autocl_sweeper.devices import find_probe
from autocl_sweeper.executor.local import LocalExecutor
from autocl_sweeper.executor.pool import Pool
from autocl_sweeper.executor.warm import Template
from autocl_sweeper.hydra_job import Package
from autocl_sweeper.leases import LeaseFolder
from autocl_sweeper.outcome import JobFiles


def from_settings(
    settings: Mapping[str, Any], package: Package, files: JobFiles, holder: str, returns: bool
) -> LocalExecutor:
    """An executor for the devices of this machine; `holder` names it to who looks at its leases.

    Raises DeviceError when no device can ever be had.
    """
    slots = settings["cpu_slots"]
    pool = Pool(
        find_probe(None if slots in (None, "auto") else int(slots), os.environ),
        LeaseFolder(),
        count=settings["devices_per_job"],
        free_memory=settings["free_memory"],
        max_devices=settings["max_devices"],
        holder=holder,
    )
    modules = list(settings["preload"])
    warm = settings["warm"] if settings["warm"] is not None else bool(modules)
    return LocalExecutor(
        package,
        files,
        pool,
        timeout_s=settings["timeout_s"],
        returns=returns,
        # Begun here, so that its imports overlap with what the sweep does before its first job.
        template=Template(package, modules) if warm else None,
    )
