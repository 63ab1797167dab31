"""A plain script with options, as `autocl finetune` runs it: gradient steps towards w = 1.

Each run notes its start and its end in the file LEDGER. What a test wants to happen comes by
environment variables, by the value of --size:

LASTS_S   seconds a run takes: JSON, size -> seconds
ENDS      how a run ends: JSON, size -> exit status, "SIGSEGV", "nan", "no report", "saves nothing"
HOLD      runs wait while this file exists
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import autocl_sweeper


def note(event: str, **fields: object) -> None:
    record = {"event": event, "pid": os.getpid(), "time": time.monotonic(), **fields}
    file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (json.dumps(record) + "\n").encode())
    os.close(file)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--words", default="")
    parser.add_argument("--saved_params_dir", required=True)
    parser.add_argument("--model_path")
    options = parser.parse_args()
    note("start", argv=sys.argv[1:], devices=os.environ.get("CUDA_VISIBLE_DEVICES"))
    w = 0.0
    if options.model_path is not None:
        w = json.loads(Path(options.model_path, "w.json").read_text())
    for _ in range(options.epochs):
        w += options.rate * (1 - w)
    time.sleep(json.loads(os.environ.get("LASTS_S", "{}")).get(str(options.size), 0))
    while "HOLD" in os.environ and Path(os.environ["HOLD"]).exists():
        time.sleep(0.02)
    end = json.loads(os.environ.get("ENDS", "{}")).get(str(options.size))
    print(f"size {options.size} ends with {end}")
    if isinstance(end, int):
        autocl_sweeper.report_final_result(1.0)
        sys.exit(end)
    if end == "SIGSEGV":
        os.kill(os.getpid(), signal.SIGSEGV)
    if end != "saves nothing":
        Path(options.saved_params_dir, "w.json").write_text(json.dumps(w))
    note("end", size=options.size)
    if end != "no report":
        score = 1 - (w - 1) ** 2 - (options.size - 16) ** 2 / 1000
        autocl_sweeper.report_final_result(float("nan") if end == "nan" else score)


if __name__ == "__main__":
    main()
