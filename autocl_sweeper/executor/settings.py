"""The keys of `hydra/launcher=gpu`, as the executor they describe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from autocl_sweeper.device.needs import Siblings
from autocl_sweeper.device.pool import Pool
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.executor.local import LocalExecutor
from autocl_sweeper.executor.process.forked import ForkServer, KeptForkServer
from autocl_sweeper.executor.running import Limits
from autocl_sweeper.job.package import Package


def needs_of(settings: Mapping[str, Any], package: Package) -> Siblings:
    """What the jobs of these launcher settings say of the memory they need."""
    return Siblings(settings["memory_keys"], partial(package.section, name="memory"))


def from_settings(
    settings: Mapping[str, Any],
    package: Package,
    returns: bool,
    kept: KeptForkServer | None = None,
) -> LocalExecutor:
    """An executor for the devices of this machine, whose leases name the sweep's folder.

    `kept`: where its fork server comes from, and stays when the executor is closed. Raises DeviceError
    when no device can ever be had, and ConfigurationError.
    """
    check(settings)
    files = package.files
    pool = Pool.of(settings, str(files.folder.parent))
    modules = list(settings["preload"])
    warm = settings["warm"] if settings["warm"] is not None else bool(modules)
    return LocalExecutor(
        package,
        files,
        pool,
        Limits(settings["timeout_s"], settings["stall_s"], settings["grace_s"]),
        returns=returns,
        forkserver=partial(kept.get if kept else ForkServer, package, modules) if warm else None,
        jobs_outlive=settings["on_controller_death"] == "finish",
        needs=needs_of(settings, package),
    )


def check(settings: Mapping[str, Any]) -> None:
    """Validate timeouts, retries and `on_controller_death`. Raises ConfigurationError."""
    for key in ("timeout_s", "stall_s", "grace_s", "retries", "retry_delay_s"):
        value, optional = settings[key], key in ("timeout_s", "stall_s")
        if value is not None and not (0 < value < math.inf or (value == 0 and not optional)):
            rule = "more than 0, or null" if optional else "at least 0"
            raise ConfigurationError(
                f"hydra.launcher.{key}={value}, but it must be {rule}.\n"
                f"  `autocl docs hydra.launcher.{key}` (docs/launcher.md) explains it. No job was started."
            )
    choice = settings["on_controller_death"]
    if choice not in ("kill", "finish"):
        raise ConfigurationError(
            f"hydra.launcher.on_controller_death={choice!r} is not one of: kill, finish.\n"
            "  It says what becomes of running jobs when the sweep's own process is killed."
            " No job was started."
        )
