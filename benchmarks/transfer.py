"""Which start is best for a task with few rows? Every start of docs/transfer.md, from eight source tasks.

    python benchmarks/transfer.py --on minilm --folder runs/transfer      digits, minilm or t5

Per seed: a base (minilm has one), eight source tasks with a LoRA each, and targets that get a few updates from
every start (benchmarks/transfer_tasks.py). A row of the table is a start: test accuracy after the updates, mean
over targets and seeds with its standard error over seeds, dev accuracy before the first update, and the seconds
that its weights took per target: scoring, tune passes and merging. Nothing is chosen by test rows.

Jobs that are finished are not run again: the same command goes on where it was killed, and results.json has
what is there so far. Seeds take turns, so that all starts of a seed are there before the next one.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transfer_tasks import KINDS, Pair, Tasks, named

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the training app lies beside its train.py

ESS = 2.5  # effective sources of the scored methods: what the published Loss had
FORWARD = ("loss", "el2n", "logits_labels_cos")  # of one pass
SCORED = (*FORWARD, "kl", "grand", "hidden_cos", "cosine", "euclidean", "performance")
RANDOM = "random"


@dataclass(frozen=True)
class Start:
    """A start of the targets: its name in the table, and the settings of its merge."""

    name: str
    merge: Mapping[str, Any]

    @property
    def folder(self) -> str:
        return re.sub(r"\W+", "_", self.name)


def starts(tasks: Tasks, target: Pair) -> list[Start]:
    """What is compared with a random start. The last source is that trained last."""
    names = [named(one) for one in tasks.sources]
    last = {name: float(name == names[-1]) for name in names}
    return [
        Start("last", {"method": "given", "weights": last}),
        Start("average", {"method": "average"}),
        Start("average, factor", {"method": "average", "rule": "factor"}),
        Start("manual group", {"method": "manual", "groups": tasks.groups(target)}),
        Start("best single (loss)", {"method": "best_single"}),
        Start("loss, factor", {"method": "loss", "target_ess": ESS, "rule": "factor"}),
        *(Start(method, {"method": method, "target_ess": ESS}) for method in SCORED),
    ]


@dataclass
class Bench:
    """One seed: its tasks, its folder, and what was found so far."""

    seed: int
    tasks: Tasks
    root: Path
    updates: int
    sources: dict[str, str] = field(default_factory=dict)  # name -> checkpoint
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)  # of scoring, by target

    def run(self, task: str, overrides: Sequence[str]) -> Any:
        """A run of the training app as composed, and its plans."""
        from hydra import compose, initialize_config_dir
        from omegaconf import OmegaConf

        from train.config.reading import read_run
        from train.data.task_plan import plan_run
        from train.main import VERSION_BASE

        given = ["delta.lamda_1=0", f"seed={self.seed}", *self.tasks.model, *overrides]
        with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
            values: Any = OmegaConf.to_container(compose("base", overrides=given))
        values |= {"task": {task: dict(self.tasks.configs[task])}, "seen_tasks": [task]}
        run = read_run(values)
        return run, plan_run(run)

    def job(self, task: str, folder: Path, *overrides: str) -> dict[str, Any]:
        """The results of a job of the training app in this process; a finished one is not run again."""
        from train.job import train_and_evaluate

        done = folder / "all_results.json"
        if not done.is_file():
            train_and_evaluate(*self.run(task, overrides), folder)
        told: dict[str, Any] = json.loads(done.read_text())
        return told

    @property
    def begin(self) -> list[str]:
        base = self.root / "base/checkpoint"
        return [f"init_from={base}"] if self.tasks.base else []

    def prepare(self) -> None:
        """Train base and sources."""
        untested = "trainer.do_test=false"
        if self.tasks.base is not None:
            self.job(self.tasks.base, self.root / "base", untested, *self.tasks.for_base)
        for pair in self.tasks.sources:
            own = (untested, *self.tasks.for_source, *self.begin)
            self.job(named(pair), self.root / named(pair), *own)
            self.sources[named(pair)] = str(self.root / named(pair) / "checkpoint")

    def few_shot(self, target: str, folder: Path, *more: str) -> dict[str, Any]:
        """The job of a target; also `zero`, dev before its first update."""
        own = (
            f"trainer.max_steps={self.updates}", "trainer.per_device_train_batch_size=8",
            "trainer.eval_on_start=true", "trainer.eval_strategy=steps",
            f"trainer.eval_steps={self.updates}", *self.tasks.for_target, *self.begin, *more,
        )  # fmt: skip
        told = self.job(target, folder, *own)
        log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        first = next(entry for entry in log if "eval_score" in entry)
        assert first["step"] == 0, first
        return {**told, "zero": first["eval_score"]}

    def scores(self, target: str, method: str) -> tuple[Any, float]:
        """Scores of the sources by a method, and the seconds they took."""
        from train.config.merging import MergeSettings
        from train.score.matrix import read_scores
        from train.score.run import score_tasks

        place = self.root / f"to_{target}"
        tuned = {name: str(place / "tuned" / name / "checkpoint") for name in self.sources}
        random = str(place / RANDOM / "run/checkpoint")
        needs: dict[str, Any] = {}
        before = 0.0
        if method in ("kl", "cosine", "hidden_cos"):
            needs = {"target_tuned": random}
            before = self.few_shot(target, place / RANDOM / "run")["seconds_train"]
        elif method in ("euclidean", "performance"):
            needs = {"tuned": tuned}
            for name, source in self.sources.items():
                told = self.few_shot(
                    target, place / "tuned" / name, f"delta.start_from={source}",
                    "trainer.do_test=false",
                )  # fmt: skip
                before += told["seconds_train"]
        # The forward scores are those of one pass.
        of = "loss" if method in FORWARD else method
        folder = place / f"score_{of}"
        if not (folder / "timing.json").is_file():
            settings = MergeSettings(sources=self.sources, method=of, batch_size=32, **needs)  # type: ignore[arg-type]
            score_tasks(*self.run(target, self.begin), settings, folder)
        took: float = json.loads((folder / "timing.json").read_text())["seconds"][target]
        return read_scores(str(folder / "result.json"), target, method), before + took

    def start(self, target: str, start: Start) -> dict[str, Any]:
        """The result of a target from one start."""
        from train.config.merging import MergeSettings
        from train.merge.apply import merge, write_merged
        from train.merge.plan import make_plan

        folder = self.root / f"to_{target}" / start.folder
        row = folder / "row.json"
        if row.is_file():
            told: dict[str, Any] = json.loads(row.read_text())
            return told
        more, cost, ess = [], 0.0, None
        if start.merge:
            method = start.merge["method"]
            scores = None
            if method in (*SCORED, "best_single"):
                scores, cost = self.scores(target, "loss" if method == "best_single" else method)
            tuned = self.root / f"to_{target}" / "tuned"
            after = {name: str(tuned / name / "checkpoint") for name in self.sources}
            more_settings = {"tuned": after} if method == "performance" else {}
            settings = MergeSettings(
                sources=self.sources, target=target, **start.merge, **more_settings
            )
            if scores is not None and len({*scores.by_source.values()}) == 1:
                settings = replace(
                    settings, method="average", target_ess=None
                )  # nothing to weigh by
            begun = time.perf_counter()
            plan, read = make_plan(settings, scores)
            write_merged(merge(plan, read), plan, folder / "merged")
            cost, ess = cost + time.perf_counter() - begun, plan.ess
            more = [f"delta.start_from={folder / 'merged'}"]
        found = self.few_shot(target, folder / "run", *more)
        made = {
            "seed": self.seed,
            "target": target,
            "start": start.name,
            "test": found["test"][target],
            "dev": found["eval"][target],
            "zero_dev": found["zero"],
            "seconds": cost,
            "ess": ess,
        }
        row.write_text(json.dumps(made) + "\n")
        return made


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line per start, the best test accuracy first."""
    by_start: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_start.setdefault(row["start"], []).append(row)
    told = []
    for start, own in by_start.items():
        seeds = sorted({row["seed"] for row in own})
        means = [statistics.mean(r["test"] for r in own if r["seed"] == seed) for seed in seeds]
        error = f" ± {statistics.stdev(means) / len(means) ** 0.5:.3f}" if len(means) > 1 else ""
        zero = statistics.mean(row["zero_dev"] for row in own)
        dev = statistics.mean(row["dev"] for row in own)
        cost = statistics.mean(row["seconds"] for row in own)
        told.append((statistics.mean(means), error, dev, zero, cost, start, len(seeds)))
    lines = [
        "| start | test after the updates | dev after | dev before | seconds | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for test, error, dev, zero, cost, start, n in sorted(told, reverse=True):
        lines.append(f"| {start} | {test:.3f}{error} | {dev:.3f} | {zero:.3f} | {cost:.1f} | {n} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--on", choices=[*KINDS], default="digits", help="which tasks and model")
    parser.add_argument("--folder", type=Path, required=True, help="runs and results.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", type=int, default=3, help="how many of them")
    parser.add_argument("--updates", type=int, default=20, help="of a target, of 8 rows")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # of factors that began differently: measured here
    rows: list[dict[str, Any]] = []
    root = options.folder.absolute() / options.on
    for seed in options.seeds:
        folder = root / f"seed_{seed}"
        tasks = KINDS[options.on](seed, folder / "texts")
        bench = Bench(seed, tasks, folder, options.updates)
        bench.prepare()
        for target in tasks.targets[: options.targets]:
            for start in [Start(RANDOM, {}), *starts(tasks, target)]:
                rows.append(bench.start(named(target), start))
                print(rows[-1], flush=True)
                (root / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
