"""What `_include` adds to the composition of a configuration, and what a job of a sweep costs to compose.

    python benchmarks/composition.py [repetitions]

One app, configured by a file of one line, and in three ways that all give the same 20 sections: one
long file, a file that includes 20, and Hydra's own defaults list of the 20. Each is composed in turns
in one process, directly and from a sweep's snapshot, and started in turns as a process `app --cfg job`,
so that other work on the machine meets all alike. The promise: 20 includes add less than 30 ms to
Hydra's start, against the same values in one file; the last column is what these values themselves cost.

Then the jobs of a sweep: the app with the 20 includes, and the training app, which holds every job
against its sections. Jobs differ in learning rate, parent and folder, as the sweeper writes them; files
are those of the sweep's snapshot, and the collector's objects are frozen as in the process that jobs are
forked from. The promise: less than 3 ms of processor time per job.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime, setup_globals
from hydra.types import RunMode
from omegaconf import OmegaConf

from autocl_sweeper.job.composition import remembering
from autocl_sweeper.yaml.snapshot import Snapshot, install

INCLUDES = 20
JOBS = 300
OPTIONS = {"version_base": None} if hydra.__version__.startswith("1.3.") else {}
APP = f"""
import hydra
@hydra.main({"version_base=None, " if OPTIONS else ""}config_path="conf", config_name="plain")
def main(cfg): pass
main()
"""
SECTION = """# one of the small files
section_{n}:
  _name: kind_{n}
  learning_rate: 1e-{n}
  betas: [0.9, 0.999]
  dataset: {{num_workers: 4, micro_batch_size: 2, path: "data/${{name}}/{n}"}}
  template: "[IMAGE:image] what is in it? -> [TEXT:label]"
  save_dir: runs/${{name}}/{n}
"""


def write(conf: Path) -> None:
    conf.mkdir()
    sections = [SECTION.format(n=n) for n in range(INCLUDES)]
    for n, text in enumerate(sections):
        (conf / f"part_{n}.yaml").write_text(text)
    parts = ", ".join(f"part_{n}" for n in range(INCLUDES))
    (conf / "line.yaml").write_text("name: x\n")
    (conf / "plain.yaml").write_text("name: x\n" + "".join(sections))
    files = ", ".join(f"part_{n}.yaml" for n in range(INCLUDES))
    (conf / "include.yaml").write_text(f"_include: [{files}]\nname: x\n")
    (conf / "defaults.yaml").write_text(f"defaults: [{parts}, _self_]\nname: x\n")


def composed(name: str) -> tuple[float, Any]:
    """Milliseconds of processor time, and what came out."""
    begin = time.process_time()
    config = compose(name)
    return 1000 * (time.process_time() - begin), OmegaConf.to_container(config)


def started(folder: Path, name: str) -> tuple[float, float]:
    """Milliseconds of a whole process: by the clock, and of processor time."""
    before = os.times()
    begin = time.perf_counter()
    argv = [sys.executable, "app.py", "--config-name", name, "--cfg", "job"]
    path = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run(argv, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    wall = 1000 * (time.perf_counter() - begin)
    after = os.times()
    return wall, 1000 * (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def of_jobs(conf: Path, name: str, typed: list[str], repetitions: int) -> dict[str, list[float]]:
    """Milliseconds of processor time per job, by Hydra's loader and by ours."""
    of_sweep = ["hydra/sweeper=autocl", "hydra.sweep.dir=/sweep", "hydra.mode=MULTIRUN"]
    times: dict[str, list[float]] = {}
    with initialize_config_dir(str(conf), **OPTIONS):
        setup_globals()
        JobRuntime.instance().set("name", "app")
        loader: Any = GlobalHydra.instance().config_loader()
        snapshot = Snapshot([str(conf)])
        with install(snapshot):
            master = loader.load_configuration(name, of_sweep, RunMode.MULTIRUN)
            snapshot.complete(conf)
            gc.collect()
            gc.freeze()
            for label, one, count in (
                ("Hydra", loader, repetitions),
                ("ours", remembering(loader), JOBS),
            ):
                times[label] = []
                for number in range(count):
                    job = [text.format(n=number, rate=1e-3 * (number + 1)) for text in typed]
                    begin = time.process_time()
                    one.load_sweep_config(master, job)
                    times[label].append(1000 * (time.process_time() - begin))
            gc.unfreeze()
    return times


def main(repetitions: int = 15) -> None:
    packages = ("hydra-core", "omegaconf", "PyYAML")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(
        f"{versions}, Python {sys.version.split()[0]}, {repetitions} repetitions, ms:"
        " the least processor time (what else runs only adds to it), the median by the clock"
    )
    names = ("line", "plain", "include", "defaults")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        write(folder / "conf")
        (folder / "app.py").write_text(APP)
        with initialize_config_dir(str(folder / "conf"), **OPTIONS):
            results = {name: composed(name)[1] for name in names}
            assert results["plain"] == results["include"] == results["defaults"]
            again = {name: [composed(name)[0]] for name in names}
            for _ in range(repetitions):
                for name in names:
                    again[name].append(composed(name)[0])
            snapshot = Snapshot([str(folder / "conf")])
            with install(snapshot):
                snapshot.complete(folder)
                kept = {name: [composed(name)[0]] for name in names}
                for _ in range(repetitions):
                    for name in names:
                        kept[name].append(composed(name)[0])
        walls: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for repetition in range(repetitions + 1):
            for name in names:
                measured = started(folder, name)
                if repetition:  # the first reads everything from disk
                    walls[name].append(measured)
        include = of_jobs(
            folder / "conf",
            "include",
            [
                "name=y",
                "section_3.learning_rate={rate!r}",
                "section_4.save_dir=/sweep/1_a/{n}/checkpoint",
                "hydra.sweep.subdir='2_b/{n}'",
            ],
            repetitions,
        )
    rows = {
        "compose, processor time": {name: min(again[name]) for name in names},
        "the same, from a snapshot": {name: min(kept[name][1:]) for name in names},
        "process, by the clock": {name: median(wall for wall, _ in walls[name]) for name in names},
        "process, processor time": {name: min(cpu for _, cpu in walls[name]) for name in names},
    }
    print(
        f"{'':28}{'one line':>10}{'one file':>10}{'includes':>10}{'defaults':>10}{'includes add':>14}{'values':>8}"
    )
    for label, row in rows.items():
        cells = "".join(f"{row[name]:10.1f}" for name in names)
        print(
            f"{label:28}{cells}{row['include'] - row['plain']:14.1f}{row['plain'] - row['line']:8.1f}"
        )
    from train.main import CONF  # from here on all that uses its schema is checked

    trained = of_jobs(
        CONF,
        "config",
        [
            "task=digits_23",
            "trainer.learning_rate={rate!r}",
            "init_from=/sweep/1_digits_01/{n}/checkpoint",
            "hydra.sweep.subdir='2_digits_23/{n}'",
        ],
        repetitions,
    )
    print(
        f"\n{'a job of a sweep, ms of':28}{'Hydra':>10}{'ours':>10}{'least':>10}{'first':>10}{'second':>10}"
        f"\nprocessor time, median of {JOBS}"
    )
    for label, times in (("20 includes", include), ("training app, checked", trained)):
        ours = times["ours"]
        cells = (median(times["Hydra"]), median(ours), min(ours), ours[0], ours[1])
        print(f"{label:28}" + "".join(f"{cell:10.2f}" for cell in cells))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
