"""What each kind of start was worth in a sweep: the table of `python -m train.starts`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from train.starts import main


def put(root: Path, rows: list[dict[str, Any]]) -> None:
    """The files of a sweep that the table is made of."""
    with (root / "trials.csv").open("w", newline="") as file:
        names = ("state", "task", "stage", "folder", "extra", "score", "seconds", "seconds_merge")
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    (root / "optimization_results.yaml").write_text("direction: maximize\n")
    for row in rows:
        job = root / row["folder"]
        (job / ".hydra").mkdir(parents=True)
        (job / ".hydra/config.yaml").write_text(yaml.safe_dump({"merge": row["merge"]}))
        log = [{"step": step, "eval_score": score} for step, score in row["dev"].items()]
        state = json.dumps({"log_history": [{"step": 1, "loss": 2.0}, *log]})
        (job / "trainer_state.json").write_text(state)


def row(number: int, merge: dict[str, Any], dev: dict[int, float], **more: Any) -> dict[str, Any]:
    plain = {"state": "COMPLETE", "task": "b", "stage": 2, "folder": f"2_b/{number}", "extra": 0}
    return {
        **plain,
        "merge": merge,
        "dev": dev,
        "score": [*dev.values()][-1],
        "seconds": 3.0,
        **more,
    }


def test_starts_are_compared_by_their_best_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = {"init": ["random", "loss"], "extra_parents": 2}
    put(
        tmp_path,
        [
            row(1, {}, {0: 0.5, 50: 0.75}, task="a", stage=1),  # one start: nothing to compare
            row(2, extra, {0: 0.25, 50: 0.5, 200: 0.75}),
            row(3, extra, {0: 0.25, 50: 0.25, 200: 0.5}),
            row(4, extra, {0: 0.125, 50: 0.5, 200: 0.5}, extra=1),
            row(5, extra, {0: 0.625, 50: 0.75, 200: 0.875}, extra=2, seconds_merge=1.5),
            row(6, extra, {0: 0.0}, extra=2, state="FAIL"),
        ],
    )
    assert main([str(tmp_path)]) == 0
    last, random, loss = json.loads((tmp_path / "starts.json").read_text())
    assert (last["start"], last["trials"], last["seconds"]) == ("last", 2, 6.0)
    assert last["after"] == {"0": 0.25, "50": 0.5, "200": 0.75} and last["updates_to_last"] == 200
    assert (random["updates_to_last"], random["forward_transfer"]) == (None, 0.0)
    assert (loss["updates_to_last"], loss["forward_transfer"]) == (50, 0.5)
    assert (loss["end"], loss["seconds_merge"]) == (0.875, 1.5)
    printed = capsys.readouterr().out.splitlines()
    assert printed[3].split() == [
        *("2", "b", "loss", "1", "0.625", "0.750", "0.875", "0.875", "50", "0.500", "3.0", "1.5"),
    ]


def test_a_start_that_is_a_setting_is_told_by_its_value(tmp_path: Path) -> None:
    put(
        tmp_path,
        [row(0, {"init": "last"}, {0: 0.5}), row(1, {"init": "average"}, {0: 0.25})],
    )
    assert main([str(tmp_path)]) == 0
    assert [one["start"] for one in json.loads((tmp_path / "starts.json").read_text())] == [
        "last", "average",
    ]  # fmt: skip


def test_a_folder_that_is_no_sweep_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "holds no sweep of hydra/sweeper=autocl" in capsys.readouterr().err
