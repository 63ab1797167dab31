"""Memory methods against each other, and the discipline that makes their times comparable.

    python -m benchmarks.memory gpus                     which cards differ; --time: by a fixed job on each
    python -m benchmarks.memory run --out runs/memory    on a GPU: the protocol, within 8 minutes on one card
                                                         on the CPU: small models, profiler and FLOPs
    python -m benchmarks.memory run --out runs/swag --experiment memory_swag --methods none gc prefix \\
        --budgets 6 -- trainer.num_train_epochs=3        whole trainings of train.py
    python -m benchmarks.memory planning                 what a plan takes, the planner alone
    python -m benchmarks.memory table runs/memory        method x budget x time, published numbers beside it
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.memory.cards import NoCard, show_gpus
from benchmarks.memory.discipline import RESULTS, NotSettled
from benchmarks.memory.tables import show_table


def main(argv: Sequence[str] | None = None) -> int:
    given = command_line().parse_args(argv)
    try:
        if given.command == "gpus":
            print(show_gpus(given.time))
        elif given.command == "planning":
            from benchmarks.memory.planning import planning

            print(planning())
        elif given.command == "table":
            print(show_table(given.folders))
        else:
            from benchmarks.memory.run import measure_methods

            print(measure_methods(given))
    except (NoCard, NotSettled) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, dest="command")
    gpus = commands.add_parser("gpus", help="which cards differ")
    gpus.add_argument("--time", action="store_true", help="a fixed job on every card, three times")
    run = commands.add_parser("run", help="measure methods in turns")
    run.add_argument("--out", type=Path, required=True, help=f"folder of {RESULTS}")
    run.add_argument("--card", help="UUID of a GPU or its beginning, or cpu; default: the only GPU")
    run.add_argument("--start", choices=("warm", "cool"), default="warm", help="of runs on a GPU")
    run.add_argument("--quiet", type=float, default=60, help="seconds without change: it is warm")
    run.add_argument("--minutes", type=float, help="for all; on a GPU 7.5 where nothing is said")
    run.add_argument("--repeats", type=int, help="of each method; on a GPU 3, on the CPU 1")
    run.add_argument("--tasks", nargs="+", help="families; on a GPU SWAG and SQuAD, on the CPU all")
    run.add_argument("--methods", nargs="+", help="default: all, on the CPU those of its table")
    run.add_argument("--budgets", nargs="+", type=float, default=[], help="GiB; else as published")
    run.add_argument(
        *("--shares",), nargs="+", type=float, default=[],
        help="budgets in per cent of the way from the peak of gc to that of none; on the CPU 25 50 75",
    )  # fmt: skip
    run.add_argument("--steps", type=int, help="after collection; on a GPU 200, on the CPU 12")
    run.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    run.add_argument("--bf16", action="store_true", help="else fp32, TF32 off")
    run.add_argument("--no-times", action="store_true", help="on the CPU: only peaks and FLOPs")
    run.add_argument("--experiment", help="of conf/experiment: train.py trains it whole")
    run.add_argument("overrides", nargs="*", help="after --: of train.py")
    commands.add_parser("planning", help="what a plan takes, the planner alone")
    table = commands.add_parser("table", help="the tables of what was run")
    table.add_argument("folders", nargs="*", type=Path, help="of `run`; none: published numbers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
