"""Small datasets cut from CL_Benchmark's: `<dataset>_<rows>_<version>`, as AutoCL names them.

    python -m train.data.cut CL_Benchmark/BoolQA/BoolQA --rows 40 --version 1
    python -m train.data.cut CL_Benchmark/*/* --rows 40 --version 1 --out small/CL_Benchmark

makes BoolQA_40_1 beside BoolQA, or below --out: 40 training rows, 20 of each of its two labels. The dev rows,
as many unless --dev-rows says otherwise, are taken from train.json as well, because dev.json of the published
data is test.json; test.json is kept as it is. No text is in two splits. Version and name of the dataset
are the seed: version 2 draws other rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train.config.typed import SettingsError
from train.data.benchmark import Item, read_labels, read_split


def cut(
    source: Path, target: Path, rows: int, version: int, dev_rows: int | None = None
) -> dict[str, int]:
    """Write the cut of the dataset in `source` to the new folder `target`; rows by split.

    rows, dev_rows: of all labels together. Raises SettingsError where they are no multiple of the number
    of labels, or a label has too few texts that are in no other split.
    """
    if target.exists():
        raise SettingsError(f"{target}: is there already; another --version makes another folder")
    labels = read_labels(source)
    dev_rows = rows if dev_rows is None else dev_rows
    for name, n in (("--rows", rows), ("--dev-rows", dev_rows)):
        if n < len(labels) or n % len(labels):
            raise SettingsError(
                f"{name} {n}: must be a multiple of the {len(labels)} labels of {source}, "
                f"which get equally many rows: {', '.join(labels)}"
            )
    test = read_split(source, "test", labels)
    rng = np.random.default_rng([version, zlib.crc32(source.name.encode())])
    used = {item.sentence for item in test.items}
    parts: dict[str, list[Item]] = {"train": [], "dev": []}
    items = read_split(source, "train", labels).items
    for label in labels:
        own = [item for item in items if item.label == label]
        free: dict[str, Item] = {}  # one row of every text
        for place in rng.permutation(len(own)):
            if own[place].sentence not in used:
                free.setdefault(own[place].sentence, own[place])
        wanted = (rows + dev_rows) // len(labels)
        if len(free) < wanted:
            raise SettingsError(
                f"{source}: label '{label}' has {len(free)} training texts that are in no other split, and "
                f"{wanted} are needed ({rows // len(labels)} train, {dev_rows // len(labels)} dev); "
                "ask for fewer"
            )
        chosen = [*free.values()][:wanted]
        used |= free.keys()  # a text with two labels is given to the first of them
        parts["train"] += chosen[: rows // len(labels)]
        parts["dev"] += chosen[rows // len(labels) :]
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    for split, own in parts.items():
        order = rng.permutation(len(own))
        write_rows(aside / f"{split}.json", [(own[i].sentence, own[i].label) for i in order])
    for name in ("test.json", "labels.json"):
        (aside / name).write_bytes((source / name).read_bytes())
    aside.chmod(0o755)
    os.replace(aside, target)  # whole or not at all
    return {"train": rows, "dev": dev_rows, "test": len(test.items) + test.unlabelled}


def write_rows(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """A split of CL_Benchmark from pairs of sentence and label."""
    rows = [{"label": label, "sentence": sentence} for sentence, label in pairs]
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.data.cut", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("datasets", nargs="+", type=Path, help="folders <Group>/<dataset>")
    parser.add_argument("--rows", type=int, required=True, help="training rows of all labels")
    parser.add_argument("--dev-rows", type=int, help="dev rows of all labels (default: --rows)")
    parser.add_argument("--version", type=int, default=1, help="of the sample, 1 or more")
    parser.add_argument("--out", type=Path, help="root of the new folders (default: as the old)")
    options = parser.parse_args(argv)
    status = 0
    for source in (path.absolute() for path in options.datasets):
        root = (options.out or source.parents[1]).absolute()
        target = root / source.parent.name / f"{source.name}_{options.rows}_{options.version}"
        try:
            made = cut(source, target, options.rows, options.version, options.dev_rows)
        except SettingsError as error:
            print(error, file=sys.stderr)
            status = 1
        else:
            print(f"{target}: {', '.join(f'{n} {split}' for split, n in made.items())}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
