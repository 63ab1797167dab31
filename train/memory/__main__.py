"""Tables and pictures of trainings under a memory budget.

    python -m train.memory report outputs/plan_6 outputs/none --out report
    python -m train.memory report swag_6.log swag_none.log --out report

A run is the folder of a job of ours, its memory_records.jsonl, or the log of a script of Mimose's. Overheads are
against the runs that recompute nothing, so give runs of one task at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from train.memory.logs import LogError, Measured, read
from train.memory.report import as_text, rows, write


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m train.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report = parser.add_subparsers(required=True, metavar="report").add_parser(
        "report", help="write table.txt, table.csv and pictures"
    )
    report.add_argument("runs", nargs="+", type=Path, help="job folders, records or logs")
    report.add_argument(
        "--out", type=Path, default=Path("memory_report"), help="folder to write into"
    )
    report.add_argument("--method", help="of runs that do not say theirs: None, GC, DC, DCS, PC")
    report.add_argument("--budget-gib", type=float, help="of runs that do not say theirs")
    given = parser.parse_args(argv)
    try:
        runs = _named(given.runs)
    except LogError as error:
        print(error, file=sys.stderr)
        return 2
    for name, one in runs.items():
        method, budget = one.method or given.method, one.budget_gib
        if budget is None and method not in ("None", "GC"):
            budget = given.budget_gib
        runs[name] = replace(one, method=method, budget_gib=budget)
    written = write(runs, given.out)
    print(as_text(rows(runs)), end="")
    print(f"{len(written)} files in {given.out}")
    return 0


def _named(paths: Sequence[Path]) -> dict[str, Measured]:
    """Runs by the last part of their path, or all of it where that is not enough."""
    names = [path.absolute().stem for path in paths]
    return {
        str(path) if names.count(name) > 1 else name: read(path)
        for path, name in zip(paths, names, strict=True)
    }


if __name__ == "__main__":
    sys.exit(main())
