"""An app that reports its learning rate as its score after every step.

LEDGER    what each job did, in a line of JSON
HOLD      jobs with a learning rate in HOLDS (a JSON list) stay before their last step while it exists
FIRST     jobs of other learning rates wait before their first step for one of a job of this
STUBBORN  when set, jobs ignore SIGTERM
PACE_S    how long a step takes, by learning rate (JSON)
"""

from __future__ import annotations

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
    record = {"event": event, "pid": os.getpid(), **fields}
    file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (json.dumps(record) + "\n").encode())
    os.close(file)


@hydra.main(version_base=None, config_path="conf", config_name="curve")
def main(cfg: Any) -> float:
    if os.environ.get("STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder = Path(HydraConfig.get().runtime.output_dir, "checkpoint")
    folder.mkdir(parents=True)
    (folder / "model").write_text("m")
    number = HydraConfig.get().job.num
    note("start", trial=number, lr=cfg.lr)
    if os.environ.get("FIRST") not in (None, str(cfg.lr)):
        while '"step"' not in Path(os.environ["LEDGER"]).read_text():
            time.sleep(0.02)
    pace_s = json.loads(os.environ.get("PACE_S", "{}")).get(str(cfg.lr), cfg.pace_s)
    for step in range(1, cfg.steps + 1):
        while step == cfg.steps and cfg.lr in json.loads(os.environ.get("HOLDS", "[]")):
            if not Path(os.environ["HOLD"]).exists():
                break
            time.sleep(0.02)
        time.sleep(pace_s)
        autocl_sweeper.report(cfg.lr, step)
        note("step", trial=number, step=step)
    note("end", trial=number)
    return cfg.lr


if __name__ == "__main__":
    main()
