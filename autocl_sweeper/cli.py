"""The command `autocl`: devices, sweeps side by side, exports, documentation, search for scripts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from autocl_sweeper import manual
from autocl_sweeper.compare import compare
from autocl_sweeper.device.leases import BUSY, LeaseFolder, Occupied
from autocl_sweeper.device.packing import Claim, refusal
from autocl_sweeper.device.probe import Device, find_probe, short
from autocl_sweeper.display.comparison import as_json as as_json_rows
from autocl_sweeper.display.comparison import print_comparison
from autocl_sweeper.display.screen import patient_screen, screen
from autocl_sweeper.errors import AutoCLError, ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 for what cannot be read and keys that do not exist, said on stderr."""
    parser = argparse.ArgumentParser(
        prog="autocl", description="Search, and look at what sweeps work with."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    devices = commands.add_parser(
        "devices",
        help="what the launcher sees, who holds which device, and why one would be refused",
        description="The devices that a sweep started here would see (CUDA_VISIBLE_DEVICES counts),"
        " who of this account holds which, and why a job would not get one.",
    )
    devices.add_argument("--json", action="store_true", help="the same for programs")
    devices.add_argument(
        "--free-memory",
        type=float,
        default=0.8,
        metavar="SHARE",
        help="as hydra.launcher.free_memory (default: 0.8)",
    )
    devices.set_defaults(run=_devices)
    docs = commands.add_parser(
        "docs",
        help="the documentation: its pages, one of them, or what is said about a key",
        description="Without an argument the pages are listed.",
    )
    docs.add_argument("key", nargs="?", help="a page (launcher) or a key (hydra.launcher.grace_s)")
    docs.set_defaults(run=_docs)
    export = commands.add_parser(
        "export",
        help="a sweep's trials for optuna-dashboard or TensorBoard, from its journal",
        description="Write the trials of a sweep, over or not, where dashboards read them.",
    )
    export.add_argument("folder", type=Path, help="the sweep's folder (hydra.sweep.dir)")
    export.add_argument(
        "--optuna", metavar="URL", help="a storage URL, or a journal file of Optuna"
    )
    export.add_argument(
        "--study-name", metavar="NAME", help="what the names of the studies begin with"
    )
    export.add_argument("--tensorboard", metavar="FOLDER", help="a folder for event files")
    export.set_defaults(run=_export)
    comparing = commands.add_parser(
        "compare",
        help="one table over sweeps: accuracy, forgetting, jobs, device-hours",
        description="Finished sweeps side by side, from their journals alone. Sweeps that differ in"
        " their seeds only are one row, with mean and 95 %% t-interval.",
    )
    comparing.add_argument("folders", nargs="+", type=Path, help="as hydra.sweep.dir had them")
    comparing.add_argument("--json", action="store_true", help="the same for programs")
    comparing.set_defaults(run=_compare)
    commands.add_parser(
        "finetune",
        help="search hyper-parameters of a plain script, as AutoDL Finetuner did",
        add_help=False,
    )
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if words[:1] == ["finetune"]:  # its options stand before and behind the script
            from autocl_sweeper.finetune.command import main as finetune

            finetune(words[1:])
        else:
            given = parser.parse_args(words)
            with patient_screen():
                given.run(given)
        sys.stdout.flush()
    except AutoCLError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `autocl docs launcher | head`: what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _docs(given: argparse.Namespace) -> None:
    print(manual.index() if given.key is None else manual.lookup(given.key))


def _export(given: argparse.Namespace) -> None:
    from autocl_sweeper.export.afterwards import export
    from autocl_sweeper.export.places import Places

    if not (given.optuna or given.tensorboard):
        raise ConfigurationError("autocl export writes nothing without --optuna or --tensorboard.")
    for line in export(given.folder, Places(given.optuna, given.tensorboard, given.study_name)):
        print(line)


def _compare(given: argparse.Namespace) -> None:
    rows = compare(given.folders)
    if given.json:
        print(as_json_rows(rows))
        return
    print_comparison(rows, screen())


def _devices(given: argparse.Namespace) -> None:
    leases = LeaseFolder()
    seen = look(leases, given.free_memory)
    if given.json:
        print(as_json(leases, seen))
    else:
        show(leases, seen)


@dataclass(frozen=True)
class Seen:
    """A device, who has it, and why a job that wants it alone would not get it."""

    device: Device
    occupied: Occupied
    refused: str


def look(leases: LeaseFolder, free_memory: float) -> list[Seen]:
    """Raises DeviceError when there are GPUs that cannot be read."""
    found = []
    for device in find_probe(None, os.environ).devices(load=True):
        occupied = leases.look(device.id)
        if occupied is None:
            occupied, refused = Occupied(), BUSY
        else:
            refused = refusal(device, occupied.claims, Claim(), free_memory)
        found.append(Seen(device, occupied, refused))
    return found


def as_json(leases: LeaseFolder, seen: Sequence[Seen]) -> str:
    told = []
    for one in seen:
        wanted_by = one.occupied.wanted_by
        leased = {
            "leases": [asdict(claim) for claim in one.occupied.claims],
            "wanted_by": None if wanted_by is None else asdict(wanted_by),
        }
        told.append({**asdict(one.device), **leased, "refused": one.refused})
    return json.dumps({"lease_folder": str(leases.path), "devices": told}, indent=2)


def show(leases: LeaseFolder, seen: Sequence[Seen]) -> None:
    console = screen()
    console.print(_device_table(seen))
    if any(one.occupied.claims for one in seen):
        console.print(_lease_table(leases, seen))
    console.print(f"leases: {leases.path}", style="dim", highlight=False)


def _device_table(seen: Sequence[Seen]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Devices", title_justify="left")
    for column in ("device", "name", "MiB free", "load", "temp.", "processes", "a job alone"):
        table.add_column(column, overflow="fold")
    for one in seen:
        device = one.device
        processes = "?" if device.processes is None else "none"
        if device.processes:
            told = device.processes.items()
            processes = "\n".join(f"{p}" if mib is None else f"{p}: {mib} MiB" for p, mib in told)
        table.add_row(
            short(device.id),
            device.name,
            "-" if device.total_mib is None else f"{device.free_mib} of {device.total_mib}",
            "-" if device.utilisation is None else f"{device.utilisation} %",
            "-" if device.temperature_c is None else f"{device.temperature_c} °C",
            "-" if device.total_mib is None and device.processes is None else processes,
            Text(one.refused or "gets it", "yellow" if one.refused else "green"),
        )
    return table


def _lease_table(leases: LeaseFolder, seen: Sequence[Seen]) -> Table:
    from rich.table import Table

    table = Table(title="Leases", title_justify="left")
    for column in ("device", "holder", "since", "reserves", "shares"):
        table.add_column(column, overflow="fold")
    for one in seen:
        for claim in one.occupied.claims:
            since = datetime.fromtimestamp(claim.since).strftime("%Y-%m-%d %H:%M:%S")
            shares = "by memory" if claim.limit is None else f"up to {claim.limit} jobs"
            table.add_row(
                short(one.device.id),
                leases.words(one.device.id, claim),
                since if claim.since else "-",
                "-" if claim.reserved_mib is None else f"{claim.reserved_mib} MiB",
                "no" if claim.limit == 1 else shares,
            )
        if one.occupied.wanted_by is not None:
            table.add_row(short(one.device.id), f"{one.occupied.wanted_by} waits to have it alone")
    return table
