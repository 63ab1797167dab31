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

from autocl_sweeper.cli.options import Commands, json_option, print_json
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


def add(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what this machine offers to a sweep, and what would go wrong",
        description="Check Python, Hydra, the plugin, devices, leases and extras. The exit status is"
        " 1 if a sweep would not run.",
    )
    json_option(doctor)
    doctor.set_defaults(run=_doctor)


def _doctor(given: argparse.Namespace) -> int:
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
    yield _hydra()
    yield _plugin()
    yield _devices()
    yield _leases()
    yield _folder()
    for extra, (modules, what) in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        if missing:
            how = f"not installed: {what}\npip install 'autocl-sweeper[{extra}]'"
            yield Finding(f"extra {extra}", "off", how)
        else:
            yield Finding(f"extra {extra}", "ok", what)


def _hydra() -> Finding:
    known = versions()
    hydra = known.get("hydra-core")
    if hydra is None:
        return Finding("Hydra", "wrong", "not installed\npip install 'hydra-core>=1.3.2,<1.5'")
    line = ".".join(hydra.split(".")[:2])
    told = f"{hydra}, OmegaConf {known.get('omegaconf')}, Optuna {known.get('optuna')}"
    if line not in ("1.3", "1.4"):
        return Finding("Hydra", "wrong", f"{told}\nHydra 1.3 and 1.4 are supported")
    return Finding("Hydra", "ok", told)


def _plugin() -> Finding:
    """Hydra 1.3 finds plugins by listing a namespace package, Hydra 1.4 by entry points."""
    name = "hydra_plugins.hydra_autocl_sweeper"
    try:
        importlib.import_module(f"{name}.sweeper")
    except ImportError as error:
        return Finding("plugin", "wrong", f"{error}\npip install the package again")
    namespace = importlib.import_module("hydra_plugins")
    listed = any(os.path.isdir(os.path.join(p, "hydra_autocl_sweeper")) for p in namespace.__path__)
    entered = any(one.value.startswith(name) for one in entry_points(group="hydra.plugins"))
    if listed or entered:
        return Finding("plugin", "ok", "hydra/sweeper=autocl and hydra/launcher=gpu are found")
    return Finding("plugin", "wrong", "Hydra does not find it\npip install the package again")


def _devices() -> Finding:
    from autocl_sweeper.device.probe import find_probe, short

    try:
        devices = find_probe(None, os.environ).devices()
    except AutoCLError as error:
        return Finding("devices", "wrong", str(error))
    gpus = [one for one in devices if one.total_mib is not None]
    if gpus:
        total = ", ".join(f"{short(one.id)} {one.name}" for one in gpus[:8])
        return Finding("devices", "ok", f"{len(gpus)} GPUs: {total}")
    return Finding(
        "devices", "ok", f"no GPU; {len(devices)} jobs run side by side on the processor"
    )


def _leases() -> Finding:
    from autocl_sweeper.device.leases import LeaseFolder

    try:
        path = LeaseFolder().path
    except (AutoCLError, OSError) as error:
        return Finding("leases", "wrong", str(error))
    there = path if path.exists() else path.parent
    if not os.access(there, os.W_OK):
        return Finding(
            "leases",
            "wrong",
            f"{path} cannot be written\nset AUTOCL_LEASE_DIR to a folder you may write",
        )
    return Finding("leases", "ok", str(path))


def _folder() -> Finding:
    if not os.access(".", os.W_OK):
        return Finding(
            "this folder", "wrong", "cannot be written\nset hydra.sweep.dir to one that can"
        )
    return Finding("this folder", "ok", "can hold a sweep")
