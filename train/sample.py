"""A few-shot sample of a task: k lines for training, as many for selection, by an explicit seed.

    python -m train.sample <train.tsv> <validation.tsv> <folder of the task> --k 16 --seed 13 [--classes]

Lines are input<TAB>answer. It writes <task>_<k>_<seed>_{train,dev,test}.tsv, CrossFit's names, whose seeds
are 100, 13, 21, 42 and 87. --classes: k of every answer, for classification. The validation file, whole or
its first --test lines, becomes the test set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from train.data.few_shot import sample


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m train.sample", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("train", type=Path, help="lines to draw from")
    parser.add_argument("validation", type=Path, help="lines of the test set")
    parser.add_argument("folder", type=Path, help="called like the task; samples may lie there")
    parser.add_argument("--k", type=int, required=True, help="lines; with --classes per answer")
    parser.add_argument("--seed", type=int, required=True, help="of the shuffle")
    parser.add_argument("--classes", action="store_true", help="k of every answer")
    parser.add_argument("--test", type=int, default=None, help="lines of the test set at most")
    options = parser.parse_args(argv)
    train, test = (_lines(path) for path in (options.train, options.validation))
    parts = sample(train, test[: options.test], options.k, options.seed, options.classes)
    options.folder.mkdir(parents=True, exist_ok=True)
    stem = f"{options.folder.resolve().name}_{options.k}_{options.seed}"
    for part, lines in parts.items():
        path = options.folder / f"{stem}_{part}.tsv"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{path}: {len(lines)} lines")


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(str(error))
