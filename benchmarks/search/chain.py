"""Searches and simple protocols on a chain of ten tasks of rotated digits, at equal jobs.

    python benchmarks/search/chain.py                    all tables and the times
    python benchmarks/search/chain.py --seeds 3          a first look
    python benchmarks/search/chain.py --arms relay k=4   only these arms

A job trains a small network, warm-started from its parent's weights, on 100 digits rotated by the
angle of its task, and is ranked by its mean accuracy on the dev images of all tasks so far: order,
forgetting and parents matter. What is reported is the mean accuracy of the best chain's end on test
images of all ten tasks, in per cent. A seed is a split of the digits, an order of the angles, the
initial weights and the seed of the searches; arms with the same seed are paired. `--keep` names a file
for the figure of every seed and arm: what stands there is not computed again.

The strategy and the searches are the package's own. Jobs run in batches of four: the four of a batch
do not know each other's results. In the mirrored chain every second task turns the search space
around (what was the low end of a key is its high end), so that what one task learned misleads the
next one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import rotate
from scipy.stats import t as student_t
from sklearn.datasets import load_digits

from autocl_sweeper.distributions import Choice, Interval, Space
from autocl_sweeper.protocols import Search
from autocl_sweeper.search.grid import GridSearch
from autocl_sweeper.search.random import RandomSearch, uniform
from autocl_sweeper.search.relay import RelaySearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.decisions import Done, Select, Stage, Start
from autocl_sweeper.strategy.sequential import SequentialTopK
from autocl_sweeper.types import History, Outcome, State, Suggestion, Trial, Value

TASKS = 10
BATCH = 4
HIDDEN = 32
LOWER = 65 * HIDDEN  # weights of the lower layer
STEP = 9  # degrees
# Plain fine-tuning, as an app begins with it before anything was searched.
APP = {"lr": 0.01, "epochs": 5, "batch": 16, "anchor": 1e-4, "momentum": 0.9, "lower": 1.0,
       "optimizer": "sgd"}  # fmt: skip
SPACE = Space(
    {
        "lr": Interval(1e-4, 10.0, log=True),
        "epochs": Interval(1, 16, integer=True),
        "batch": Choice((4, 8, 16, 32)),
        "anchor": Interval(1e-4, 1.0, log=True),  # how strongly weights are drawn to the parent's
        "momentum": Interval(0.0, 0.95),
        "lower": Interval(1e-3, 1.0, log=True),  # learning rate of the lower layer, as a share
        "optimizer": Choice(("sgd", "adam")),
    },
    init=APP,
)
Params = Mapping[str, Value]


# -- the tasks --------------------------------------------------------------------------------------


@dataclass
class Chain:
    """Ten tasks of one seed; what was trained once is not trained again."""

    seed: int
    mirrored: bool
    trained: dict[Any, tuple[np.ndarray, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        dice = np.random.default_rng(self.seed)
        order = dice.permutation(len(images))
        parts = np.split(order, [700, 1100])
        self.angles = [STEP * int(turn) for turn in dice.permutation(TASKS)]
        self.tasks = []
        for angle in self.angles:
            turned = rotate(images.reshape(-1, 8, 8), angle, (1, 2), reshape=False, order=1)
            pixels = np.column_stack([turned.reshape(-1, 64) / 16.0, np.ones(len(images))])
            sizes = (100, 100, 300)
            chosen = [
                dice.choice(p, size, replace=False) for p, size in zip(parts, sizes, strict=True)
            ]
            self.tasks.append([(pixels[rows], labels[rows]) for rows in chosen])
        self.start = dice.normal(0.0, 0.1, LOWER + (HIDDEN + 1) * 10)

    def job(self, task: int, params: Params, parent: Any) -> tuple[Any, float]:
        """The key of the trained weights, and their mean dev accuracy on all tasks so far."""
        key = (parent, repr(sorted(params.items())))
        if key not in self.trained:
            weights = self.start if parent is None else self.trained[parent][0]
            real = mirror(params) if self.mirrored and task % 2 else params
            with np.errstate(all="ignore"):  # training may diverge
                weights = train(weights, *self.tasks[task][0], real, 1000 * self.seed + task)
                seen = [accuracy(weights, *self.tasks[one][1]) for one in range(task + 1)]
            self.trained[key] = weights, statistics.fmean(seen)
        return key, self.trained[key][1]

    def final(self, key: Any) -> float:
        weights = self.trained[key][0]
        return 100 * statistics.fmean(accuracy(weights, *task[2]) for task in self.tasks)


def mirror(params: Params) -> dict[str, Value]:
    """The params at the other side of the space."""
    turned: dict[str, Value] = {}
    for key, value in params.items():
        place = SPACE[key].position(value)
        assert place is not None
        turned[key] = SPACE[key].at(1 - place)
    return turned


def layers(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both layers as matrices; their last rows are the biases."""
    return flat[:LOWER].reshape(65, HIDDEN), flat[LOWER:].reshape(HIDDEN + 1, 10)


