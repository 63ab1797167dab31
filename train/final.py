"""The test rows of a sweep, evaluated once: for the chains that end in its last beam, when it is over.

    python train.py -m hydra/sweeper=autocl evaluate_test=final task=boolqa,copa ...
    python -m train.final <hydra.sweep.dir>           the same of a sweep that is there already

Every trial of these chains is evaluated on the test rows of the tasks it had seen; its folder's
predict_results.json and predictions become those of test. `test_results.json` of the sweep has the
accuracy matrix of every chain, R[i][j]: the score on task j after task i.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from autocl_sweeper.errors import AutoCLError
from autocl_sweeper.metrics import average_accuracy, backward_transfer, forgetting

RESULTS = "test_results.json"
log = logging.getLogger(__name__)


class FinalTest(Callback):
    """Evaluates the test rows of a sweep's last beam, where `evaluate_test` is final or true."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        if config.get("evaluate_test") not in (True, "final") or not (folder / BEST).is_file():
            return  # BEST: of hydra/sweeper=autocl alone, the others have no beam
        # A process of its own: the controller has no torch, and need not keep a model.
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "train.final", str(folder)]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}, check=False
        )
        if done.returncode:
            log.error(
                "test rows were not evaluated (exit status %d); again: %s",
                *(done.returncode, " ".join(command[1:])),
            )


BEST, TRIALS, COMPOSED = "optimization_results.yaml", "trials.csv", "multirun.yaml"


class FinalTestError(RuntimeError):
    """A sweep whose test rows cannot be evaluated."""


def chains_of(folder: Path) -> list[list[dict[str, str]]]:
    """The chains of the last beam, best first, as rows of trials.csv. Raises FinalTestError."""
    try:
        best = yaml.safe_load((folder / BEST).read_text())
        with (folder / TRIALS).open(newline="") as file:
            trials = {row["trial"]: row for row in csv.DictReader(file)}
    except OSError as error:
        raise FinalTestError(
            f"{folder}: holds no sweep of hydra/sweeper=autocl: {error}"
        ) from error
    if best.get("name") != "autocl":  # Optuna's sweeper writes a file of this name, too
        raise FinalTestError(f"{folder / BEST}: was not written by hydra/sweeper=autocl")
    if best["stages_finished"] < best["stages"]:
        raise FinalTestError(
            f"{folder}: {best['stages_finished']} of {best['stages']} stages are over; test rows are "
            "evaluated once, behind the last. Run the sweep's command again to continue it"
        )
    chains = []
    for number in best["beams"][best["stages"]]:
        chain = [trials[str(number)]]
        while chain[0]["parent"]:
            chain.insert(0, trials[chain[0]["parent"]])
        chains.append(chain)
    return chains


@contextmanager
def leased_device(folder: Path) -> Iterator[str]:
    """The id of a device that no other sweep gets meanwhile; this process sees it alone.

    Waits until one is free, by the launcher's settings of the sweep in `folder`: cpu_slots, free_memory,
    max_devices. To be entered before torch is imported. Raises AutoCLError where no device can ever be had.
    """
    from autocl_sweeper.device.pool import Pool

    asked = yaml.safe_load((folder / COMPOSED).read_text())["hydra"]["launcher"]
    # Hydra's own launchers have none of these keys.
    settings: dict[str, Any] = {"cpu_slots": None, "free_memory": 0.8, "max_devices": None}
    settings |= {key: asked[key] for key in settings if key in asked}
    settings |= {"devices_per_job": 1, "jobs_per_device": 1, "memory_per_job_mib": None}
    settings |= {"stagger_s": 0, "keep_free_mib": 0}
    pool = Pool.of(settings, f"{folder}: test rows")
    said = ""
    while (grant := pool.acquire()) is None:
        if pool.refusal != said:
            said = pool.refusal
            log.warning("waiting for a device: %s", said)
        time.sleep(1)
    with closing(grant):
        os.environ.update(grant.environment)
        yield grant.ids[0]


def evaluate_trial(folder: Path) -> dict[str, float]:
    """Task -> score on test of the finished job in `folder`, which gets the records of test.

    Raises SettingsError, CheckpointError.
    """
    from omegaconf import OmegaConf

    from train.config.reading import read_run
    from train.data.task_plan import plan_run
    from train.job import evaluate_checkpoint

    told = json.loads((folder / "all_results.json").read_text())
    checkpoint = Path(told["checkpoint"])
    if not checkpoint.is_dir():  # the sweep was moved
        checkpoint = folder / "checkpoint"
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"))
    for name in ("trainer", "env"):  # may speak of the job, and nothing is trained
        config[name] = {}
    run = read_run({**config, "init_from": str(checkpoint)})
    return evaluate_checkpoint(run, plan_run(run), folder, told)


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    logging.basicConfig(level=logging.WARNING, format="[%(name)s][%(levelname)s] - %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries to each other
    folder = Path(argv[0]).absolute()
    try:
        chains = chains_of(folder)
        trials = {one["trial"]: one for chain in chains for one in chain}
        scores = {}
        with leased_device(folder) as device:
            for number, trial in trials.items():
                scores[number] = evaluate_trial(folder / trial["folder"])
    except (AutoCLError, ValueError, RuntimeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    told = [_chain(chain, scores) for chain in chains]
    (folder / RESULTS).write_text(json.dumps({"chains": told}, indent=2) + "\n")
    print(f"\nTest rows, evaluated once, of {len(told)} chains on {device} ({folder / RESULTS})")
    for one in told:
        numbers = ", ".join(f"{k} {v:.4f}" for k, v in one["metrics"].items())
        print(f"  trials {', '.join(one['trials'])}: {numbers}")
    return 0


def _chain(
    chain: Sequence[Mapping[str, str]], scores: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    tasks = [trial["task"] for trial in chain]
    rows = [scores[trial["trial"]] for trial in chain]
    made = {"trials": [trial["trial"] for trial in chain], "tasks": tasks, "scores": rows}
    if all(set(tasks[: i + 1]) <= set(row) for i, row in enumerate(rows)):
        matrix = [[row[task] for task in tasks[: i + 1]] for i, row in enumerate(rows)]
        metrics = {"average_accuracy": average_accuracy(matrix)}
        if len(matrix) > 1:
            metrics["backward_transfer"] = backward_transfer(matrix)
            metrics["forgetting"] = forgetting(matrix)
        return {**made, "matrix": matrix, "metrics": metrics}
    last = list(rows[-1].values())
    return {**made, "metrics": {"mean": sum(last) / len(last)} if last else {}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
