"""`autocl watch`: the panel of a sweep that runs somewhere else; a line per event without a terminal."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from autocl_sweeper.cli.options import folder_argument, sweep_of
from autocl_sweeper.cli.status import facts, text
from autocl_sweeper.display.screen import four
from autocl_sweeper.journal import NAME, Record
from autocl_sweeper.overview import Overview, look

if TYPE_CHECKING:
    from autocl_sweeper.display.panel import Glance

LOOK_S = 1.0
SHARE = 10  # a look at a long journal takes so much longer: no more than this part of a core

HELP = "the panel of a sweep that runs elsewhere; without a terminal, a line per event"
DESCRIPTION = "Follow a sweep until it is over, or Ctrl-C. Reads its journal alone."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="what happened so far, then end")
    folder_argument(parser)


def run(given: argparse.Namespace) -> None:
    sweep = sweep_of(given)
    if sys.stdout.isatty() and not (given.json or given.once):
        _panel(sweep)
        return
    for seen, records in _states(sweep, 0):
        for record in records:
            if given.json:
                print(json.dumps(record))
            elif line := line_of(seen, record):
                print(line)
        sys.stdout.flush()
        if given.once:
            return


def _states(sweep: Overview, told: int) -> Iterator[tuple[Overview, Sequence[Record]]]:
    """The sweep now, and again each time its journal has grown, until it is over or has stopped.

    With it its records after the first `told`, and later those since the last time.
    """
    journal, size, took_s = sweep.folder / NAME, -1, 0.0
    while True:
        begun = time.monotonic()
        found = journal.stat().st_size
        if found != size:
            size = found
            sweep = look(sweep.folder)
            took_s = time.monotonic() - begun
            yield sweep, sweep.records[told:]
            told = len(sweep.records)
        # A controller that was killed writes nothing about it.
        if sweep.status == "finished" or replace(sweep).status == "stopped":
            return
        time.sleep(max(LOOK_S, SHARE * took_s))


def line_of(sweep: Overview, record: Record) -> str:
    """An event as a line; empty for those that say nothing to people."""
    from autocl_sweeper.page.words import clean

    moment = f"{datetime.fromtimestamp(record['time']):%Y-%m-%d %H:%M:%S}"
    told = _told(sweep, record)
    return clean(f"{moment} {told}") if told else ""


def _told(sweep: Overview, record: Record) -> str:
    history = sweep.history
    if "trial" in record:
        trial = history[record["trial"]]
        name = trial.folder or f"trial {trial.number}"
    match record["event"]:
        case "start":
            parent = "" if record["parent"] is None else f" from {record['parent']}"
            return f"{name} started{parent}"
        case "finish" if record["state"] == "FAIL":
            return f"{name} FAIL after {record['seconds']:.1f} s: {record['reason']}"
        case "finish":
            score = "" if record["score"] is None else f" {four(record['score'])}"
            return f"{name} {record['state'].lower()}{score} in {record['seconds']:.1f} s"
        case "attempt_failed":
            return f"{name} runs again: {record['reason']}"
        case "give_up":
            return f"{name} given up: {record['reason']}"
        case "select":
            stage = record["stage"]
            kept = " ".join(f"{n} ({four(history[n].score)})" for n in record["beam"])
            return f"stage {stage} {sweep.task_of(stage)} done, beam {kept}"
        case "end":
            return "the sweep is over"
    return ""


# -- on a terminal ----------------------------------------------------------------------------------


@dataclass
class _Elsewhere:
    """What the panel asks an executor, answered from the journal."""

    sweep: Overview

    def devices(self) -> Mapping[int, tuple[str, ...]]:
        return {one.trial: tuple(one.devices) or ("?",) for one in self.sweep.running}


def _panel(sweep: Overview) -> None:
    from autocl_sweeper.display.panel import Panel
    from autocl_sweeper.display.progress import job_line

    elsewhere = _Elsewhere(sweep)
    panel = Panel(
        elsewhere,
        lambda: _glance(elsewhere.sweep),
        lambda number: job_line(elsewhere.sweep.history, number),
    )
    panel.start()
    try:
        for elsewhere.sweep, records in _states(sweep, len(sweep.records)):
            for record in records:
                if line := line_of(elsewhere.sweep, record):
                    panel.say(line)
    finally:
        panel.stop()
    print(text(replace(elsewhere.sweep)))


def _glance(sweep: Overview) -> Glance:
    from autocl_sweeper.display.panel import Glance

    found = facts(sweep)
    done, planned, running = sweep.done, sweep.planned, found["running"]
    failures = [r for r in sweep.records if r["event"] == "finish" and r["state"] == "FAIL"]
    last = failures[-1] if failures else None
    return Glance(
        done,
        planned,
        running,
        found["failed"],
        found["seconds"],
        queued=None if planned is None else max(0, planned - done - running),
        left_s=found["seconds_left"],
        stage=f"{found['stage']}/{found['stages']}",
        task=sweep.task_of(found["stage"]),
        best="" if found["trial"] is None else four(found["best"]),
        lineage=found["lineage"],
        given_up=found["given_up"],
        stopped=found["stopped_early"],
        failure="" if last is None else f"#{last['trial']}: {last['reason']}",
        command="" if last is None else f"autocl show {last['trial']}",
    )
