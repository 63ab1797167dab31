"""What `_include` adds to the composition of a configuration, and what checking a job costs.

    python benchmarks/composition.py [repetitions]

One app, configured by a file of one line, and in three ways that all give the same 20 sections: one
long file, a file that includes 20, and Hydra's own defaults list of the 20. Each is composed in turns
in one process, directly and from a sweep's snapshot, and started in turns as a process `app --cfg job`,
so that other work on the machine meets all alike. The promise: 20 includes add less than 30 ms to
Hydra's start, against the same values in one file; the last column is what these values themselves cost.

Then the jobs of a sweep, of the app with 20 included files and of the training app: composed by Hydra's
loader, by the composer of the controller (autocl_sweeper.job.compose), and held against the sections of the
training app by its check (hydra.sweeper.check). Jobs differ in learning rate, parent and folder, as the
sweeper writes them; files are those of the sweep's snapshot.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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

from autocl_sweeper.job.compose import Composer
from autocl_sweeper.yaml.snapshot import Snapshot, install

INCLUDES = 20
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
  forkserver: "[IMAGE:image] what is in it? -> [TEXT:label]"
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


def of_jobs(
    conf: Path,
    config: str,
    job: Callable[[int], list[str]],
    check: Callable[[Any], None] | None,
    n: int,
) -> dict[str, list[float]]:
    """Milliseconds of processor time a job, by who composes it, and with the app's check."""
    of_sweep = ["hydra/sweeper=autocl", "hydra.sweep.dir=/sweep", "hydra.mode=MULTIRUN"]
    with initialize_config_dir(str(conf), **OPTIONS), install(Snapshot([str(conf)])) as snapshot:
        setup_globals()
        JobRuntime.instance().set("name", "app")
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration(config, of_sweep, RunMode.MULTIRUN)
        snapshot.complete(conf)
        composer = Composer(loader, master)
        ways: dict[str, Callable[[list[str]], Any]] = {
            "Hydra's loader": lambda words: loader.load_sweep_config(master, words),
            "composer": composer,
        }
        if check is not None:
            ways["composer, check"] = lambda words: check(composer(words))
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(n):
            words = [*job(number), f"hydra.sweep.subdir='2_task/{number}'"]
            for name, way in ways.items():
                begin = time.process_time()
                way(words)
                times[name].append(1000 * (time.process_time() - begin))
    return times


def print_jobs(repetitions: int, conf: Path) -> None:
    """`conf`: of the app with 20 included files."""
    from train.check import check_job
    from train.main import CONF

    def included(number: int) -> list[str]:
        return [f"section_1.learning_rate={1e-3 * (number + 1)!r}", "section_2._name=kind"]

    def training(number: int) -> list[str]:
        parent = f"init_from=/sweep/1_digits_01/{number}/checkpoint"
        return ["task=digits_23", f"trainer.learning_rate={1e-3 * (number + 1)!r}", parent]

    print("\na job of a sweep, ms of processor time: median, least, first")
    apps = {
        "20 included files": of_jobs(conf, "include", included, None, repetitions),
        "the training app": of_jobs(CONF, "config", training, check_job, repetitions),
    }
    for app, times in apps.items():
        for way, taken in times.items():
            row = (median(taken), min(taken), taken[0])
            print(f"{app:20}{way:20}" + "".join(f"{ms:10.2f}" for ms in row))


def main(repetitions: int) -> None:
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
        rows = {
            "compose, processor time": {name: min(again[name]) for name in names},
            "the same, from a snapshot": {name: min(kept[name][1:]) for name in names},
            "process, by the clock": {
                name: median(wall for wall, _ in walls[name]) for name in names
            },
            "process, processor time": {name: min(cpu for _, cpu in walls[name]) for name in names},
        }
        heads = "".join(f"{head:>10}" for head in ("one line", "one file", "includes", "defaults"))
        print(f"{'':28}{heads}{'includes add':>14}{'values':>8}")
        for label, row in rows.items():
            cells = "".join(f"{row[name]:10.1f}" for name in names)
            print(
                f"{label:28}{cells}{row['include'] - row['plain']:14.1f}{row['plain'] - row['line']:8.1f}"
            )
        print_jobs(repetitions, folder / "conf")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repetitions", type=int, nargs="?", default=15)
    main(parser.parse_args().repetitions)
