"""The command `run`: which methods, on which device, from which start."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory.cards import ROOT, Card, NoCard, card, cards
from benchmarks.memory.discipline import RESULTS, Job, NotSettled, cool, measure, warm
from benchmarks.memory.tables import report

PROTOCOL = ("multiple-choice", "question-answering")
METHODS = (
    "none",
    "gc",
    "prefix",
    "tiered",
    "static",
    "bucket_greedy",
    "fixed",
    "every_2",
    "every_4",
)
ON_CPU = ("none", "gc", "prefix", "tiered", "static", "bucket_greedy")
# Experiment -> the task whose published times stand beside it.
TASKS = {
    "memory_swag": "multiple-choice",
    "memory_squad": "question-answering",
    "memory_glue": "text-classification",
    "memory_ner": "token-classification",
    "memory_coco": "object-detection",
}
BUSY = 5  # per cent of a card before the first run that somebody else must cause
LIMIT_S = 900  # until a card has come to the start of a run
# Method -> what train.py is given for it.
OVERRIDES: Mapping[str, tuple[str, ...]] = {
    "none": ("memory=none",),
    "gc": ("memory=gc",),
    "every_2": ("memory=every_n", "memory.n=2"),
    "every_4": ("memory=every_n", "memory.n=4"),
    "prefix": ("memory=plan", "memory.selective=none"),
    "tiered": ("memory=plan",),
    "bucket_greedy": ("memory=plan", "memory.planner=bucket_greedy"),
    "static": ("memory=static",),
}


def measure_methods(given: argparse.Namespace) -> str:
    """Run what the command line asks for; the tables. Raises NoCard, NotSettled."""
    if (given.out / RESULTS).exists():
        raise SystemExit(
            f"--out {given.out}: holds the results of an earlier run. Choose another folder; `table` "
            "takes several"
        )
    chosen = choose(given.card)
    reader, before = None, _nothing
    if chosen is not None:  # before torch looks at the GPUs
        os.environ["CUDA_VISIBLE_DEVICES"] = chosen.id
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        reader, before = _reader(chosen.id), start_of_runs(given.start, given.quiet, chosen)
    minutes = given.minutes
    if minutes is None and chosen is not None and given.experiment is None:
        minutes = 7.5
    jobs = whole_trainings(given) if given.experiment else protocol(given, chosen is not None)
    lines = measure(
        jobs,
        given.repeats or (1 if chosen is None else 3),
        given.out,
        facts(given, chosen),
        reader,
        before,
        None if minutes is None else 60 * minutes,
    )
    return report(lines)


def choose(asked: str | None) -> Card | None:
    """The card for all runs; None: they run on the CPU. Raises NoCard; NotSettled if the card is in use."""
    if asked == "cpu":
        return None
    if asked is not None:
        found = card(asked)
    else:
        try:
            there = cards()
        except NoCard as error:
            print(f"{error}\nThe small models are measured now.")
            return None
        if len(there) > 1:
            ids = "\n".join(f"  {one.id}  {one.name}" for one in there)
            raise NoCard(f"there are {len(there)} GPUs. Choose one for all runs by --card:\n{ids}")
        (found,) = there
    others = [*found.foreign, *found.hidden]  # nothing of ours is there yet
    if others or (found.utilisation or 0) > BUSY:
        raise NotSettled(
            f"{found.id} is in use before the first run: processes {others}, "
            f"{found.utilisation} % busy. Wait, or choose another by --card"
        )
    return found


def start_of_runs(start: str, quiet_s: float, chosen: Card) -> Callable[[], None]:
    """What brings the card to the start of a run."""
    if start == "cool":
        first = chosen.temperature_c
        if first is None:
            raise NoCard(f"{chosen.id} does not say its temperature. Use --start warm")
        read = _reader(chosen.id)
        return lambda: cool(lambda: read().temperature_c, first, LIMIT_S)
    settled: list[float] = []

    def before() -> None:
        from benchmarks.memory.load import fixed_load

        step = fixed_load(on_gpu=True)
        settled.append(warm(step, quiet_s, LIMIT_S, settled[0] if settled else None))

    return before


def _nothing() -> None:
    pass


def _reader(uuid: str) -> Callable[[], Card]:
    return lambda: card(uuid)


def facts(given: argparse.Namespace, chosen: Card | None) -> dict[str, Any]:
    """What every line of a measurement says of it."""
    import torch
    import transformers

    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks.memory", *sys.argv[1:]]),
        "device": f"{platform.machine()} CPU" if chosen is None else chosen.name,
        "card": None if chosen is None else chosen.id,
        "start": None if chosen is None else given.start,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": given.experiment or ("small" if chosen is None else "base"),
        "dtype": "bf16" if given.bf16 else "fp32",
        "matmul_precision": torch.get_float32_matmul_precision(),  # highest: no TF32
        "attention": given.attention,
    }


def protocol(given: argparse.Namespace, on_gpu: bool) -> list[Job]:
    """Synthetic batches of the families by every method."""
    from benchmarks.memory.contestants import PLANNED, UNPLANNED, Budget, jobs, share_of
    from benchmarks.memory.families import FAMILIES, lengths
    from benchmarks.memory.training import Setting

    shares = given.shares or ([] if on_gpu else [25, 50, 75])
    methods = given.methods or ((*METHODS, "none_capped") if on_gpu else ON_CPU)
    if shares:  # which lie between their peaks
        methods = tuple(dict.fromkeys(("none", "gc", *methods)))
    known("--tasks", given.tasks or (), FAMILIES)
    known("--methods", methods, (*UNPLANNED, *PLANNED))
    steps = Setting.collect + (given.steps or (200 if on_gpu else 12))
    made = []
    for name in given.tasks or (PROTOCOL if on_gpu else tuple(FAMILIES)):
        family = FAMILIES[name]
        setting = Setting(
            family,
            family.rows if on_gpu else family.tiny_rows,
            tuple(lengths(family, steps)),
            "base" if on_gpu else "tiny",
            given.attention,
            given.bf16,
        )
        published = [family.budget_gib] if on_gpu and family.budget_gib and not shares else []
        budgets: dict[str, Budget] = {
            f"{gib:g}": _of_gib(gib) for gib in given.budgets or published
        }
        budgets |= {f"{share:g}%": share_of(share / 100) for share in shares}
        made += jobs(setting, methods, budgets, on_gpu, not given.no_times)
    return made


def known(option: str, values: Iterable[str], names: Collection[str]) -> None:
    """Raise SystemExit for a value that is none of these names."""
    if wrong := [value for value in values if value not in names]:
        raise SystemExit(f"{option} {wrong[0]}: must be among {', '.join(names)}")


def _of_gib(gib: float) -> Callable[[Any], float]:
    return lambda known: gib * 2.0**30


def whole_trainings(given: argparse.Namespace) -> list[Job]:
    """train.py with an experiment by every method, each job in a process of its own."""
    made = []
    known("--methods", given.methods or (), OVERRIDES)
    for method in given.methods or ("none", "gc"):
        planned = method in ("prefix", "tiered", "bucket_greedy", "static")
        for gib in given.budgets if planned else [None]:
            more = [] if gib is None else [f"memory.budget_gib={gib:g}"]
            overrides = [*OVERRIDES[method], *more, *given.overrides]
            name = method if gib is None else f"{method}@{gib:g}"
            task = TASKS.get(given.experiment, given.experiment)
            made.append(Job(task, name, _train(given.experiment, overrides, gib)))
    return made


def _train(
    experiment: str, overrides: Sequence[str], gib: float | None
) -> Callable[[Path], dict[str, Any]]:
    def act(folder: Path) -> dict[str, Any]:
        from train.memory.logs import read

        folder.mkdir(parents=True, exist_ok=True)
        argv = [
            *(sys.executable, "train.py", f"experiment={experiment}", *overrides),
            f"hydra.run.dir={folder.absolute()}",
        ]
        with (folder / "output.log").open("wb") as output:
            code = subprocess.run(
                argv, cwd=ROOT, stdout=output, stderr=output, check=False
            ).returncode
        if code:
            return {"ended": f"exit {code}, see {folder / 'output.log'}", "budget_gib": gib}
        found = read(folder)
        peaks = [peak for own in found.memory_count.values() for peak in own]
        reserved = found.max_memory_used
        return {
            "ended": "",
            "budget_gib": gib,
            "steps": len(found.shape_order) or None,
            "training_s": found.seconds,  # of the whole training, as it says itself
            "peak_allocated_gib": max(peaks) / 2**30 if peaks else None,
            "peak_reserved_gib": None if reserved is None else reserved / 2**30,
            "over_budget": None if gib is None else sum(peak > gib * 2**30 for peak in peaks),
        }

    return act