def train(
    start: np.ndarray, pixels: np.ndarray, labels: np.ndarray, params: Params, seed: int
) -> np.ndarray:
    """One hidden layer of tanh, cross-entropy, weights drawn to where they started."""
    dice = np.random.default_rng(seed)
    lr, momentum, anchor = (float(params[key]) for key in ("lr", "momentum", "anchor"))  # type: ignore[arg-type]
    epochs, batch = int(params["epochs"]), int(params["batch"])  # type: ignore[arg-type]
    adam = params["optimizer"] == "adam"
    weights, gradient = start.copy(), np.empty_like(start)
    (w1, w2), (g1, g2) = layers(weights), layers(gradient)
    rates = np.full_like(start, lr * (0.1 if adam else 1.0))
    rates[:LOWER] *= float(params["lower"])  # type: ignore[arg-type]
    speed, square = np.zeros_like(start), np.zeros_like(start)
    targets, hidden, steps = np.eye(10)[labels], np.ones((batch, HIDDEN + 1)), 0
    for _ in range(epochs):
        order = dice.permutation(len(labels))
        for first in range(0, len(labels) - batch + 1, batch):
            rows = order[first : first + batch]
            x = pixels[rows]
            np.tanh(x @ w1, out=hidden[:, :HIDDEN])
            out = np.exp(np.minimum(hidden @ w2, 50))
            wrong = (out / np.add.reduce(out, 1)[:, None] - targets[rows]) / batch
            inner = hidden[:, :HIDDEN]
            g1[:] = x.T @ ((wrong @ w2[:HIDDEN].T) * (1 - inner * inner))
            g2[:] = hidden.T @ wrong
            gradient += anchor * (weights - start)
            speed *= momentum
            if adam:
                steps += 1
                square *= 0.99
                square += 0.01 * gradient * gradient
                speed += (1 - momentum) * gradient
                scale = np.sqrt(square / (1 - 0.99**steps)) + 1e-6
                weights -= rates * speed / (scale * (1 - momentum**steps))
            else:
                speed += gradient
                weights -= rates * speed
    return weights


