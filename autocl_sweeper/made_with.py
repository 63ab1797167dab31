"""What a sweep was started with: its command line and the versions of what it builds on."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("autocl-sweeper", "hydra-core", "omegaconf", "optuna", "torch", "transformers", "peft")


def command() -> str:
    """The command of this process, as a shell takes it."""
    return shlex.join(["python", *sys.argv])


def versions() -> dict[str, str]:
    """Python's version and those of the packages above that are installed; none is imported."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def own_version() -> str:
    """The version of this package; a checkout that is not installed has none."""
    return versions().get("autocl-sweeper", "(not installed)")
