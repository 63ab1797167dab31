"""What a job costs before and after the user's code: forked from a warm process, and fresh.

    python benchmarks/warm_start.py              jobs that import torch, transformers and peft
    python benchmarks/warm_start.py --sweep      and two tasks of the training app, both ways

Both kinds of jobs run in turns, one at a time, so that a busy machine slows both: only the ratios
mean anything. Medians. Private memory is what no other process shares (/proc/<pid>/smaps_rollup).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.types import HydraContext, RunMode

from autocl_sweeper.devices import CpuProbe
from autocl_sweeper.executor.local import LocalExecutor
from autocl_sweeper.executor.pool import Pool
from autocl_sweeper.executor.warm import Template
from autocl_sweeper.hydra_job import Package
from autocl_sweeper.leases import LeaseFolder
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.types import Job, State

ROOT = Path(__file__).resolve().parents[1]
PRELOAD = ("torch", "transformers", "peft")
SWEEP = (
    "-m", "experiment=split_digits", "task=digits_01,digits_23",
    *(f"~hydra.sweeper.task_params.digits_{n}" for n in ("45", "67", "89")),
)  # fmt: skip


def task(cfg: Any) -> float:
    """What a training script does before it trains; notes when it was ready and what it holds."""
    import torch

    for name in ("transformers", "peft"):
        __import__(name)
    torch.ones(2, 2) @ torch.ones(2, 2)
    ready = time.monotonic()
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    private_kib = sum(int(line.split()[1]) for line in rollup if line.startswith("Private"))
    Path("ready.json").write_text(json.dumps([ready, private_kib / 1024]))
    return 1.0


task.__module__ = "__main__"  # pickled by value, also when this file is imported


def measure(folder: Path, count: int) -> tuple[dict[str, list[tuple[float, ...]]], float]:
    """kind -> per job (s until ready, s until reaped, private MiB), and the s of the preload."""
    pool = Pool(CpuProbe(1, {}), LeaseFolder(folder / "leases"))
    config_folder = folder / "conf"
    config_folder.mkdir()
    (config_folder / "config.yaml").write_text("x: 0\n")
    executors = {}
    begin = time.monotonic()
    preload_s = 0.0
    for kind in ("fresh", "warm"):
        sweep = folder / kind
        with initialize_config_dir(str(config_folder), version_base=None):
            setup_globals()
            loader = GlobalHydra.instance().config_loader()
            overrides = [f"hydra.sweep.dir={sweep}", "hydra.job.chdir=true", "hydra.job.name=bench"]
            config = loader.load_configuration("config", overrides, RunMode.MULTIRUN)
            from hydra._internal.callbacks import Callbacks

            files = JobFiles.of(sweep)
            context = HydraContext(config_loader=loader, callbacks=Callbacks())
            package = Package.pack(files, context, config, task)
        template = Template(package, PRELOAD) if kind == "warm" else None
        executors[kind] = LocalExecutor(package, files, pool, template=template)
        if kind == "warm":
            begin = time.monotonic()
            assert executors[kind].free_slots()
            preload_s = time.monotonic() - begin
            executors[kind].wait(0.0)
    found: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in executors}
    try:
        for number in range(count):
            for kind, executor in executors.items():
                assert executor.free_slots()
                begin = time.monotonic()
                executor.submit(Job(number, ()))
                while not (ended := executor.wait(None)):
                    pass
                whole = time.monotonic() - begin
                assert ended[0][1].state is State.COMPLETE, ended[0][1]
                ready, mib = json.loads((folder / kind / str(number) / "ready.json").read_text())
                found[kind].append((ready - begin, whole, mib))
    finally:
        for executor in executors.values():
            executor.close()
    return found, preload_s


def sweep_s(folder: Path, warm: bool) -> float:
    """Wall time of the training app's first two tasks, 10 jobs on the CPU slots of the machine."""
    how = [f"hydra.launcher.warm={str(warm).lower()}", f"hydra.sweep.dir={folder}/sweep-{warm}"]
    environment = {**os.environ, "AUTOCL_LEASE_DIR": str(folder / "leases")}
    begin = time.monotonic()
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SWEEP, *how],
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", type=int, nargs="?", default=10)
    parser.add_argument("--sweep", action="store_true", help="also time the training app both ways")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found, preload_s = measure(Path(scratch), options.jobs)
        names = ("hydra-core", *PRELOAD)
        versions = ", ".join(f"{name} {version(name)}" for name in names)
        print(f"python {sys.version.split()[0]}, {versions}, {os.cpu_count()} cores")
        print(f"{options.jobs} jobs of each kind; the preload took {preload_s:.1f} s")
        print(f"{'median':24}{'fresh':>10}{'warm':>10}{'ratio':>8}")
        whats = (
            ("submit to ready, ms", 1e3), ("submit to reaped, ms", 1e3), ("private memory, MiB", 1.0),
        )  # fmt: skip
        for place, (what, unit) in enumerate(whats):
            fresh, warm = (
                unit * statistics.median(row[place] for row in found[kind])
                for kind in ("fresh", "warm")
            )
            print(f"{what:24}{fresh:10.1f}{warm:10.1f}{fresh / warm:8.1f}")
        if options.sweep:
            fresh, warm = sweep_s(Path(scratch), False), sweep_s(Path(scratch), True)
            print(f"{'training sweep, s':24}{fresh:10.1f}{warm:10.1f}{fresh / warm:8.1f}")


if __name__ == "__main__":
    main()
