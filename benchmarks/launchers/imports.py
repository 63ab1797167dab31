"""The job that every launcher of the benchmark runs: it imports what training imports, and ends.

python benchmarks/launchers/imports.py -m hydra/launcher=gpu +n=1,2,3
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import hydra

MODULES = ("torch", "transformers", "peft")


def job(cfg: Any) -> float:
    """Notes in READY_FILE when user code was ready, and what memory no other process shares."""
    for name in MODULES:
        __import__(name)
    ready = time.monotonic()
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    private_kib = sum(int(line.split()[1]) for line in rollup if line.startswith("Private"))
    if "READY_FILE" in os.environ:
        Path(os.environ["READY_FILE"]).write_text(json.dumps([ready, private_kib / 1024]))
    return 1.0


if __name__ == "__main__":
    hydra.main(version_base=None, config_path=None)(job)()
