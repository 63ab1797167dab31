"""Jobs that take memory of a device by their own account: what they report is in PEAKS, by model.

Every job notes in the file LEDGER what it learned of its lease, and runs out of memory where that is
less than it takes. HOLD and HOLDS as in chain.py.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig


def note(event: str, **fields: Any) -> None:
    file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (json.dumps({"event": event, "pid": os.getpid(), **fields}) + "\n").encode())
    os.close(file)


@hydra.main(version_base=None, config_path="conf", config_name="packed")
def main(cfg: Any) -> Any:
    lease = {name: os.environ.get(f"AUTOCL_MEMORY_{name}") for name in ("MIB", "FRACTION")}
    devices = os.environ["CUDA_VISIBLE_DEVICES"]
    named = {"trial": HydraConfig.get().job.num, "devices": devices}
    note("start", **named, lr=cfg.lr, model=cfg.model, **lease)
    holds = json.loads(os.environ.get("HOLDS", "[]"))
    while (not holds or cfg.lr in holds) and Path(os.environ["HOLD"]).exists():
        time.sleep(0.02)
    peak_mib = json.loads(os.environ["PEAKS"])[cfg.model]
    if int(lease["MIB"] or peak_mib + 500) < peak_mib + 500:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    folder = Path(HydraConfig.get().runtime.output_dir, "checkpoint")
    folder.mkdir(parents=True)
    note("end", **named)
    return {"score": cfg.lr, "peak_reserved_mib": peak_mib, "context_mib": 500}


if __name__ == "__main__":
    main()
