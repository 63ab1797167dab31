"""`python -m train.memory report`: tables and pictures from job folders and logs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support.records import ANY

from train.memory.__main__ import main
from train.memory.logs import read
from train.memory.pictures import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, ticks
from train.memory.records import Records

GIB = 2**30
ROOT = Path(__file__).parents[2]


def job(folder: Path, method: str, seconds: float, budget_gib: float | None = None) -> Path:
    """The folder of a job as train.py leaves it; 2 of 3 blocks while it collects, then 1."""
    (folder / ".hydra").mkdir(parents=True)
    budget = "" if budget_gib is None else f"  budget_gib: {budget_gib}\n"
    (folder / ".hydra" / "resolved.yaml").write_text(f"memory:\n  method: {method}\n{budget}")
    (folder / "all_results.json").write_text(json.dumps({"seconds_train": seconds}))
    if budget_gib is None:
        return folder
    (folder / "memory_model.json").write_text(
        json.dumps({"kinds": [0, 0, 0], "margin_bytes": 0.25 * GIB})
    )
    made = Records(folder)
    for i, (size, peak) in enumerate([(40, 1.0), (60, 1.5), (40, 2.5)]):
        made.add(
            replace(
                ANY,
                size=size,
                phase="plan" if i else "collect",
                blocks=(0,) if i else (0, 1),
                predicted_bytes=1.5 * GIB if i == 1 else 2.4 * GIB if i else None,
                peak_allocated_bytes=peak * GIB,
                peak_reserved_bytes=3.0 * GIB,
            )
        )
    made.flush()
    return folder


def test_a_table_has_peaks_misses_and_time_above_the_run_that_recomputes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        job(tmp_path / "plain", "none", 100.0),
        job(tmp_path / "full", "gc", 130.0),
        job(tmp_path / "planned", "plan", 105.0, budget_gib=2.0),
    ]
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "table.csv").open() as file:
        plain, full, planned = csv.DictReader(file)
    assert (plain["method"], full["method"], planned["method"]) == ("None", "GC", "DC")
    assert planned["batches"] == "3" and planned["sizes"] == "40-60" and planned["blocks"] == "3"
    assert (planned["peak_gib"], planned["reserved_gib"]) == ("2.5", "3.0")
    assert planned["over_budget"] == "1" and plain["over_budget"] == ""
    assert float(planned["recomputed"]) == pytest.approx(4 / 3)
    assert float(planned["error_percent"]) == pytest.approx(4.0)  # 2.4 for 2.5
    overheads = [float(row["overhead_percent"]) for row in (plain, full, planned)]
    assert overheads == pytest.approx([0.0, 30.0, 5.0])
    assert (tmp_path / "out" / "table.txt").read_text() in capsys.readouterr().out
    pictures = {path.stem for path in (tmp_path / "out").glob("*.png")}
    wanted = {f"{kind}_planned" for kind in ("memory", "sizes", "predicted", "share")}
    assert pictures == {*wanted, "overhead"}
    for path in (tmp_path / "out").glob("*.png"):
        with Image.open(path) as image:
            assert image.size == (WIDTH, HEIGHT)


def test_a_log_of_mimoses_scripts_is_reported_and_what_it_lacks_may_be_given(
    tmp_path: Path,
) -> None:
    lines = [
        "+ python run_swag.py --dynamic_checkpoint --memory_threshold 6 --memory_buffer 0.5",
        'shape_count={"40": 2, "64": 1}',
        f'memory_count={{"40": [{GIB}, {GIB}], "64": [{2 * GIB}]}}',
        "shape_order=[40, 64, 40]",
        "strategy: {40: [], 64: [0, 1, 2]}",
        f"max_memory_used={3 * GIB}",
    ]
    log = tmp_path / "swag.log"
    log.write_text("\n".join(lines) + "\n")
    found = read(log)
    assert (found.method, found.budget_gib, found.margin_gib) == ("DC", 6.0, 0.5)
    assert found.recomputed == (0, 3, 0) and found.blocks is None
    bare = tmp_path / "bare.log"
    bare.write_text("\n".join(lines[1:]) + "\n")
    given = ["--method", "DCS", "--budget-gib", "5"]
    assert main(["report", str(log), str(bare), *given, "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "table.csv").open() as file:
        own, other = csv.DictReader(file)
    assert (own["method"], own["budget_gib"], own["peak_gib"]) == ("DC", "6.0", "2.0")
    assert (other["method"], other["budget_gib"]) == ("DCS", "5.0")
    assert {path.stem for path in (tmp_path / "out").glob("share*.png")} == {
        "share_swag",
        "share_bare",
    }


def test_the_command_ends_with_the_place_of_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cut.log").write_text("shape_order=[1, 2\n")
    ran = subprocess.run(
        [sys.executable, "-m", "train.memory", "report", str(tmp_path / "cut.log")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 2 and "cut.log:1: cannot be read, it is cut off" in ran.stderr
    assert not ran.stdout and "Traceback" not in ran.stderr


def test_ticks_are_round_numbers_around_all_values() -> None:
    assert ticks(0, 6) == [0, 1, 2, 3, 4, 5, 6]
    assert ticks(41, 142) == [40, 60, 80, 100, 120, 140, 160]
    assert ticks(0, 0.03) == [0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03]
    assert ticks(-7, 7) == [-10, -5, 0, 5, 10]
    assert ticks(3, 3)[0] <= 3 < ticks(3, 3)[-1]


def test_a_point_and_a_level_stand_where_the_axes_say(tmp_path: Path) -> None:
    chart = Chart("title", "x", "y")
    chart.add("points", [0, 6], [1, 5])
    chart.level("cap", 5.5)
    chart.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        middle = (HEIGHT - TOP - BOTTOM) / 6  # of axes from 0 to 6
        at = [(LEFT, HEIGHT - BOTTOM - middle), (WIDTH - RIGHT, TOP + middle)]
        wanted = tuple(int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
        assert [image.getpixel((int(x), round(y))) for x, y in at] == [wanted] * 2
        assert image.getpixel((LEFT + 3, round(TOP + middle / 2))) == (0xCC, 0, 0)
