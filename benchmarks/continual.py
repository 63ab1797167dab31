"""What a long chain of O-LoRA costs, and our training step against that of the plain Hugging Face Trainer.

    python benchmarks/continual.py            all of it
    python benchmarks/continual.py chain      or a part: chain, trainer

trainer: the time of a step of our Trainer and of transformers' own, with the same model, peft configuration,
batches and settings, on T5 shapes of two sizes. Ours computes the penalties of O-LoRA besides.

chain: 15 tasks on a tiny T5, whose checkpoints hold random adapters. The time of a step at several places;
and the peak memory (ru_maxrss) of jobs of the training app that train there, each a process of its own, less
what the adapters weigh.

Times are CPU time of one thread, in which everything runs. What is compared takes turns, so that other work
on the machine disturbs all alike.
"""

from __future__ import annotations

import argparse
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
from train.model.checkpoints import delta_name, save
from train.model.family import family_of

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, STEPS, WARM = 7, 12, 3
PLACES = (1, 2, 3, 5, 10, 15)
# Every prompt is longer than that and cut to it: all batches are alike.
LENGTH = 128


def command(base: Path, task: str, *more: str) -> list[str]:
    return [
        "model=pretrained", f"model.path={base}", f"task={task}", f"+task.{task}.max_src_length={LENGTH}",
        "trainer.per_device_train_batch_size=8", "trainer.learning_rate=1e-3", "closed_set=true",
        f"+trainer.max_steps={STEPS}", "evaluate_test=false", *more,
    ]  # fmt: skip


def run_of(words: Sequence[str]) -> Run:
    from hydra import compose, initialize_config_dir

    from train.main import VERSION_BASE

    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        return read_run(compose("base", overrides=[*words]))


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


def grow(run: Run, chain: Path, tasks: int) -> None:
    """Checkpoints 1, 2, ... of a chain, with random adapters: what they hold does not matter here."""
    for place in range(1, tasks + 1):
        family, delta = family_of(run.model), OLoRA(run.delta)
        parent = loaded(run, chain / str(place - 1)) if place > 1 else None
        base, before = (parent.model, parent.deltas) if parent else (model_of(run), ())
        model = delta.attach(base.requires_grad_(False), delta_name(place), before)
        for factors in delta.modules:
            torch.nn.init.normal_(factors.b_new, std=0.01)
        save(model, chain / str(place), [f"task_{place}"], parent, family, delta)


def peaks(base: Path, chain: Path, places: Sequence[int]) -> dict[int, float]:
    """Place -> peak memory of the job that trains there, without the adapters it has loaded, in MiB."""
    found = {}
    for place in places:
        begun = [] if place == 1 else [f"init_from={chain / str(place - 1)}"]
        peak = peak_mib(
            command(base, "boolqa", "seen_tasks=[boolqa]", *begun), chain / f"job{place}"
        )
        adapters = sum(weight_mib(chain / str(n)) for n in range(1, place + 1))
        found[place] = peak - adapters
    return found


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
        parent = loaded(run, chain / str(place - 1))
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


def compare_trainers(base: Path, folder: Path) -> None:
    for shape, values in SHAPES.items():
        run = run_of(command(base, "boolqa", *(shaped(base, **values) if values else [])))
        delta = Timed(run)
        model = delta.attach(model_of(run).requires_grad_(False), "task1", ())
        turns = Turns.of({"ours": ours(model, run, delta, folder), "plain": plain(run, folder)})
        mine, theirs = (1000 * turns.seconds(name) for name in ("ours", "plain"))
        ratio = turns.ratio("plain", "ours")
        print(f"\n{shape}: tokens per second, ours / plain Trainer's: {ratio:.3f}")
        print(f"  milliseconds a step: {mine:.1f} and {theirs:.1f}", flush=True)


def measure_chain(base: Path, folder: Path) -> None:
    run, chain = run_of(command(base, "boolqa")), folder / "chain"
    grow(run, chain, PLACES[-1])
    turns = Turns.of({str(p): at_place(run, chain, p, folder) for p in PLACES})
    last = str(PLACES[-1])
    growth = turns.ratio(last, "2") ** (1 / (PLACES[-1] - 2)) - 1
    shown = ", ".join(f"{p}: {1000 * turns.seconds(str(p)):.2f}" for p in PLACES)
    print(f"\nmilliseconds a step, by place: {shown}")
    print(f"  growth from task 2 to {last}: {100 * growth:.2f} % a task", flush=True)
    found = peaks(base, chain, PLACES)
    shown = ", ".join(f"{p}: {peak:.0f}" for p, peak in found.items())
    print(f"\npeak memory without adapters, MiB, by place: {shown}")
    later = max(peak for p, peak in found.items() if p > 2)
    print(f"  largest after the second task / second task: {later / found[2]:.3f}")


def main(parts: Sequence[str]) -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, 1 thread")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_folder("t5", folder / "t5")
        for part in parts:
            PARTS[part](base, folder)


PARTS: dict[str, Callable[[Path, Path], None]] = {
    "trainer": compare_trainers,
    "chain": measure_chain,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=list(PARTS))
    part = parser.parse_args().part
    main([part] if part else [*PARTS])
