"""Overrides that launch on our devices."""

from __future__ import annotations

from support.fake_nvml import build as fake

OURS = ("hydra/sweeper=autocl", "hydra/launcher=gpu", "task=a")
# Where it does not matter how a job came to be: forked, it starts in a tenth of the time.
WARM = (*OURS, "hydra.launcher.warm=true")
GPUS = [gpu.uuid for gpu in fake.gpus(8)]


def choices(count: int) -> str:
    return "lr=" + ",".join(map(str, range(1, count + 1)))
