"""Jobs on a small disk. FILL says what job x=1 does to it, once: the file ONCE keeps it from doing so again.

outcome      fills the disk when its work is done
checkpoint   fills it and then saves its model
child        lets a child process do that, which ends with a traceback
unhandled    fills it, catches the error of its own writing, and goes on
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig

ConfigStore.instance().store("config", {"task": "a", "x": 0, "init_from": None})


def fill() -> None:
    with open(os.environ["FILLER"], "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"f" * size)


@hydra.main(config_path=None, config_name="config", version_base="1.3")
def main(cfg: Any) -> float:
    folder = Path(HydraConfig.get().runtime.output_dir) / "checkpoint"
    folder.mkdir()
    with open(os.environ["LEDGER"], "a") as ledger:
        ledger.write(f'{{"event": "start", "x": {cfg.x}}}\n')
    once, what = Path(os.environ["ONCE"]), os.environ.get("FILL", "outcome")
    fills = cfg.x == 1 and not once.exists()
    if fills:
        once.touch()
    if fills and what != "outcome":
        fill()
    if fills and what == "unhandled":
        with suppress(OSError):
            print("words " * 100_000, flush=True)
    elif fills and what == "child":
        code = f"open({str(folder / 'model')!r}, 'wb', buffering=0).write(b'w' * 100_000)"
        code = f"{code}; raise OSError(28, 'No space left on device')"
        raise SystemExit(subprocess.call([sys.executable, "-c", code]))
    else:
        (folder / "model").write_bytes(b"w" * 1000)
    if fills and what == "outcome":
        fill()
    return float(cfg.x)


if __name__ == "__main__":
    main()
