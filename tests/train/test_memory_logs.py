"""Logs of Mimose's scripts and records of our jobs, read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.records import ANY

from train.memory.logs import LogError, from_log, read
from train.memory.records import Records

LOG = """\
+ python run_swag.py --do_train --per_device_train_batch_size 16 --dynamic_checkpoint --memory_threshold 6
  0%|          | 0/4 [00:00<?, ?it/s]\r100%|##########| 4/4 [1:02:59<00:00,  1.2it/s]
100%|##########| 9/9 [00:07<00:00,  1.2it/s]
[INFO] shape_count={40: 1, 64: 3}
memory_count={"40": [100], "64": [200, 210, 205]}
rank0: shape_order=[64, 40, 64, 64]
strategy: {64: [0, 1, 2], 40: []}
max_memory_used=4096
"""


def test_a_log_is_read_behind_any_prefix_and_the_time_is_that_of_the_trainings_own_bar() -> None:
    found = from_log(LOG, "a.log")
    assert found.shape_count == {40: 1, 64: 3}
    assert found.memory_count == {40: (100.0,), 64: (200.0, 210.0, 205.0)}
    assert found.shape_order == (64, 40, 64, 64) and found.max_memory_used == 4096
    assert found.strategy == {64: (0, 1, 2), 40: ()}
    assert found.seconds == 3779  # not the 7 s of the evaluation behind it
    assert (found.method, found.budget_gib) == ("DC", 6.0)


def test_of_two_trainings_in_one_log_the_later_one_is_read() -> None:
    later = LOG.replace("1:02:59", "38:48").replace("--dynamic_checkpoint ", "").replace("205", "7")
    found = from_log(LOG + later, "a.log")
    assert (found.seconds, found.method) == (2328, "None")
    assert found.memory_count[64] == (200.0, 210.0, 7.0)


def test_a_line_that_is_cut_off_is_an_error_with_its_number() -> None:
    with pytest.raises(LogError, match=r"a\.log:5: cannot be read, it is cut off") as caught:
        from_log(LOG[: LOG.index("205]}")], "a.log")
    assert "memory_count=" in str(caught.value)
    with pytest.raises(LogError, match="holds none of the lines"):
        from_log("nothing\n", "a.log")


def test_overheads_of_a_detection_log_are_kept() -> None:
    text = "shape_memory={100: [5]}\ncollector_overhead=[0.5, 0.25]\ncollector_overhead_sum=0.75\n"
    found = from_log(text + "training time: 12.5\n", "a.log")
    assert found.memory_count == {100: (5.0,)} and found.shape_count == {100: 1}
    assert found.seconds == 12.5
    assert found.overheads == {
        "collector_overhead": [0.5, 0.25],
        "collector_overhead_sum": 0.75,
        "training time": 12.5,
    }


@pytest.mark.parametrize(
    "options, method",
    [
        ("", "None"),
        ("--gradient_checkpointing True", "GC"),
        ("--dynamic_checkpoint --static_checkpoint", "DCS"),
        ("--dynamic_checkpoint False", "None"),
        ("--prev_checkpoint [0,1]", "PC"),
    ],
)
def test_the_method_is_that_of_the_command_line(options: str, method: str) -> None:
    assert (
        from_log(f"python run_qa.py --do_train {options}\nshape_order=[1]\n", "a").method == method
    )


def records(folder: Path) -> Records:
    made = Records(folder)
    for i, size in enumerate([64, 40, 64]):
        made.add(
            replace(
                ANY,
                size=size,
                phase="collect" if i == 0 else "plan",
                blocks=(0,) * (size == 64),
                predicted_bytes=None if i == 0 else 90.0,
                peak_allocated_bytes=100.0 + i,
                peak_reserved_bytes=200.0 + i,
                infeasible=i == 2,
            )
        )
    return made


def test_records_and_the_lines_of_the_log_say_the_same(tmp_path: Path) -> None:
    made = records(tmp_path)
    made.flush()
    ours = read(tmp_path)
    theirs = from_log("\n".join(f"INFO {line}" for line in made.mimose_lines()), "job.log")
    assert ours.shape_count == theirs.shape_count == {64: 2, 40: 1}
    assert ours.memory_count == theirs.memory_count == {64: (100.0, 102.0), 40: (101.0,)}
    assert ours.shape_order == theirs.shape_order == (64, 40, 64)
    assert ours.strategy == theirs.strategy == {40: (), 64: (0,)}
    assert ours.max_memory_used == theirs.max_memory_used == 202.0
    assert ours.seconds is None  # only the whole training has a time


def test_a_cut_record_and_a_folder_without_records_are_errors_with_their_place(
    tmp_path: Path,
) -> None:
    with pytest.raises(LogError, match=r"Give a job folder with memory_records\.jsonl"):
        read(tmp_path)
    made = records(tmp_path)
    made.flush()
    path = tmp_path / "memory_records.jsonl"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(LogError, match=r"memory_records\.jsonl:3: cannot be read"):
        read(tmp_path)


def test_a_job_returns_peaks_in_mib_and_how_many_steps_did_not_fit(tmp_path: Path) -> None:
    numbers = records(tmp_path).numbers(2.0**30, allocated=102.0, reserved=202.0)
    assert numbers["budget_gib"] == 1.0 and numbers["infeasible_steps"] == 1
    assert numbers["peak_allocated_mib"] == 102 / 2**20
    assert numbers["static_mib"] == 10 / 2**20