def accuracy(weights: np.ndarray, pixels: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers; a network that diverged answers 0 to everything."""
    w1, w2 = layers(weights)
    found = (np.tanh(pixels @ w1) @ w2[:HIDDEN] + w2[HIDDEN]).argmax(axis=1)
    return float((found == labels).mean())


# -- the arms ---------------------------------------------------------------------------------------

Arm = Callable[[Chain, int], Any]
"""(chain, jobs per stage) -> key of the weights that it ends with."""


def play(strategy: SequentialTopK, history: History, finish: Callable[[Trial], None]) -> None:
    """Run a strategy to its end, `BATCH` jobs at a time; `finish` ends a job in the history."""
    while not isinstance(decision := strategy.next(history), Done):
        if isinstance(decision, Select):
            history.select(decision.stage.number, decision.beam)
        elif isinstance(decision, Start) and len(history.running()) < BATCH:
            number, stage = len(history), decision.stage
            history.start(
                Trial(number, stage.number, stage.task, decision.suggestion, decision.parent)
            )
        else:
            for trial in history.running():
                finish(trial)


def stage_by_stage(
    search: Callable[[int, int, int], Search],
    chain: Chain,
    jobs: int,
    k: int,
    transfer: bool = True,
) -> Any:
    """The package's strategy; `search`: (seed, task, jobs) -> the search of a stage."""
    stages = [
        Stage(place + 1, f"task{place}", search(chain.seed, place, jobs), None, jobs)
        for place in range(TASKS)
    ]
    strategy = SequentialTopK(stages, TopK(k), width=k, carried=() if transfer else None)
    history, keys = History(), {None: None}

    def finish(trial: Trial) -> None:
        params = trial.suggestion.params
        key, score = chain.job(trial.stage - 1, {**APP, **params}, keys[trial.parent])
        keys[trial.number] = key
        history.finish(trial.number, Outcome(State.COMPLETE, score=score))

    play(strategy, history, finish)
    assert len(history) == jobs * TASKS, f"{len(history)} jobs, not {jobs * TASKS}"
    return keys[history.beams[TASKS][0]]


def relay(seed: int, place: int, jobs: int, **rules: Any) -> RelaySearch:
    return RelaySearch(SPACE, seed, f"task{place}", **rules)


def random_search(seed: int, place: int, jobs: int) -> RandomSearch:
    return RandomSearch(SPACE, seed, f"task{place}")


def grid(seed: int, place: int, jobs: int) -> GridSearch:
    """As many combinations of what matters most as there are jobs for, the rest as the app has it."""
    if place == 0:
        levels = {"lr": 4, "epochs": jobs // 4}
    else:  # two parents each
        levels = {"lr": jobs // 4, "anchor": 2}
    axes = {
        key: Choice(tuple(SPACE[key].at((i + 0.5) / n) for i in range(n)))
        for key, n in levels.items()
    }
    return GridSearch(Space(axes), seed, f"task{place}")


def drawn(chain: Chain, place: int) -> Params:
    """The configuration of a chain that is a whole number of jobs: the app's own is the first."""
    if place == 0:
        return APP
    return SPACE.draw(lambda axis: uniform(f"{chain.seed}/chains/{place}/{axis}"))


def follow(chain: Chain, params: Callable[[int], Params], tasks: Sequence[int], parent: Any) -> Any:
    score = -math.inf
    for task in tasks:
        parent, score = chain.job(task, params(task), parent)
    return score, parent


def fixed(chain: Chain, jobs: int) -> Any:
    """Whole chains, one configuration each."""
    ends = [follow(chain, lambda _, i=i: drawn(chain, i), range(TASKS), None) for i in range(jobs)]  # type: ignore[misc]
    return max(ends, key=lambda end: end[0])[1]


def random_chains(chain: Chain, jobs: int) -> Any:
    """Whole chains, a configuration drawn at every step."""
    ends = [
        follow(chain, lambda task, i=i: drawn(chain, TASKS * i + task), range(TASKS), None)  # type: ignore[misc]
        for i in range(jobs)
    ]
    return max(ends, key=lambda end: end[0])[1]


def first_3(chain: Chain, jobs: int) -> Any:
    """As many configurations as the jobs allow on the first three tasks; the best one goes on."""
    count = (jobs * TASKS - (TASKS - 3)) // 3
    ends = [
        (*follow(chain, lambda _, i=i: drawn(chain, i), range(3), None), i) for i in range(count)
    ]  # type: ignore[misc]
    _, end, best = max(ends, key=lambda one: one[0])
    return follow(chain, lambda _: drawn(chain, best), range(3, TASKS), end)[1]


def _by_stage(search: Any, k: int = 2, transfer: bool = True, share: float = 1.0) -> Arm:
    return lambda chain, jobs: stage_by_stage(search, chain, int(jobs * share), k, transfer)


ARMS: dict[str, Arm] = {
    "relay": _by_stage(relay),
    "relay, half the jobs": _by_stage(relay, share=0.5),
    "beam + grid": _by_stage(grid),
    "beam + random": _by_stage(random_search),
    "greedy random": _by_stage(random_search, k=1),
    "first_3": first_3,
    "fixed": fixed,
    "random_chains": random_chains,
    "TPE, no transfer": _by_stage(partial(relay, startup=4), transfer=False),
}
PARTS: dict[str, Arm] = {  # what carries relay; by --arms
    "no guard": _by_stage(partial(relay, guard=math.inf)),
    "no carrying": _by_stage(partial(relay, carried=0)),
    "carrying 4 at most": _by_stage(partial(relay, carried=4)),
    "no pool": _by_stage(partial(relay, memory=0)),
    "k=1": _by_stage(relay, k=1),
    "k=4": _by_stage(relay, k=4),
    "TPE, no transfer, k=4": _by_stage(partial(relay, startup=4), k=4, transfer=False),
    "beam + random, k=4": _by_stage(random_search, k=4),
    "no fresh": _by_stage(partial(relay, fresh=0.0)),
    "Sobol, no transfer": _by_stage(relay, transfer=False),
}
MIRRORED = ("relay", "no guard", "TPE, no transfer", "greedy random")


# -- the tables -------------------------------------------------------------------------------------


def interval(differences: Sequence[float]) -> str:
    """Mean and half the width of the 95 % t-interval."""
    n = len(differences)
    half = (
        student_t.ppf(0.975, n - 1) * statistics.stdev(differences) / math.sqrt(n)
        if n > 1
        else math.nan
    )
    return f"{statistics.fmean(differences):+.1f} ± {half:.1f}"


class Kept:
    """The figure of each (mirrored, jobs, seed, arm) that was computed, in a file if one is named."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        self._figures = {tuple(key): figure for key, figure in map(json.loads, lines)}

    def figures(self, mirrored: bool, jobs: int, seed: int, names: Sequence[str]) -> list[float]:
        keys, chain = {name: (mirrored, jobs, seed, name) for name in names}, None
        for name, key in keys.items():
            if key in self._figures:
                continue
            chain = chain or Chain(seed, mirrored)
            self._figures[key] = chain.final((ARMS | PARTS)[name](chain, jobs))
            if self._file is not None:
                with self._file.open("a") as file:
                    file.write(json.dumps([key, self._figures[key]]) + "\n")
        return [self._figures[keys[name]] for name in names]


def table(
    names: Sequence[str], jobs: int, seeds: range, mirrored: bool, kept: Kept
) -> Iterator[str]:
    found: dict[str, list[float]] = {name: [] for name in names}
    kind = "mirrored chain" if mirrored else "chain"
    for seed in seeds:
        for name, figure in zip(names, kept.figures(mirrored, jobs, seed, names), strict=True):
            found[name].append(figure)
        told = ", ".join(f"{name} {found[name][-1]:.1f}" for name in names)
        print(f"{kind}, {jobs} jobs, seed {seed}: {told}", file=sys.stderr, flush=True)
    yield f"\n{kind}, {jobs} jobs per task, {TASKS} tasks, {len(seeds)} seeds from {seeds[0]} on\n"
    yield f"| arm | % | {names[0]} minus it | seeds won | seeds lost |"
    yield "|---|---|---|---|---|"
    first = found[names[0]]
    for name in sorted(names, key=lambda one: -statistics.fmean(found[one])):
        mean = f"{statistics.fmean(found[name]):.1f}"
        if name == names[0]:
            yield f"| **{name}** | {mean} | | | |"
            continue
        apart = [a - b for a, b in zip(first, found[name], strict=True)]
        won, lost = sum(d > 1e-9 for d in apart), sum(d < -1e-9 for d in apart)
        yield f"| {name} | {mean} | {interval(apart)} | {won} | {lost} |"
    if "relay, half the jobs" in names:
        half = found["relay, half the jobs"]
        yield "\n| arm at all the jobs | relay at half of them minus it | seeds won | seeds lost |"
        yield "|---|---|---|---|"
        for name in names:
            if name in ARMS and not name.startswith("relay"):
                apart = [a - b for a, b in zip(half, found[name], strict=True)]
                won, lost = sum(d > 1e-9 for d in apart), sum(d < -1e-9 for d in apart)
                yield f"| {name} | {interval(apart)} | {won} | {lost} |"


def times() -> Iterator[str]:
    """How long `ask` takes with 1,000 trials."""
    yield "\n`ask` with 1,000 trials in the history, CPU ms, median of the last 20 asked of the model\n"
    yield "| | ms |"
    yield "|---|---|"
    for label, stages, jobs in (("one stage", 1, 1000), ("five stages of 200", 5, 200)):
        searches = [relay(0, place, jobs) for place in range(stages)]
        plan = [Stage(i + 1, f"task{i}", one, None, jobs) for i, one in enumerate(searches)]
        strategy, history, took = SequentialTopK(plan, TopK(2)), History(), []
        while True:
            begin = time.process_time()
            decision = strategy.next(history)
            if isinstance(decision, Start) and decision.suggestion.origin == "model":
                took.append(time.process_time() - begin)
            if isinstance(decision, Done):
                break
            if isinstance(decision, Select):
                history.select(decision.stage.number, decision.beam)
                continue
            assert isinstance(decision, Start)
            number, stage = len(history), decision.stage
            suggestion: Suggestion = decision.suggestion
            history.start(Trial(number, stage.number, stage.task, suggestion, decision.parent))
            score = -abs(math.log10(float(suggestion.params["lr"])) + 2)  # type: ignore[arg-type]
            history.finish(number, Outcome(State.COMPLETE, score=score))
        yield f"| {label} | {1e3 * statistics.median(took[-20:]):.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first-seed", type=int, default=200)
    parser.add_argument("--jobs", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=[*ARMS, *PARTS])
    parser.add_argument("--mirrored", nargs="*", default=list(MIRRORED), choices=[*ARMS, *PARTS])
    parser.add_argument("--keep", type=Path, help="a file for figures; the same again goes on")
    parser.add_argument("--no-times", action="store_true")
    options = parser.parse_args()
    begin, kept = time.monotonic(), Kept(options.keep)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for jobs in options.jobs:
        for line in table(options.arms, jobs, seeds, mirrored=False, kept=kept):
            print(line, flush=True)
    for jobs in options.jobs if options.mirrored else ():
        for line in table(options.mirrored, jobs, seeds, mirrored=True, kept=kept):
            print(line, flush=True)
    if not options.no_times:
        for line in times():
            print(line, flush=True)
    print(f"\n{time.monotonic() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
