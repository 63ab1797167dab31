"""What early stopping saves and what it costs, on synthetic learning curves in virtual time.

    python benchmarks/search/early_stopping.py            20 seeds, a minute on one core

A stage of 32 trials of 900 steps on 4 devices, a report every 20 steps. Four kinds of curves, from
those where early scores tell the final ones to those where they tell the opposite. Loss is the score
of the best trial without early stopping minus that of the best trial with it; scores lie in 0 to 1.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

from autocl_sweeper.display.progress import LogProgress
from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.plan import Settings, make_plan
from autocl_sweeper.results.early import savings
from autocl_sweeper.sweep.loop import Sweep
from autocl_sweeper.types import Job, Outcome, State
from hydra_plugins.hydra_autocl_sweeper._schema import AutoCLSweeperConf

TRIALS, DEVICES, BEAM = 32, 4, 2
STEPS, EVERY = 900, 20
NOISE = 0.02  # standard deviation of a reported score
CONF = AutoCLSweeperConf(
    top_k=BEAM,
    handover={},
    task_params={"a": [{"x": n} for n in range(TRIALS)]},
    search={"factory": "autocl_sweeper.search.grid.GridSearch"},
)


@dataclass(frozen=True)
class Trained:
    """A training: its final score, and how far it has come after a share of its steps."""

    final: float
    at: Callable[[float], float]


def alike(dice: random.Random) -> Trained:
    """All learn at one speed: the order of early scores is that of the final ones."""
    final = dice.random()
    return Trained(final, lambda share: final * (1 - math.exp(-5 * share)))


def at_two_paces(dice: random.Random) -> Trained:
    """Speeds differ by a factor of up to 5, whatever the final score is."""
    final, speed = dice.random(), 2 * 5 ** dice.random()
    return Trained(final, lambda share: final * (1 - math.exp(-speed * share)))


def slow_and_good(dice: random.Random) -> Trained:
    """The better a training ends, the slower it begins: curves cross, many of them late."""
    final = dice.random()
    speed = 12 - 10 * final * dice.random() ** 0.5
    return Trained(final, lambda share: final * (1 - math.exp(-speed * share)))


def upside_down(dice: random.Random) -> Trained:
    """What is good at first ends badly; only the last third shows it."""
    final = dice.random()
    return Trained(final, lambda share: final if share > 2 / 3 else (1 - final) * (0.5 + share / 2))


KINDS = (alike, at_two_paces, slow_and_good, upside_down)
RULES: dict[str, Any] = {
    "none": None,
    "asha, max_steps": {"rule": "asha", "max_steps": STEPS},
    "asha": "asha",
    "median, max_steps": {"rule": "median", "max_steps": STEPS},
}


@dataclass(frozen=True)
class Figures:
    saved: float  # share of the steps
    span_s: float
    best: float
    kept: bool  # whether the best of all trials is in the beam


def run(kind: Callable[[random.Random], Trained], seed: int, rule: Any) -> Figures:
    dice = random.Random(f"{kind.__name__}/{seed}")
    trained = [kind(dice) for _ in range(TRIALS)]
    noise = random.Random(f"noise/{kind.__name__}/{seed}")
    marks = range(EVERY, STEPS + 1, EVERY)
    curves = [[t.at(s / STEPS) + noise.gauss(0, NOISE) for s in marks] for t in trained]

    def place(job: Job) -> int:
        return int(dict(text.partition("=")[::2] for text in job.overrides)["x"])

    def end(job: Job) -> Outcome:
        numbers = {"score": trained[place(job)].final}
        return Outcome(State.COMPLETE, numbers=numbers, returned="float", seconds=float(STEPS))

    def curve(job: Job) -> Sequence[tuple[float, int, float]]:
        return [(s, s, one) for s, one in zip(marks, curves[place(job)], strict=True)]

    conf = {field.name: getattr(CONF, field.name) for field in fields(Settings)}
    settings = Settings(**{**conf, "prune": rule})
    plan = make_plan(settings, ["task=a"], lambda overrides, meant_for: {}, None, True)
    executor = SimulatedExecutor(DEVICES, end, curve=curve)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "sweep")
        sweep = Sweep(folder, plan, executor, JobFiles.of(folder), LogProgress())
        history = sweep.run()
    saved = savings(history)
    best = max(range(TRIALS), key=lambda one: trained[one].final)
    beam = [history[number] for number in history.beams[1]]
    return Figures(
        saved.steps / saved.all_steps,
        executor.clock_s,
        max(trial.score or 0.0 for trial in beam),
        best in {trial.suggestion.params["x"] for trial in beam},
    )


def interval(values: Sequence[float]) -> str:
    """The mean with its 95 % interval by the normal distribution."""
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.3f} +- {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    seeds = range(parser.parse_args().seeds)
    logging.disable(logging.CRITICAL)
    print(f"{TRIALS} trials of {STEPS} steps, {DEVICES} devices, beam {BEAM}, {len(seeds)} seeds\n")
    print("| curves | rule | steps saved | time | score lost | best trial kept |")
    print("|---|---|---|---|---|---|")
    with mock.patch.object(os, "fsync"):  # nothing here is about power cuts
        for kind in KINDS:
            plain = [run(kind, seed, None) for seed in seeds]
            for name, rule in RULES.items():
                found = plain if rule is None else [run(kind, seed, rule) for seed in seeds]
                pairs = list(zip(plain, found, strict=True))
                time = statistics.fmean(b.span_s / a.span_s for a, b in pairs)
                cells = (
                    kind.__name__.replace("_", " "),
                    name,
                    f"{statistics.fmean(one.saved for one in found):.0%}",
                    f"{time:.0%}",
                    interval([a.best - b.best for a, b in pairs]),
                    f"{sum(one.kept for one in found)} of {len(found)}",
                )
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
