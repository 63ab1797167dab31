"""What a long chain of O-LoRA costs, and our training step against that of the plain Hugging Face Trainer.

    python benchmarks/continual.py [tasks]

A chain of 15 tasks (or as many as given) on a tiny T5 of random weights, every task a job of the training app
in a process of its own; then, in one process and in turns, so that other work on the machine disturbs all
alike:

- the time of an optimizer step at several places of that chain;
- the time of a step of our Trainer and of transformers' own, with the same model, peft configuration,
  batches and settings, on T5 shapes of two sizes. Ours computes the penalties of O-LoRA besides.

Times are CPU time of one thread, in which everything runs. Peak memory is ru_maxrss of each job; what the
checkpoints so far weigh is taken off it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import transformers
from peft import LoraConfig, get_peft_model
from support.folders import make_folder
from support.runs import loaded, model_of, trainings

from train.config.reading import read_run
from train.config.sections import Run
from train.delta.delta import Penalty
from train.delta.olora import OLoRA
from train.loop.trainer import train
from train.model.checkpoints import delta_name

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, STEPS, WARM = 7, 12, 3
TASKS = ("boolqa", "qqp")
# Every prompt is longer than that and cut to it: all batches are alike.
LENGTH = 128


def command(base: Path, task: str, *more: str) -> list[str]:
    return [
        "model=pretrained", f"model.path={base}", f"task={task}", f"+task.{task}.max_src_length={LENGTH}",
        "trainer.per_device_train_batch_size=8", "trainer.learning_rate=1e-3", "closed_set=true",
        f"+trainer.max_steps={STEPS}", "seen_tasks=null", "evaluate_test=false", *more,
    ]  # fmt: skip


def run_of(words: Sequence[str]) -> Run:
    from hydra import compose, initialize_config_dir

    from train.main import VERSION_BASE

    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        return read_run(compose("base", overrides=[*words]), ROOT / "conf/task")


# -- the chain --------------------------------------------------------------------------------------


def peak_mib(words: Sequence[str], folder: Path) -> float:
    """Peak resident memory of one job of the training app."""
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *words, f"hydra.run.dir={folder / 'run'}"],
            stdout=log, stderr=log, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit((folder / "log").read_text())
    return used.ru_maxrss / 1024


def weight_mib(checkpoint: Path) -> float:
    return sum(p.stat().st_size for p in checkpoint.rglob("*.safetensors")) / 2**20


def grow(base: Path, folder: Path, tasks: int) -> list[float]:
    """Peak memory of every job of a chain, without the adapters it loads and trains, in MiB."""
    peaks, adapters = [], 0.0
    for place in range(1, tasks + 1):
        begun = [] if place == 1 else [f"init_from={folder / str(place - 1)}/run/checkpoint"]
        words = command(base, TASKS[(place - 1) % len(TASKS)], *begun)
        peak = peak_mib(words, folder / str(place))
        adapters += weight_mib(folder / str(place) / "run/checkpoint")
        peaks.append(peak - adapters)
    return peaks


# -- steps ------------------------------------------------------------------------------------------


class Timed(OLoRA):
    """O-LoRA that notes when each update asks for its penalty: once, in the middle of a step."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.delta)
        self.times: list[float] = []

    def penalty(self) -> Penalty:
        self.times.append(time.process_time())
        return super().penalty()


def periods(times: Sequence[float]) -> list[float]:
    """Seconds from step to step, without the first ones."""
    return [b - a for a, b in zip(times[WARM:], times[WARM + 1 :], strict=False)]


def ours(model: Any, run: Run, delta: Timed, folder: Path) -> Callable[[], list[float]]:
    tasks = trainings(run)

    def steps() -> list[float]:
        delta.times = []
        train(model, tasks, delta, run, 0, folder)
        return periods(delta.times)

    return steps


def at_place(run: Run, chain: Path, place: int, folder: Path) -> Callable[[], list[float]]:
    """Steps of the task at a place of the chain, from 1."""
    delta = Timed(run)
    if place == 1:
        model = delta.attach(model_of(run), delta_name(1), ())
    else:
        parent = loaded(run, chain / str(place - 1) / "run/checkpoint")
        model = delta.attach(parent.model, delta_name(place), parent.deltas)
    return ours(model, run, delta, folder)


