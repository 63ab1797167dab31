"""Nine small problems, all searches: how far each gets with 50, 100 and 200 evaluations.

    python benchmarks/search/problems.py runs/problems                 # everything, about an hour
    python benchmarks/search/problems.py runs/problems --strategies tpe hazero --seeds 3

The folder keeps the tables of real trainings (scikit-learn's digits, about 2,000 fits) and the
result of every run, so that a run that was stopped goes on. Prints Markdown.

Problems are functions on [-1, 1]^n, minimised. A strategy is asked for a batch, evaluates all of it
and is told all of it. The incumbent is the first best observed value, scored without noise:
regret = (f - f*) / (f_rand - f*), with f_rand that of a median random point. The summary is the
geometric mean over problems of the median over seeds, floored at 1e-4, with the 95 % interval of
resampled seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # its neighbour, wherever it is started from

from digits_tables import Table, tables_in

from autocl_sweeper.distributions import Interval, Space
from autocl_sweeper.protocols import Search
from autocl_sweeper.search.cmaes import CMAES
from autocl_sweeper.search.gp import gp_search
from autocl_sweeper.search.hazero import HAZero
from autocl_sweeper.search.pshe2 import PSHE2
from autocl_sweeper.search.qmc import QMCSearch
from autocl_sweeper.search.random import RandomSearch
from autocl_sweeper.search.tpe import tpe_search
from autocl_sweeper.selection import TopK
from autocl_sweeper.strategy.decisions import Stage, views
from autocl_sweeper.types import History, Outcome, State, Suggestion, Trial

BUDGETS = (50, 100, 200)
FLOOR = 1e-4
RESAMPLES = 2000

Point = Sequence[float]


# -- problems -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A function on the cube: `value(x, shift)` without noise, `noise(value)` its standard deviation."""

    name: str
    n: int
    value: Callable[[Any, Any], float]
    best: float
    random: float
    shifted: bool = False
    init: tuple[float, ...] | None = None  # None: drawn
    table: Table | None = None  # whose observations are noisy


def sphere(x: Any, s: Any) -> float:
    return float(np.sum((x - s) ** 2))


def rosen(x: Any, s: Any) -> float:
    z = 2 * x
    return float(np.sum(100 * (z[1:] - z[:-1] ** 2) ** 2 + (1 - z[:-1]) ** 2))


def rastrigin(x: Any, s: Any) -> float:
    z = 5.12 * (x - s)
    return float(10 * len(z) + np.sum(z**2 - 10 * np.cos(2 * np.pi * z)))


def ackley(x: Any, s: Any) -> float:
    z = 16.384 * (x - s)
    far = -20 * np.exp(-0.2 * np.sqrt(np.mean(z**2)))
    return float(far - np.exp(np.mean(np.cos(2 * np.pi * z))) + 20 + np.e)


def branin(x: Any, s: Any) -> float:
    a, b = -5 + 7.5 * (x[0] + 1), 7.5 * (x[1] + 1)
    bowl = (b - 5.1 / (4 * np.pi**2) * a**2 + 5 / np.pi * a - 6) ** 2
    return float(bowl + 10 * (1 - 1 / (8 * np.pi)) * np.cos(a) + 10)


HARTMANN_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann(x: Any, s: Any) -> float:
    far = np.sum(HARTMANN_A * ((x + 1) / 2 - HARTMANN_P) ** 2, axis=1)
    return float(-np.array([1, 1.2, 3, 3.2]) @ np.exp(-far))


def problems(folder: Path) -> list[Problem]:
    digits2, digits2_lin, digits4 = tables_in(folder)

    def of_table(name: str, table: Table) -> Problem:
        value = lambda x, s: 1 - table.accuracy(x)  # noqa: E731
        n = len(table.init)
        return Problem(name, n, value, table.best, table.random, init=table.init, table=table)

    return [
        Problem("sphere5", 5, sphere, 0, 2.325981, shifted=True),
        Problem("rosen3", 3, rosen, 0, 630.911717),
        Problem("rastrigin4", 4, rastrigin, 0, 89.045118, shifted=True),
        Problem("ackley8", 8, ackley, 0, 19.541855, shifted=True),
        Problem("branin2", 2, branin, 0.397887, 34.655743),
        Problem("hartmann6", 6, hartmann, -3.322368, -0.101712),
        of_table("digits2_log", digits2),
        of_table("digits2_lin", digits2_lin),
        of_table("digits4_log", digits4),
    ]


