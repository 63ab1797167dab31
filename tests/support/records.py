"""Records of micro-batches, as a job leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train.memory.records import RECORDS, Record

ANY = Record(
    step=1, size=40, features=(1.0, 1.0, 1.0, 1.0), phase="plan", blocks=(), predicted_bytes=None,
    peak_allocated_bytes=100.0, peak_reserved_bytes=200.0, static_bytes=10.0, step_s=1.0, plan_us=1.0,
    cache_hit=False, extrapolated=False, infeasible=False,
)  # fmt: skip


def records_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]
