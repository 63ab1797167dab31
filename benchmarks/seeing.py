"""What looking at a large sweep costs: its report, and a redraw of its panel.

    python benchmarks/seeing.py            # 1,000 and 10,000 trials
    python benchmarks/seeing.py 3000

Five tasks, a beam of four, four parameters of which one is conditional, curves, failures, scores by
task. Processor time counts, the least of three runs; on an idle machine it is the time to wait as
well. Where scikit-learn is installed, Optuna imports it for the importances: about a second of it.
Budgets: 1,000 trials 2 s and 1.3 MB, 10,000 trials 10 s and 2.9 MB, a panel 1 % of a core.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from autocl_sweeper.device.probe import FakeProbe
from autocl_sweeper.display.panel import PER_SECOND, Glance, Panel
from autocl_sweeper.display.progress import job_line
from autocl_sweeper.journal import VERSION, Journal, fold, outcome_to_json, read, trial_to_json
from autocl_sweeper.types import Cause, Outcome, State, Suggestion, Trial

TASKS = [f"task_{number}" for number in range(5)]
SPACE = {
    "lr": "log float interval [0.0001, 0.1]",
    "layers": [1, 2, 4, 8],
    "optimizer": ["adam", "sgd"],
    "momentum": "float interval [0.0, 0.99]",
    "when": {"momentum": {"optimizer": ["sgd"]}},
}
BEAM, DEVICES = 4, 8
BUDGETS = {1000: (2.0, 1.3e6), 10000: (10.0, 2.9e6)}


def write_sweep(folder: Path, trials: int) -> None:
    """A journal of so many trials, all over."""
    draw = random.Random(0)
    fingerprint = {
        "hydra.sweeper.sequence": TASKS, "hydra.sweeper.top_k": BEAM,
        "hydra.sweeper.direction": "maximize", "hydra.sweeper.handover": {"init_from": "checkpoint"},
        "hydra.sweeper.search": {"factory": "autocl_sweeper.search.random.RandomSearch"},
        "search space": dict.fromkeys(TASKS, SPACE),
    }  # fmt: skip
    events: list[tuple[str, dict[str, Any]]] = []
    about = {"version": VERSION, "fingerprint": fingerprint, "configuration": {}}
    events.append(("sweep", {**about, "command": "python train.py -m", "versions": {}}))
    beam: list[int] = []
    scores: dict[int, float] = {}
    per_stage = trials // len(TASKS)
    for number in range(trials):
        stage = min(number // per_stage + 1, len(TASKS))
        params: dict[str, Any] = {
            "lr": 10 ** draw.uniform(-4, -1),
            "layers": draw.choice([1, 2, 4]),
        }
        params["optimizer"] = draw.choice(["adam", "sgd"])
        if params["optimizer"] == "sgd":
            params["momentum"] = draw.uniform(0, 0.99)
        task = TASKS[stage - 1]
        suggestion = Suggestion(number, params, origin=draw.choice(["fresh", "model", "carried"]))
        parent = draw.choice(beam) if beam else None
        trial = Trial(number, stage, task, suggestion, parent, f"{stage}_{task}/{number}")
        events.append(("start", {**trial_to_json(trial), "overrides": []}))
        device = f"GPU-{number % DEVICES:08x}-x"
        events.append(("running", {"trial": number, "attempt": 1, "device": [device]}))
        if draw.random() < 0.03:
            tail = [f"line {line} of a log" for line in range(20)]
            outcome = Outcome(
                State.FAIL, "exit status 1", seconds=5.0, log_tail=tail, cause=Cause.EXIT
            )
        else:
            score = scores[number] = draw.betavariate(8, 2)
            for step in range(1, 4):
                where = {"trial": number, "attempt": 1, "step": step}
                events.append(("report", {**where, "score": score * step / 3}))
            seen = {name: score * draw.uniform(0.8, 1) for name in TASKS[:stage]}
            outcome = Outcome(
                State.COMPLETE,
                score=score,
                evaluations=seen,
                tests=seen,
                seconds=draw.uniform(5, 60),
            )
        events.append(("finish", {"trial": number, **outcome_to_json(outcome)}))
        following = min((number + 1) // per_stage + 1, len(TASKS))
        if number + 1 == trials or following > stage:
            here = [n for n in scores if min(n // per_stage + 1, len(TASKS)) == stage]
            beam = sorted(here, key=lambda n: -scores[n])[:BEAM]
            events.append(("select", {"stage": stage, "beam": beam}))
    journal = Journal(folder)
    events.append(("end", {}))
    for start in range(0, len(events), 500):
        journal.extend(events[start : start + 500])
    journal.close()


def report_cost(folder: Path) -> tuple[float, float, int]:
    """Processor seconds and seconds of `autocl report`, and the bytes that it wrote."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.monotonic()
    command = [sys.executable, "-m", "autocl_sweeper", "report", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, took, (folder / "report.html").stat().st_size


class Busy:
    """Eight GPUs, each with a job."""

    def __init__(self, trials: int) -> None:
        self._devices = {one.id: one for one in FakeProbe.gpus(DEVICES, 80000).devices()}
        last = range(trials - DEVICES, trials)
        self._where = {n: (name,) for n, name in zip(last, self._devices, strict=True)}

    def devices(self) -> dict[int, tuple[str, ...]]:
        return self._where

    def readings(self) -> Any:
        return self._devices


def panel_cost(folder: Path, trials: int, redraws: int = 400) -> float:
    """The share of a core that a panel of this sweep takes, 80 columns wide."""
    from rich.console import Console

    history = fold(read(folder)).history

    def glance() -> Glance:
        running, over = len(history.running()), len(history)
        best = history[history.beams[len(TASKS)][0]]
        chain = [one.number for one in history.lineage(best)]
        return Glance(
            over, trials, running, history.failures, 60.0, 0, 5.0, "5/5", TASKS[-1],
            f"{best.score:.4g}", chain, failure="#11: out of memory", command="autocl show 11",
        )  # fmt: skip

    busy = Busy(trials)
    panel = Panel(busy, glance, lambda number: job_line(history, number))
    panel._readings = busy.readings()
    with open("/dev/null", "w") as nowhere:
        console = Console(file=nowhere, width=80, force_terminal=True)
        begun = time.process_time()
        for _ in range(redraws):
            console.print(panel)
        return (time.process_time() - begun) / redraws * PER_SECOND


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trials", type=int, nargs="*", default=list(BUDGETS))
    print("trials  report: cpu s  wall s      MB   panel: % of a core")
    for trials in parser.parse_args().trials:
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home, "sweep")
            write_sweep(folder, trials)
            used_s, took_s, size = min(report_cost(folder) for _ in range(3))
            share = panel_cost(folder, trials)
        print(
            f"{trials:6d} {used_s:14.2f} {took_s:7.2f} {size / 1e6:7.2f} {share:20.2%}", flush=True
        )
        most_s, most = BUDGETS.get(trials, (float("inf"), float("inf")))
        for what, over in (
            (f"{most_s:g} s", used_s > most_s),
            (f"{most / 1e6:g} MB", size > most),
            ("1 % of a core", share > 0.01),
        ):
            if over:
                print(f"        over the budget of {what}")


if __name__ == "__main__":
    main()