class Instance:
    """A problem as one seed has it: shifted, with a place to start from and a stream of noise."""

    def __init__(self, problem: Problem, seed: int) -> None:
        rng = np.random.RandomState(1000 + seed)
        self.problem = problem
        self._shift = rng.uniform(-0.7, 0.7, problem.n) if problem.shifted else np.zeros(problem.n)
        drawn = tuple(map(float, rng.uniform(-1, 1, problem.n)))
        self.init = drawn if problem.init is None else problem.init
        self._noise = np.random.RandomState(5000 + seed)
        self._best = math.inf
        self.regrets: list[float] = []  # of the incumbent after each evaluation

    def evaluate(self, point: Point) -> float:
        """What is observed at a point."""
        x = np.clip(np.asarray(point, dtype=float), -1, 1)
        true = self.problem.value(x, self._shift)
        drawn = self._noise.randn()
        table = self.problem.table
        seen = true
        if table is not None:
            seen = 1 - min(max(1 - true + table.deviation(x) * drawn, 0.0), 1.0)
        if seen < self._best:
            self._best, self._incumbent = seen, true
        one = self.problem
        self.regrets.append((self._incumbent - one.best) / (one.random - one.best))
        return seen


# -- strategies -----------------------------------------------------------------------------------


class Strategy(Protocol):
    """Batches of points; each is told what was observed there."""

    def ask(self) -> Sequence[Point] | None: ...
    def tell(self, points: Sequence[Point], losses: Sequence[float]) -> None: ...


class Searching:
    """A search of the sweeper, asked as in a stage with so many devices."""

    def __init__(
        self, factory: Callable[..., Search], init: Point, popsize: int, seed: int
    ) -> None:
        axes = {f"x{i}": Interval(-1.0, 1.0) for i in range(len(init))}
        space = Space(axes, init=dict(zip(axes, map(float, init), strict=True)))
        self._search = factory(space, seed=seed, stage_name="problem")
        self._popsize = popsize
        self._history = History()
        stage = Stage(1, "problem", self._search, most=10**6)
        (self._view,) = views([stage], self._history, TopK(1, maximize=False))
        self._running: list[int] = []

    def ask(self) -> Sequence[Point]:
        points = []
        for _ in range(self._popsize):
            asked = self._search.ask(self._view)
            assert isinstance(asked, Suggestion)
            number = len(self._history)
            self._history.start(Trial(number, 1, "problem", asked, None))
            self._view.note(self._history[number])
            self._running.append(number)
            points.append([float(value) for value in asked.params.values()])  # type: ignore[arg-type]
        return points

    def tell(self, points: Sequence[Point], losses: Sequence[float]) -> None:
        for number, loss in zip(self._running, losses, strict=True):
            outcome = Outcome(State.COMPLETE, score=loss)
            self._view.note(self._history.finish(number, outcome))
        self._running = []


class ReleasedPSHE2:
    """PSHE2 as it was released, to compare with: all particles share one velocity.

    Its rows are one list, so each round moves that velocity once for every particle, with the
    gradient of the last. The point it starts from is not evaluated.
    """

    def __init__(self, init: Point, popsize: int, seed: int) -> None:
        self._random = np.random.RandomState(seed)
        self._x = np.tile(np.asarray(init, dtype=float), (popsize, 1))
        self._x += self._noise(1.0)
        self._v = np.zeros(len(init))
        self._own: list[tuple[float, Any]] = [(math.inf, None)] * popsize
        self._best: tuple[float, Any] = (math.inf, None)
        self._round = 0

    def _noise(self, scale: float) -> Any:
        r = self._random.uniform(-1, 1, self._x.shape)
        return scale * r * np.where(r >= 0, 1 - self._x, 1 + self._x)

    def ask(self) -> Sequence[Point]:
        return self._x.copy()  # type: ignore[return-value]

    def tell(self, points: Sequence[Point], losses: Sequence[float]) -> None:
        self._round += 1
        for i, loss in enumerate(losses):
            one = (loss, self._x[i].copy())
            self._own[i] = one if loss <= self._own[i][0] else self._own[i]
            self._best = one if loss <= self._best[0] else self._best
        gradient = 2 * self._x[-1] - self._own[-1][1] - self._best[1]
        kept = (1 - 1.5 / self._round) ** len(losses)
        self._v = kept * self._v - self._round / 3 * (1 - kept) * gradient
        self._x = self._x + 0.5 * self._v
        self._x = self._x + self._noise(0.2)


def relay() -> Callable[..., Strategy] | None:
    try:
        from autocl_sweeper.search.relay import RelaySearch
    except ImportError:
        return None
    return partial(Searching, RelaySearch)


# name -> strategy(init, popsize, seed)
STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "random": partial(Searching, RandomSearch),
    "qmc": partial(Searching, QMCSearch),
    "pshe2 as released": ReleasedPSHE2,
    "pshe2": PSHE2,
    "pshe2, constant noise": partial(PSHE2, anneal=0.0),
    "hazero": HAZero,
    "cmaes": CMAES,
    "tpe": partial(Searching, tpe_search),
    "gp": partial(Searching, gp_search),
}
if (found := relay()) is not None:
    STRATEGIES["relay"] = found
