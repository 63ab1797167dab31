"""One run of some kind in a folder of its own, and the whole tree that its sweep has to come to."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from support.bench import APPS, Bench, wait_until

OURS = ("hydra/launcher=gpu", "hydra.launcher.cpu_slots=2")
MODES = {
    "fresh": ("hydra.launcher.warm=false",),
    "warm": ("hydra.launcher.warm=true",),
    "finish": ("hydra.launcher.warm=true", "hydra.launcher.on_controller_death=finish"),
}
PATIENT = ("hydra.sweeper.retries=50", "hydra.sweeper.retry_delay_s=0")  # killed jobs run again
Tally = Counter[str]


class Episode:
    """One run of some kind, in a folder of its own, with dice of its own."""

    def __init__(self, name: str, folder: Path, tally: Tally) -> None:
        self.dice = random.Random(name)
        self.folder = folder
        self.tally = tally
        self.close = ExitStack()

    def bench(self, app: str, name: str = "bench") -> Bench:
        (self.folder / name).mkdir()
        made = Bench(self.folder / name, APPS / f"{app}.py")
        self.close.callback(made.close)
        return made


def no_traceback(output: str) -> None:
    ours = [line for line in output.splitlines() if not line.lstrip().startswith("|")]
    assert "Traceback (most recent call last)" not in ours, output


# -- the oracle -------------------------------------------------------------------------------------


class Tree:
    """What a sweep of the app `chain` comes to: every lineage is scored, level by level."""

    def __init__(self, rates: list[int], tasks: list[str], top_k: int) -> None:
        self.scores: dict[tuple[int, ...], float] = {}
        self.beams: dict[int, list[tuple[int, ...]]] = {}
        beam: list[tuple[int, ...]] = [()]
        for stage in range(1, len(tasks) + 1):
            level = [(*parent, rate) for parent in beam for rate in rates]
            for chain in level:
                score = sum(rate * (-0.6) ** place for place, rate in enumerate(chain))
                self.scores[chain] = round(score, 6)
            # Ties go to the earlier suggestion, then to the better parent.
            rank = {parent: place for place, parent in enumerate(beam)}
            level.sort(key=lambda c: (-self.scores[c], rates.index(c[-1]), rank[c[:-1]]))
            beam = self.beams[stage] = level[:top_k]

    def check(self, bench: Bench) -> None:
        trials = {event["trial"]: event for event in bench.events("start")}

        def chain(number: int) -> tuple[int, ...]:
            event = trials[number]
            above = () if event["parent"] is None else chain(event["parent"])
            return (*above, event["params"]["lr"])

        counted = {n: e for n, e in bench.finished().items() if e["state"] != "PRUNED"}
        assert {chain(n): e["score"] for n, e in counted.items()} == self.scores
        assert {e["state"] for e in counted.values()} == {"COMPLETE"}
        told = bench.results()["beams"]
        assert {stage: [chain(n) for n in beam] for stage, beam in told.items()} == self.beams
        kept = {int(path.parent.name) for path in bench.sweep.glob("*/*/checkpoint")}
        last = bench.results()["beams"][len(self.beams)]
        needed = {chain(number)[:length] for number in last for length in range(1, 9)}
        assert {chain(number) for number in kept} == needed
        wait_until(bench.nothing_is_left, "no process and no lease is left")


def a_tree(episode: Episode) -> tuple[Tree, tuple[str, ...]]:
    dice = episode.dice
    rates = dice.sample(range(1, 9), dice.randint(2, 4))
    tasks = ["a", "b"][: dice.randint(1, 2)]
    top_k = dice.randint(1, 2)
    pipeline = dice.choice(["true", "false"])
    command = (
        "hydra/sweeper=autocl", *PATIENT, f"task={','.join(tasks)}", f"lr={','.join(map(str, rates))}",
        f"hydra.sweeper.top_k={top_k}", f"hydra.sweeper.pipeline={pipeline}",
        "hydra/sweeper/search=grid",
    )  # fmt: skip
    return Tree(rates, tasks, top_k), command
