"""`autocl doctor`: what this machine offers, and what would go wrong."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Literal

from autocl_sweeper.cli.options import print_json
from autocl_sweeper.device.leases import LeaseFolder
from autocl_sweeper.device.probe import find_probe, short
from autocl_sweeper.errors import AutoCLError
from autocl_sweeper.made_with import own_version, versions

EXTRAS = {
    "report": (("jinja2", "vl_convert"), "report.html and pictures (autocl report, plot, serve)"),
    "train": (("torch", "transformers", "peft"), "the training app, train.py"),
    "tensorboard": (("tensorboardX",), "hydra.sweeper.export.tensorboard"),
    "mlflow": (("mlflow",), "hydra.sweeper.export.mlflow"),
    "gp": (("torch",), "hydra/sweeper/search=gp"),
    "ray": (("ray",), "hydra/launcher=ray"),
}


@dataclass(frozen=True)
class Finding:
    """`state`: `ok`, `off` (an option that is not installed), or `wrong`, with what to do."""

    about: str
    state: Literal["ok", "off", "wrong"]
    text: str


HELP = "what this machine offers to a sweep, and what would go wrong"
DESCRIPTION = (
    "Check Python, Hydra, the plugin, devices, leases and extras. The exit status is"
    " 1 if a sweep would not run."
)


def add(parser: argparse.ArgumentParser) -> None:
    """It has no options of its own."""


def run(given: argparse.Namespace) -> int:
    found = list(findings())
    if given.json:
        print_json([asdict(one) for one in found])
    else:
        width = max(len(one.about) for one in found)
        for one in found:
            sign = {"ok": "ok   ", "off": "-    ", "wrong": "WRONG"}[one.state]
            first, *more = one.text.split("\n")
            print(f"{sign}  {one.about:<{width}}  {first}")
            for line in more:
                print(" " * (width + 9) + line.strip())
    return int(any(one.state == "wrong" for one in found))


def findings() -> Iterator[Finding]:
    yield Finding("autocl-sweeper", "ok", f"{own_version()}, Python {sys.version.split()[0]}")
    for about, check in CHECKS.items():
        try:
            yield Finding(about, "ok", check())
        except (AutoCLError, ImportError, OSError) as error:
            yield Finding(about, "wrong", str(error))
    for extra, (modules, what) in EXTRAS.items():
        if all(map(find_spec, modules)):
            yield Finding(f"extra {extra}", "ok", what)
        else:
            how = f"not installed: {what}\npip install 'autocl-sweeper[{extra}]'"
            yield Finding(f"extra {extra}", "off", how)


# -- checks: what is there, or an error with what to do in its second line --------------------------


def _hydra() -> str:
    known = versions()
    hydra = known.get("hydra-core")
    if hydra is None:
        raise AutoCLError("not installed\npip install 'hydra-core>=1.3.2,<1.5'")
    told = f"{hydra}, OmegaConf {known.get('omegaconf')}, Optuna {known.get('optuna')}"
    if not hydra.startswith(("1.3.", "1.4.")):
        raise AutoCLError(f"{told}\nHydra 1.3 and 1.4 are supported")
    return told


def _plugin() -> str:
    """Hydra 1.3 finds plugins by listing a namespace package, Hydra 1.4 by entry points."""
    name = "hydra_plugins.hydra_autocl_sweeper"
    try:
        importlib.import_module(f"{name}.sweeper")
    except ImportError as error:
        raise AutoCLError(f"{error}\npip install the package again") from error
    namespace = importlib.import_module("hydra_plugins")
    listed = any(os.path.isdir(os.path.join(p, "hydra_autocl_sweeper")) for p in namespace.__path__)
    entered = any(one.value.startswith(name) for one in entry_points(group="hydra.plugins"))
    if not listed and not entered:
        raise AutoCLError("Hydra does not find it\npip install the package again")
    return "hydra/sweeper=autocl and hydra/launcher=gpu are found"


def _devices() -> str:
    devices = find_probe(None, os.environ).devices()
    gpus = [one for one in devices if one.total_mib is not None]
    if not gpus:
        return f"no GPU; {len(devices)} jobs run side by side on the processor"
    return f"{len(gpus)} GPUs: {', '.join(f'{short(one.id)} {one.name}' for one in gpus[:8])}"


def _leases() -> str:
    path = LeaseFolder().path
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise AutoCLError(
            f"{path} cannot be written\nset AUTOCL_LEASE_DIR to a folder you may write"
        )
    return str(path)


def _folder() -> str:
    if not os.access(".", os.W_OK):
        raise AutoCLError("cannot be written\nset hydra.sweep.dir to one that can")
    return "can hold a sweep"


CHECKS = {
    "Hydra": _hydra, "plugin": _plugin, "devices": _devices, "leases": _leases,
    "this folder": _folder,
}  # fmt: skip
