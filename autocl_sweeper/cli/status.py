"""`autocl status`: how far a sweep is, in three lines."""

from __future__ import annotations

import argparse
import time
from typing import Any

from autocl_sweeper.cli.options import folder_argument, print_json, sweep_of
from autocl_sweeper.device.probe import short
from autocl_sweeper.display.screen import four
from autocl_sweeper.overview import Overview

HELP = "how far a sweep is, its best trial so far, and what is left"
DESCRIPTION = "How far a sweep is, from its journal; it may run on another machine."


def add(parser: argparse.ArgumentParser) -> None:
    folder_argument(parser)


def run(given: argparse.Namespace) -> None:
    sweep = sweep_of(given)
    if given.json:
        print_json(facts(sweep))
    else:
        print(text(sweep))


def facts(sweep: Overview) -> dict[str, Any]:
    """What there is to say, for programs."""
    leader = sweep.leader
    counts, stages = sweep.counts, max(len(sweep.tasks), sweep.stages, 1)
    return {
        "folder": str(sweep.folder),
        "status": sweep.status,
        "as_of": sweep.as_of,
        "stage": min(sweep.history.open_stage, stages),
        "stages": stages,
        "best": None if leader is None else leader.score,
        "trial": None if leader is None else leader.number,
        "lineage": [] if leader is None else [t.number for t in sweep.history.lineage(leader)],
        "trials": len(sweep.history),
        "planned": sweep.planned,
        "complete": counts["COMPLETE"],
        "running": counts["RUNNING"],
        "failed": counts["FAIL"],
        "stopped_early": counts["PRUNED"],
        "given_up": counts["given up"],
        "seconds": sweep.elapsed_s,
        "seconds_left": sweep.left_s,
        "devices_busy": sweep.busy,
        "on_devices": [
            {
                "trial": one.trial,
                "devices": list(one.devices),
                "reserved_mib": one.reserved_mib,
                "reserved_by": one.reserved_by,
            }
            for one in sweep.running
        ],
    }


def text(sweep: Overview) -> str:
    from autocl_sweeper.display.panel import clock

    found = facts(sweep)
    first: str = "not finished" if sweep.status == "open" else sweep.status
    if sweep.status != "finished":
        task = sweep.task_of(found["stage"])
        first += f", stage {found['stage']} of {found['stages']}{f' ({task})' if task else ''}"
        first += f", as of {_ago(time.time() - sweep.as_of)} ago"
    best = "no score yet"
    if found["trial"] is not None:
        best = f"best {four(found['best'])}, trial {found['trial']}"
    if len(found["lineage"]) > 1:
        best += f" ({' > '.join(map(str, found['lineage']))})"
    of = f" of {sweep.planned}" if sweep.planned else ""
    counted = ("running", "failed", "given_up", "stopped_early")
    parts = [f"{found[key]} {key.replace('_', ' ')}" for key in counted if found[key]]
    parts.insert(0, f"{sweep.done}{of} done")
    times = f"{clock(found['seconds'])} elapsed"
    if found["seconds_left"] is not None and sweep.status == "running":
        times += f", about {clock(found['seconds_left'])} left"
    busy = "" if sweep.busy is None else f"devices busy {sweep.busy:.0%}"
    width = max(len(best), len(times)) + 4
    lines = [first, f"  {best:<{width}}{', '.join(parts)}", f"  {times:<{width}}{busy}".rstrip()]
    lines += [
        f"  trial {one.trial} on {' '.join(map(short, one.devices))}: {one.reservation}"
        for one in sweep.running
        if one.reservation
    ]
    return "\n".join(lines)


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{max(0, seconds):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"
