"""The digits tasks under every protocol, by the commands a user types: what each makes of its jobs.

    python benchmarks/search/digits.py --folder runs                   five seeds, every arm
    python benchmarks/search/digits.py --folder runs --arms relay/2 grid --seeds 0 1

Average test accuracy over the five tasks after the last one, of the chain that is best on dev data.
`relay/2` has half the jobs of the others. A folder that holds a finished sweep is not run again.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml
from scipy.stats import t as student

from autocl_sweeper.journal import fold, read

ROOT = Path(__file__).resolve().parents[2]
TASKS = "digits_01,digits_23,digits_45,digits_67,digits_89"
SPACE = "experiment=split_digits_search"
STOPPED = ["hydra.sweeper.prune=asha", "+trainer.eval_strategy=epoch"]
ARMS = {
    "relay/2": [SPACE, "hydra.sweeper.jobs=3"],
    "relay/2 + asha": [SPACE, "hydra.sweeper.jobs=3", *STOPPED],
    "relay": [SPACE, "hydra.sweeper.jobs=7"],
    "relay + asha": [SPACE, "hydra.sweeper.jobs=7", *STOPPED],
    "grid": ["experiment=split_digits"],  # four settings by hand: 34 jobs
    "greedy": [SPACE, "hydra.sweeper.jobs=7", "hydra.sweeper.protocol=greedy", "RANDOM"],
    "first_k": [SPACE, "hydra.sweeper.jobs=7", "hydra.sweeper.protocol=first_k", "RANDOM"],
    "fixed": [SPACE, "hydra.sweeper.jobs=7", "hydra.sweeper.protocol=fixed", "RANDOM"],
    "random_chains": [SPACE, "hydra.sweeper.jobs=7", "hydra.sweeper.protocol=random_chains", "RANDOM"],
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    dev: float
    test: float
    jobs: int
    device_s: float


def run(arm: str, seed: int, folder: Path) -> Result:
    given = ["hydra/sweeper/search=random" if text == "RANDOM" else text for text in ARMS[arm]]
    command = [
        sys.executable, "train.py", "-m", *given, f"task={TASKS}", f"seed={seed}",
        f"evaluation.split_seed={seed}", f"hydra.sweeper.seed={seed}", f"hydra.sweep.dir={folder}",
    ]  # fmt: skip
    print(f"$ {shlex.join(['python', *command[1:]])}", flush=True)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    told = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    history = fold(read(folder)).history
    return Result(
        dev=told["metrics"]["eval"]["average_accuracy"],
        test=told["metrics"]["test"]["average_accuracy"],
        jobs=len(history),
        device_s=sum(trial.outcome.seconds for trial in history if trial.outcome is not None),
    )


def interval(values: list[float]) -> str:
    """Mean and half the 95 % t-interval, in points."""
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.1f} ± {100 * half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the sweeps go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    options = parser.parse_args()
    found: dict[str, list[Result]] = {arm: [] for arm in options.arms}
    for seed in options.seeds:  # seed by seed: what is interrupted can be compared
        for arm in options.arms:
            name = arm.replace("/", "_").replace(" + ", "_")
            found[arm].append(run(arm, seed, options.folder.absolute() / f"seed_{seed}" / name))
    first = options.arms[0]
    print(
        f"\n| arm | jobs | device seconds | dev, % | test, % | {first} minus it, test | seeds won |"
    )
    print("|---|---|---|---|---|---|---|")
    for arm, results in found.items():
        pairs = zip(found[first], results, strict=True)
        gaps = [ours.test - theirs.test for ours, theirs in pairs]
        won = sum(gap > 0 for gap in gaps)
        against = "" if arm == first else f"{interval(gaps)} | {won}/{len(gaps)}"
        jobs = statistics.mean(result.jobs for result in results)
        device_s = statistics.mean(result.device_s for result in results)
        dev, test = ([getattr(r, name) for r in results] for name in ("dev", "test"))
        told = against or " | "
        print(
            f"| {arm} | {jobs:.0f} | {device_s:.0f} | {interval(dev)} | {interval(test)} | {told} |"
        )


if __name__ == "__main__":
    main()
