"""Continual learning without the learning: a score is arithmetic on the settings of a lineage.

Every run notes its start and its end in the file LEDGER, one JSON object a line. What a test wants
to happen without changing the sweep's configuration comes by environment variables:

REPORTS   how many scores a job reports when it starts, and again before it ends
LASTS_S   how long a job takes
HOLD      jobs wait while this file exists; HOLDS: only those with these learning rates
FOREVER   the lineages, as lists of learning rates, whose jobs do not end by themselves
FAILS     the learning rates that fail while this file exists are listed in it
ANSWERS   what a job does at SIGTERM, by learning rate: "finish", "ignore" or "raise"
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig

import autocl_sweeper


def note(event: str, **fields: Any) -> None:
    """One write to a file opened for appending: lines of several processes do not mix."""
    record = {"event": event, "pid": os.getpid(), "time": time.monotonic(), **fields}
    file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (json.dumps(record) + "\n").encode())
    os.close(file)


def report(score: float, half: int) -> None:
    count = int(os.environ.get("REPORTS", 0))
    for step in range(half * count, (half + 1) * count):
        autocl_sweeper.report(score, step)


def visible_devices() -> str | None:
    """What the CUDA library would read, which asks C and not Python."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    value = getenv(b"CUDA_VISIBLE_DEVICES")
    return None if value is None else value.decode()


def prepare_answer(lr: Any) -> list[str]:
    """Where what SIGTERM asks for will be noted."""
    answer = json.loads(os.environ.get("ANSWERS", "{}")).get(str(lr))
    asked: list[str] = []

    def on_sigterm(*_: object) -> None:
        if answer == "raise":
            raise ValueError("there is no end to this")
        asked.append(answer)

    if answer:
        signal.signal(signal.SIGTERM, on_sigterm)
    return asked


@hydra.main(version_base=None, config_path="conf", config_name="chain")
def main(cfg: Any) -> Any:
    number = HydraConfig.get().job.num
    devices = visible_devices()
    asked = prepare_answer(cfg.lr)
    note("start", trial=number, devices=devices, task=cfg.task.name, lr=cfg.lr)
    report(cfg.lr, 0)
    lineage = []
    if cfg.init_from is not None:
        lineage = json.loads(Path(cfg.init_from, "model.json").read_text())
    lineage.append([cfg.task.name, cfg.lr])
    time.sleep(float(os.environ.get("LASTS_S", 0)))
    hold = os.environ.get("HOLD")
    holds = json.loads(os.environ.get("HOLDS", "[]"))
    while hold and (not holds or cfg.lr in holds) and Path(hold).exists():
        time.sleep(0.02)
        if "finish" in asked:
            break
    while [lr for _, lr in lineage] in json.loads(os.environ.get("FOREVER", "[]")):
        time.sleep(0.02)
    fails = os.environ.get("FAILS")
    if fails and Path(fails).exists() and cfg.lr in json.loads(Path(fails).read_text()):
        raise RuntimeError(f"lr={cfg.lr} is not for today")
    report(cfg.lr, 1)
    # Another number for every lineage, and the best one does not begin with the best first step.
    score = round(sum(lr * (-0.6) ** place for place, (_, lr) in enumerate(lineage)), 6)
    if cfg.saves:
        folder = Path(HydraConfig.get().runtime.output_dir, "checkpoint")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.json").write_text(json.dumps(lineage))
    note("end", trial=number, devices=devices)
    return score


if __name__ == "__main__":
    main()