class Clock(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.process_time())


def plain(run: Run, folder: Path) -> Callable[[], list[float]]:
    """Steps of transformers' Trainer: the rows are tokenised once, the loss is the model's own."""
    import numpy as np

    [training] = trainings(run)
    task, generator = training.task, np.random.default_rng(0)
    rows = training.rows.train(0)
    examples = [task.example(row, generator, True, "row") for row in rows]
    config = LoraConfig(
        r=run.delta.lora_dim, lora_alpha=run.delta.lora_alpha, target_modules=["q", "v"]
    )  # type: ignore[arg-type]
    model = get_peft_model(model_of(run).requires_grad_(False), config)
    given = {k: v for k, v in run.trainer.items() if k != "num_train_epochs"}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", remove_unused_columns=False,
        disable_tqdm=True, save_strategy="no", **given,
    )  # fmt: skip

    def steps() -> list[float]:
        clock = Clock()
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=examples, data_collator=task.batch,
            callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return periods(clock.times)

    return steps


@dataclass(frozen=True)
class Turns:
    """Seconds per step of several trainings that took turns."""

    rounds: list[dict[str, float]]  # name -> median of a turn

    @classmethod
    def of(cls, steps: dict[str, Callable[[], list[float]]]) -> Turns:
        found = []
        for number in range(ROUNDS + 1):
            turn = {name: median(one()) for name, one in steps.items()}
            if number:  # the first warms up
                found.append(turn)
        return cls(found)

    def seconds(self, name: str) -> float:
        return median(turn[name] for turn in self.rounds)

    def ratio(self, name: str, to: str) -> float:
        """The median over rounds of a ratio within a round."""
        return median(turn[name] / turn[to] for turn in self.rounds)


def shaped(folder: Path, **shape: int) -> list[str]:
    """A T5 of this shape with random weights and the tokenizer of `folder`."""
    return ["model.weights=random", *(f"+model.config.{k}={v}" for k, v in shape.items())]


SHAPES: dict[str, dict[str, int]] = {
    "tiny (d_model 16, 2 layers)": {},
    "half of t5-small (d_model 256, 6 layers)": {
        "d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 6, "num_decoder_layers": 6,
        "num_heads": 4, "vocab_size": 8000,
    },
}  # fmt: skip


def main(tasks: int = 15) -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, 1 thread")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_folder("t5", folder / "t5")

        for shape, values in SHAPES.items():
            run = run_of(command(base, "boolqa", *(shaped(base, **values) if values else [])))
            delta = Timed(run)
            model = delta.attach(model_of(run).requires_grad_(False), "task1", ())
            turns = Turns.of({"ours": ours(model, run, delta, folder), "plain": plain(run, folder)})
            mine, theirs = (1000 * turns.seconds(name) for name in ("ours", "plain"))
            ratio = turns.ratio("plain", "ours")
            print(f"\n{shape}: tokens per second, ours / plain Trainer's: {ratio:.3f}")
            print(f"  milliseconds a step: {mine:.1f} and {theirs:.1f}")

        (folder / "chain").mkdir()
        peaks = grow(base, folder / "chain", tasks)
        shown = ", ".join(f"{peak:.0f}" for peak in peaks)
        print(f"\npeak memory without adapters, tasks 1 to {tasks}, MiB: {shown}")
        if tasks > 2:
            print(f"  largest after the second / second: {max(peaks[2:]) / peaks[1]:.3f}")

        places = sorted({1, 2, 3, 5, 8, tasks} & set(range(1, tasks + 1)))
        run = run_of(command(base, "boolqa"))
        turns = Turns.of({str(p): at_place(run, folder / "chain", p, folder) for p in places})
        shown = ", ".join(f"{p}: {1000 * turns.seconds(str(p)):.2f}" for p in places)
        print(f"\nmilliseconds a step, by place: {shown}")
        if tasks > 2:
            growth = turns.ratio(str(tasks), "2") ** (1 / (tasks - 2)) - 1
            print(f"  growth from task 2 to {tasks}: {100 * growth:.2f} % a task")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
