"""`autocl devices`: what the launcher sees, and who holds which device."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from autocl_sweeper.cli.options import print_json
from autocl_sweeper.device.leases import BUSY, LeaseFolder, Occupied
from autocl_sweeper.device.packing import Claim, refusal
from autocl_sweeper.device.probe import Device, find_probe, short
from autocl_sweeper.display.screen import screen

if TYPE_CHECKING:
    from rich.table import Table

HELP = "what the launcher sees, who holds which device, and why one would be refused"
DESCRIPTION = (
    "The devices that a sweep started here would see (CUDA_VISIBLE_DEVICES counts),"
    " who of this account holds which, and why a job would not get one."
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--free-memory",
        type=float,
        default=0.8,
        metavar="SHARE",
        help="as hydra.launcher.free_memory (default: 0.8)",
    )


@dataclass(frozen=True)
class Seen:
    """A device, who has it, and why a job that wants it alone would not get it."""

    device: Device
    occupied: Occupied
    refused: str

    def facts(self) -> dict[str, Any]:
        told = asdict(self.occupied)
        leased = {"leases": told["claims"], "wanted_by": told["wanted_by"]}
        return {**asdict(self.device), **leased, "refused": self.refused}


def _seen(leases: LeaseFolder, device: Device, free_memory: float) -> Seen:
    occupied = leases.look(device.id)
    if occupied is None:
        return Seen(device, Occupied(), BUSY)
    return Seen(device, occupied, refusal(device, occupied.claims, Claim(), free_memory))


def run(given: argparse.Namespace) -> None:
    leases = LeaseFolder()
    devices = find_probe(None, os.environ).devices(load=True)
    seen = [_seen(leases, device, given.free_memory) for device in devices]
    if given.json:
        told = [one.facts() for one in seen]
        print_json({"lease_folder": str(leases.path), "devices": told})
        return
    console = screen()
    console.print(_device_table(seen))
    if any(one.occupied.claims for one in seen):
        console.print(_lease_table(leases, seen))
    console.print(f"leases: {leases.path}", style="dim", highlight=False)


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich.table import Column, Table

    shown = (Column(column, overflow="fold") for column in columns)
    return Table(*shown, title=title, title_justify="left")


def _device_table(seen: Sequence[Seen]) -> Table:
    from rich.text import Text

    columns = ("device", "name", "MiB free", "load", "temp.", "processes", "a job alone")
    table = _table("Devices", columns)
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
    table = _table("Leases", ("device", "holder", "since", "reserves", "shares"))
    for one in seen:
        for claim in one.occupied.claims:
            since = datetime.fromtimestamp(claim.since).strftime("%Y-%m-%d %H:%M:%S")
            shares = "by memory" if claim.limit is None else f"up to {claim.limit} jobs"
            table.add_row(
                short(one.device.id),
                leases.words(one.device.id, claim),
                since if claim.since else "-",
                _reserves(claim),
                "no" if claim.limit == 1 else shares,
            )
        if one.occupied.wanted_by is not None:
            table.add_row(short(one.device.id), f"{one.occupied.wanted_by} waits to have it alone")
    return table


def _reserves(claim: Claim) -> str:
    mib = "" if claim.reserved_mib is None else f"{claim.reserved_mib} MiB"
    source = f"({claim.source})" if claim.source else ""
    return " ".join(filter(None, (mib, source))) or "-"
