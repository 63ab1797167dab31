"""Is a merged start better than others? Pairs of handwritten digits, a small vision transformer, LoRA.

    python benchmarks/transfer.py --folder runs/transfer --seeds 0 1 2

Per seed: a base trained on 0 and 1, eight source tasks with an adapter each, and three targets that get 20
updates from every start. A row of the table is a start: mean test accuracy over targets and seeds, its
standard error over seeds, dev score before the first update, and the seconds its weights took. Nothing is
chosen by test rows.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the training app lies beside its train.py

SOURCES = ((2, 3), (3, 5), (8, 9), (4, 7), (5, 8), (6, 9), (2, 7), (4, 6))
TARGETS = ((3, 8), (5, 6), (4, 9))
ESS = 2.5  # effective sources of the scored methods: what the published Loss had
SCORED = ("loss", "el2n", "logits_labels_cos", "grand")


@dataclass(frozen=True)
class Start:
    """A start of the targets: name in the table, and the settings of its merge."""

    name: str
    merge: dict[str, Any] | None  # null: no merge


def starts(last: str, target: tuple[int, int]) -> list[Start]:
    """What is compared; `last`: the source trained last."""
    groups = {"own": [name(target), *(name(s) for s in SOURCES if set(s) & set(target))]}
    found = [
        Start("random", None),
        Start(
            "last",
            {"method": "given", "weights": {name(s): float(name(s) == last) for s in SOURCES}},
        ),
        Start("average", {"method": "average"}),
        Start("manual group", {"method": "manual", "groups": groups}),
        Start("best single (loss)", {"method": "best_single"}),
    ]
    found += [Start(method, {"method": method, "target_ess": ESS}) for method in SCORED]
    found.append(Start("average, factor", {"method": "average", "rule": "factor"}))
    found.append(Start("loss, factor", {"method": "loss", "target_ess": ESS, "rule": "factor"}))
    return found


def name(digits: tuple[int, int]) -> str:
    return f"pair_{digits[0]}{digits[1]}"


def job(digits: tuple[int, int], folder: Path, *overrides: str) -> dict[str, Any]:
    """One job of the training app in this process; a finished one is not run again."""
    from hydra import compose, initialize_config_dir

    from train.config.reading import read_run
    from train.data.task_plan import plan_run
    from train.job import train_and_evaluate
    from train.main import VERSION_BASE

    if (folder / "all_results.json").is_file():
        told: dict[str, Any] = json.loads((folder / "all_results.json").read_text())
        return told
    template = "[IMAGE:image,preprocess=digits] what digit is this? -> [TEXT:label,closed_set]"
    task = {
        "_name": "digits", "options": list(digits), "instruction": {"template": template},
    }  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        cfg: Any = compose("base", overrides=["delta.lamda_1=0", *overrides])
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(cfg)
    values["task"] = {name(digits): task}
    values["seen_tasks"] = [name(digits)]
    run = read_run(values, ROOT / "conf/task")
    return train_and_evaluate(run, plan_run(run), folder)


def scored(
    target: tuple[int, int], base: Path, sources: dict[str, str], method: str, folder: Path
) -> float:
    """Score the sources; seconds it took."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from train.config.merging import MergeSettings
    from train.config.reading import read_run
    from train.data.task_plan import plan_run
    from train.main import VERSION_BASE
    from train.score.run import score_tasks

    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        values: Any = OmegaConf.to_container(compose("base"))
    template = "[IMAGE:image,preprocess=digits] what digit is this? -> [TEXT:label,closed_set]"
    values["task"] = {
        name(target): {
            "_name": "digits", "options": list(target), "instruction": {"template": template},
        }
    }  # fmt: skip
    run = read_run(values, ROOT / "conf/task")
    settings = MergeSettings(sources=sources, method=method, batch_size=256)  # type: ignore[arg-type]
    begun = time.perf_counter()
    score_tasks(run, plan_run(run), settings, folder)
    return time.perf_counter() - begun


def one_seed(seed: int, root: Path, epochs: float, updates: int) -> list[dict[str, Any]]:
    """Results of all starts of all targets."""
    import warnings

    from train.config.merging import MergeSettings
    from train.merge.apply import merge, write_merged
    from train.merge.plan import make_plan
    from train.score.matrix import read_scores

    warnings.simplefilter("ignore", UserWarning)  # of factors that began differently: measured here
    own = (f"seed={seed}", "evaluate_test=false", f"trainer.num_train_epochs={epochs}")
    job((0, 1), root / "base", *own)
    begin = f"init_from={root / 'base/checkpoint'}"
    sources = {}
    for digits in SOURCES:
        job(digits, root / name(digits), *own, begin)
        sources[name(digits)] = str(root / name(digits) / "checkpoint")
    found = []
    for target in TARGETS:
        place = root / f"to_{name(target)}"
        seconds = {
            m: scored(target, root / "base", sources, m, place / f"score_{m}") for m in SCORED
        }
        for start in starts(name(SOURCES[-1]), target):
            folder = place / re.sub(r"\W+", "_", start.name)
            more, cost = [], 0.0
            if start.merge is not None:
                method = start.merge["method"]
                of = "loss" if method == "best_single" else method
                scores = None
                if of in SCORED:
                    result = str(place / f"score_{of}/result.json")
                    scores, cost = read_scores(result, name(target), of), seconds[of]
                settings = MergeSettings(sources=sources, target=name(target), **start.merge)
                begun = time.perf_counter()
                plan, read = make_plan(settings, scores)
                write_merged(merge(plan, read), plan, folder / "merged")
                cost += time.perf_counter() - begun
                more = [f"delta.start_from={folder / 'merged'}"]
                # A lone source keeps its alpha; the new adapter has another scaling, which is accounted for.
            told = job(
                target, folder / "run", f"seed={seed}", begin, *more, f"trainer.max_steps={updates}",
                "trainer.per_device_train_batch_size=8",
            )  # fmt: skip
            still = job(
                target, folder / "zero", f"seed={seed}", begin, *more, "trainer.do_train=false",
                "evaluate_test=false",
            )  # fmt: skip
            found.append(
                {
                    "seed": seed,
                    "target": name(target),
                    "start": start.name,
                    "test": told["test"][name(target)],
                    "zero_dev": still["eval"][name(target)],
                    "seconds": cost,
                }
            )
            print(found[-1], flush=True)
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line per start, the best test accuracy first."""
    lines = [
        "| start | test after the updates, mean +- standard error | dev before them | seconds |",
        "|---|---|---|---|",
    ]
    by_start: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_start.setdefault(row["start"], []).append(row)
    told = []
    for start, own in by_start.items():
        seeds = sorted({row["seed"] for row in own})
        means = [statistics.mean(r["test"] for r in own if r["seed"] == seed) for seed in seeds]
        error = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else 0.0
        zero = statistics.mean(row["zero_dev"] for row in own)
        cost = statistics.mean(row["seconds"] for row in own)
        told.append((statistics.mean(means), error, zero, cost, start))
    for test, error, zero, cost, start in sorted(told, reverse=True):
        lines.append(f"| {start} | {test:.3f} +- {error:.3f} | {zero:.3f} | {cost:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--folder", type=Path, required=True, help="runs and results.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=8, help="of base and sources")
    parser.add_argument("--updates", type=int, default=20, help="of a target")
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        rows += one_seed(
            seed, options.folder.absolute() / f"seed_{seed}", options.epochs, options.updates
        )
        (options.folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
