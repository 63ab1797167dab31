"""`autocl watch`: the panel of a sweep that runs somewhere else; a line per event without a terminal."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from autocl_sweeper.cli.options import Commands, folder_argument, json_option, sweep_of
from autocl_sweeper.display.screen import four
from autocl_sweeper.journal import NAME, Record
from autocl_sweeper.overview import Overview, look

if TYPE_CHECKING:
    from autocl_sweeper.display.panel import Glance

LOOK_S = 1.0
SHARE = 10  # a look at a long journal takes so much longer: no more than this part of a core


def add(commands: Commands) -> None:
    watch = commands.add_parser(
        "watch",
        help="the panel of a sweep that runs elsewhere; without a terminal, a line per event",
        description="Follow a sweep until it is over, or Ctrl-C. Reads its journal alone.",
    )
    json_option(watch)
    watch.add_argument("--once", action="store_true", help="what happened so far, then end")
    folder_argument(watch)
    watch.set_defaults(run=_watch)


def _watch(given: argparse.Namespace) -> None:
    sweep = sweep_of(given)
    if sys.stdout.isatty() and not (given.json or given.once):
        _panel(sweep)
        return
    told = 0
    for seen in _states(sweep):
        for record in seen.records[told:]:
            if given.json:
                print(json.dumps(record))
            elif line := line_of(seen, record):
                print(line)
        sys.stdout.flush()
        told = len(seen.records)
        if given.once:
            return


def _states(sweep: Overview) -> Iterator[Overview]:
    """The sweep now, and again each time its journal has grown, until it is over or has stopped."""
    journal, size = sweep.folder / NAME, -1
    took_s = 0.0
    while True:
        begun = time.monotonic()
        found = journal.stat().st_size
        if found != size:
            size = found
            sweep = look(sweep.folder)
            took_s = time.monotonic() - begun
            yield sweep
        if sweep.status == "finished" or _as_of_now(sweep).status == "stopped":
            return
        time.sleep(max(LOOK_S, SHARE * took_s))


def _as_of_now(sweep: Overview) -> Overview:
    """The same records, read again: a controller that was killed writes nothing about it."""
    return Overview(sweep.folder, sweep.records, sweep.state, sweep.setup)


def line_of(sweep: Overview, record: Record) -> str:
    """An event as a line; empty for those that say nothing to people."""
    from autocl_sweeper.page.words import clean

    moment = f"{datetime.fromtimestamp(record['time']):%Y-%m-%d %H:%M:%S}"
    text = _text(sweep, record)
    return clean(f"{moment} {text}") if text else ""


def _text(sweep: Overview, record: Record) -> str:
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
            task = history.stage(stage)[0].task if history.stage(stage) else ""
            return f"stage {stage} {task} done, beam {kept}"
        case "end":
            return "the sweep is over"
    return ""


# -- on a terminal ----------------------------------------------------------------------------------


class _Elsewhere:
    """What the panel asks an executor, answered from the journal."""

    def __init__(self, sweep: Overview) -> None:
        self.sweep = sweep

    def devices(self) -> Mapping[int, tuple[str, ...]]:
        running = (one for one in self.sweep.attempts if one.end is None)
        return {one.trial: tuple(one.devices) or ("?",) for one in running}


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
    seen = len(sweep.records)
    try:
        for elsewhere.sweep in _states(sweep):
            for record in elsewhere.sweep.records[seen:]:
                if line := line_of(elsewhere.sweep, record):
                    panel.say(line)
            seen = len(elsewhere.sweep.records)
    finally:
        panel.stop()
    from autocl_sweeper.cli.status import text

    print(text(_as_of_now(elsewhere.sweep)))


def _glance(sweep: Overview) -> Glance:
    from autocl_sweeper.display.panel import Glance

    counts, leader = sweep.counts, sweep.leader
    done = len(sweep.history) - counts["RUNNING"] - counts["given up"]
    stages = max(len(sweep.tasks), sweep.stages, 1)
    stage = min(sweep.history.open_stage, stages)
    planned = sweep.planned
    lineage = [] if leader is None else sweep.history.lineage(leader)
    failure, command = _last_failure(sweep)
    return Glance(
        done,
        planned,
        counts["RUNNING"],
        counts["FAIL"],
        sweep.elapsed_s,
        queued=None if planned is None else max(0, planned - done - counts["RUNNING"]),
        left_s=sweep.left_s,
        stage=f"{stage}/{stages}",
        task=sweep.task_of(stage),
        best="" if leader is None else four(leader.score),
        lineage=[trial.number for trial in lineage],
        given_up=counts["given up"],
        stopped=counts["PRUNED"],
        failure=failure,
        command=command,
    )


def _last_failure(sweep: Overview) -> tuple[str, str]:
    for record in reversed(sweep.records):
        if record["event"] == "finish" and record["state"] == "FAIL":
            number = record["trial"]
            return f"#{number}: {record['reason']}", f"autocl show {number}"
    return "", ""
