"""Says something on every path there is from a process to its output."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import hydra


@hydra.main(version_base=None, config_path="conf", config_name="chain")
def main(cfg: Any) -> float:
    print("by print")
    print("by print to stderr", file=sys.stderr)
    os.write(1, b"by write to 1\n")
    os.write(2, b"by write to 2\n")
    subprocess.run([sys.executable, "-c", "print('by a child')"], check=True)
    subprocess.run(["sh", "-c", "echo by a shell >&2"], check=True)
    print("stdin has:", repr(sys.stdin.read()))
    return float(cfg.lr)


if __name__ == "__main__":
    main()