GP_BUDGET, GP_POPSIZE = 50, 5  # it takes seconds per run


def run(name: str, problem: Problem, popsize: int, seed: int, budget: int) -> list[float]:
    """The regret of the incumbent at each budget."""
    instance = Instance(problem, seed)
    strategy = STRATEGIES[name](instance.init, popsize, seed)
    while len(instance.regrets) < budget:
        points = strategy.ask()
        if points is None:
            break
        strategy.tell(points, [instance.evaluate(point) for point in points])
    reached = [instance.regrets[min(b, len(instance.regrets)) - 1] for b in BUDGETS if b <= budget]
    return [max(0.0, regret) for regret in reached]


# -- results --------------------------------------------------------------------------------------


class Results:
    """Regrets by (strategy, popsize, problem, seed), kept in a file as they come."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "results.jsonl"
        self._regrets: dict[tuple[str, int, str, int], list[float]] = {}
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        for line in lines:
            one = json.loads(line)
            key = (one["strategy"], one["popsize"], one["problem"], one["seed"])
            self._regrets[key] = one["regrets"]

    def __contains__(self, key: tuple[str, int, str, int]) -> bool:
        return key in self._regrets

    def add(self, key: tuple[str, int, str, int], regrets: list[float], seconds: float) -> None:
        self._regrets[key] = regrets
        named = dict(zip(("strategy", "popsize", "problem", "seed"), key, strict=True))
        line = json.dumps({**named, "regrets": regrets, "seconds": round(seconds, 3)})
        with self._file.open("a") as file:
            file.write(line + "\n")

    def of(self, name: str, popsize: int, among: Sequence[str], budget: int) -> Any:
        """Regrets, problem x seed, for the seeds that all problems have."""
        place = BUDGETS.index(budget)
        seeds = sorted({s for n, p, _, s in self._regrets if (n, p) == (name, popsize)})
        whole = [
            seed
            for seed in seeds
            if all(len(self._regrets.get((name, popsize, one, seed), ())) > place for one in among)
        ]
        rows = [[self._regrets[name, popsize, one, s][place] for s in whole] for one in among]
        return np.array(rows)


def summary(regrets: Any) -> tuple[float, float, float]:
    """The geometric mean over problems of the median over seeds, and its 95 % interval."""

    def mean(of: Any) -> float:
        return float(np.exp(np.mean(np.log(np.maximum(np.median(of, axis=1), FLOOR)))))

    rng = np.random.RandomState(0)
    count = regrets.shape[1]
    drawn = [mean(regrets[:, rng.randint(0, count, count)]) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return mean(regrets), float(low), float(high)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(value: float) -> str:
    return f"{value:.3f}".lstrip("0") if value >= 0.0005 else "<.001"


def report(
    results: Results, names: Sequence[str], popsizes: Sequence[int], among: Sequence[str]
) -> str:
    rows = []
    for name in names:
        row, seeds = [name], set()
        for popsize in popsizes:
            for budget in BUDGETS:
                regrets = results.of(name, popsize, among, budget)
                if regrets.size == 0:
                    row.append("")
                    continue
                seeds.add(regrets.shape[1])
                mean, low, high = summary(regrets)
                row.append(f"{figure(mean)} [{figure(low)}, {figure(high)}]")
        rows.append([*row, "/".join(map(str, sorted(seeds)))])
    heads = [f"P{p} B{b}" for p in popsizes for b in BUDGETS]
    text = [table(["search", *heads, "seeds"], rows), ""]
    for popsize in popsizes:
        for budget in BUDGETS:
            medians = []
            for name in names:
                regrets = results.of(name, popsize, among, budget)
                if regrets.size:
                    medians.append([name, *(f"{m:.4f}" for m in np.median(regrets, axis=1))])
            text += [
                f"Medians, P = {popsize}, B = {budget}:",
                "",
                table(["search", *among], medians),
                "",
            ]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where tables and results are kept")
    parser.add_argument("--strategies", nargs="+", choices=[*STRATEGIES], default=[*STRATEGIES])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--popsizes", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--report", action="store_true", help="run nothing, print what there is")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results = Results(options.folder)
    all_problems = problems(options.folder)
    for name in [] if options.report else options.strategies:
        slow = name == "gp"
        for popsize in [GP_POPSIZE] if slow else options.popsizes:
            for seed in range(options.seeds):
                for problem in all_problems:
                    key = (name, popsize, problem.name, seed)
                    if key not in results:
                        begin = perf_counter()
                        budget = GP_BUDGET if slow else BUDGETS[-1]
                        regrets = run(name, problem, popsize, seed, budget)
                        results.add(key, regrets, perf_counter() - begin)
    names = [problem.name for problem in all_problems]
    print(report(results, options.strategies, options.popsizes, names))


if __name__ == "__main__":
    main()
