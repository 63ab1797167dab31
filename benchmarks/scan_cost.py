"""What our plugin adds to the start of every Hydra app that shares its environment.

    python benchmarks/scan_cost.py [repetitions]

Two environments that differ in our wheel alone are compared, in turns: by Hydra's figures of its own
scan (wall time; "our modules" is our part of it), and by the CPU time of the whole process
`python -c "Plugins.instance()"`, which other work on the machine disturbs less. The promise is to
add under 20 ms.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.installed import CLEAN, Environment, bare, installed

SCAN = """
import json, time
from hydra.core.plugins import Plugins
stats = Plugins.instance().get_stats()
ours = [s for name, s in stats.modules_import_time.items() if "hydra_autocl_sweeper" in name]
print(json.dumps([1000 * s for s in (sum(ours), stats.total_time, time.process_time())]))
"""


def start(python: str, cwd: Path) -> list[float]:
    """Milliseconds: our imports and the whole scan, wall time; the process, CPU time."""
    done = subprocess.run([python, "-c", SCAN], cwd=cwd, env=CLEAN, capture_output=True, check=True)
    measured: list[float] = json.loads(done.stdout)
    return measured


def main(repetitions: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pythons = {
            "without": Environment(bare(folder / "without"), folder).python,
            "with": installed("wheel", folder).python,
        }
        figures: dict[str, list[list[float]]] = {key: [] for key in pythons}
        for repetition in range(repetitions + 1):
            for key, python in pythons.items():
                measured = start(python, folder)
                if repetition:  # the first reads everything from disk
                    figures[key].append(measured)
    print(f"hydra-core {version('hydra-core')}, {repetitions} repetitions, milliseconds")
    print(f"{'':28}{'without':>10}{'with':>10}{'adds':>10}")
    for column, label in enumerate(["our modules", "Hydra's scan", "process (CPU)"]):
        for kind, of in ((median, "median"), (min, "least")):
            without, ours = (kind(f[column] for f in figures[key]) for key in ("without", "with"))
            print(f"{label + ', ' + of:28}{without:10.1f}{ours:10.1f}{ours - without:10.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repetitions", type=int, nargs="?", default=40)
    main(parser.parse_args().repetitions)
