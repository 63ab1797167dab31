"""Datasets cut from larger ones: balanced, by their name and version, no text in two splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.cl_benchmark import dataset, rows

from train.data.cut import main


def cut(root: Path, *arguments: str) -> int:
    return main([str(root / "CL_Benchmark/BoolQA/BoolQA"), *arguments])


def read(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {
        split: json.loads((folder / f"{split}.json").read_text())
        for split in ("train", "dev", "test")
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    doubled = [*rows("t", 60), *rows("t", 10), ("tested", "True"), ("t sentence 0", "False")]
    dataset(
        tmp_path, "BoolQA/BoolQA", train=doubled, test=[("tested", "True"), ("t sentence 1", "-")]
    )
    return tmp_path


def test_a_cut_is_balanced_and_no_text_is_in_two_splits(root: Path, capsys: Any) -> None:
    assert cut(root, "--rows", "12", "--dev-rows", "6", "--version", "3") == 0
    folder = root / "CL_Benchmark/BoolQA/BoolQA_12_3"
    found = read(folder)
    assert Counter(row["label"] for row in found["train"]) == {"True": 6, "False": 6}
    assert Counter(row["label"] for row in found["dev"]) == {"True": 3, "False": 3}
    whole = root / "CL_Benchmark/BoolQA/BoolQA"
    for name in ("test.json", "labels.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    texts = [row["sentence"] for part in ("train", "dev") for row in found[part]]
    assert len(set(texts)) == 18 and "tested" not in texts
    assert {(row["sentence"], row["label"]) for part in ("train", "dev") for row in found[part]} <= {
        *rows("t", 60), ("t sentence 0", "False"),
    }  # fmt: skip
    assert capsys.readouterr().out == f"{folder}: 12 train, 6 dev, 2 test\n"
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")]


def test_name_and_version_are_the_seed(root: Path) -> None:
    for version in ("1", "2"):
        cut(root, "--rows", "12", "--version", version)
        cut(root, "--rows", "12", "--version", version, "--out", str(root / "again"))
    first, second = (root / f"CL_Benchmark/BoolQA/BoolQA_12_{v}" for v in (1, 2))
    assert read(first) == read(root / "again/BoolQA/BoolQA_12_1")
    assert read(first) != read(second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "11"], "--rows 11: must be a multiple of the 2 labels"),
        (
            ["--rows", "60"],
            "label 'True' has 30 training texts that are in no other split, and 60 are",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(
    root: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    assert cut(root, *arguments) == 1
    assert message in capsys.readouterr().err
    assert len(list((root / "CL_Benchmark/BoolQA").iterdir())) == 1


def test_a_cut_is_never_written_over(root: Path, capsys: Any) -> None:
    assert cut(root, "--rows", "4") == 0
    assert cut(root, "--rows", "4") == 1
    assert "is there already; another --version" in capsys.readouterr().err
