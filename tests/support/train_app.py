"""`python train.py` in a process of its own, as users start it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0", "CUDA_VISIBLE_DEVICES": ""}
ENV = os.environ | PLAIN
SMALL = (
    *("model.hidden_size=16", "model.num_hidden_layers=2", "model.num_attention_heads=2"),
    *("model.intermediate_size=16", "model.patch_size=4", "trainer.num_train_epochs=1"),
)


def train(cwd: Path, *overrides: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    env = os.environ | PLAIN  # with the test's own folder of leases
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout_s
    )


def transfer(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m train.transfer` in a process of its own."""
    command = [sys.executable, "-m", "train.transfer", *words]
    env = {**ENV, "PYTHONPATH": os.pathsep.join([str(ROOT), ENV.get("PYTHONPATH", "")])}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
