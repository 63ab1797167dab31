"""What a job reserves: the first source that has a figure, and the figure by hand."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocl_sweeper.device.needs import Siblings, budget_of
from autocl_sweeper.device.predicted import read_model
from autocl_sweeper.device.reservations import Reservation, Reservations, Used, used_by
from autocl_sweeper.types import DeviceUse, Job, Need, Outcome, State

MIB = 2**20
PLANNED = Need("batch=8 model=base", "model=base", batch=8.0, budget_mib=6144, capped=True)

# One block kind of two blocks; bytes per token of a batch in MiB: 2 kept or 0.5 stashed by a block,
# 3 outside; 10 MiB shared by recomputed blocks.
MODEL = {
    "kinds": [0, 0],
    "fits": {
        "kept 0": {"coefficients": [0.0, 2.0 * MIB, 0.0, 0.0]},
        "stash 0": {"coefficients": [0.0, 0.5 * MIB, 0.0, 0.0]},
        "shared": {"coefficients": [0.0, 0.0, 0.0, 10.0 * MIB]},
        "outside": {"coefficients": [0.0, 3.0 * MIB, 0.0, 0.0], "high": [80000.0, 800.0, 8.0, 1.0]},
    },
    "margin_bytes": 100 * MIB,
}


def finished(**numbers: float) -> Outcome:
    return Outcome(State.COMPLETE, numbers=numbers, device=DeviceUse(("GPU-0",), None, gpu="A100"))


def test_the_sources_come_in_their_order_each_with_its_margin(tmp_path: Path) -> None:
    found = Reservations()
    free = replace(PLANNED, budget_mib=None, capped=False)
    assert found.of(free, 1) == Reservation(None, "unknown")
    assert found.of(free, 1, declared_mib=9000) == Reservation(9000, "declared")
    # Another micro-batch: 8 of 100 tokens became 16, so 1600 x (3 + 2 x 2) MiB, 500 static, and CUDA.
    (tmp_path / "memory_model.json").write_text(json.dumps(MODEL))
    like = Need("batch=8 model=base", "model=base", batch=8.0)
    used = used_by(0, 1, like, finished(static_mib=500.0), tmp_path)
    assert used is not None
    found.learn(used)
    larger = Need("batch=16 model=base", "model=base", batch=16.0)
    predicted = math.ceil((500 + 1600 * 7 + 1024) * 1.15)
    assert found.of(larger, 1, declared_mib=9000) == Reservation(predicted, "model")
    assert found.of(Need("model=large", "model=large"), 1).source == "unknown"
    # A budget that the job holds to, and the context until one is measured.
    assert found.of(PLANNED, 1, declared_mib=9000) == Reservation(6144 + 1024, "budget")
    other = Used(1, 1, Need("else"), "A100", context_mib=480.0)
    found.learn(other)
    assert found.of(PLANNED, 1) == Reservation(6144 + 480, "budget", 480)
    # What one of its own kind reported comes first.
    said = used_by(2, 1, PLANNED, finished(peak_reserved_mib=5000.0, context_mib=450.0), None)
    assert said is not None
    found.learn(said)
    assert found.of(PLANNED, 1) == Reservation(math.ceil(5450 * 1.05), "reported", 480)
    assert found.of(PLANNED, 1, "H100").source == "budget", "another model of GPU"


def test_a_job_that_plans_without_a_cap_is_predicted_under_its_plan(tmp_path: Path) -> None:
    (tmp_path / "memory_model.json").write_text(json.dumps(MODEL))
    model = read_model(tmp_path)
    assert model is not None
    # 800 tokens: 5600 MiB with both blocks kept, 2400 + 10 + 400 + 1600 with one recomputed.
    assert model.peak_mib() == 5600
    assert model.peak_mib(budget_mib=5701) == 5600  # 100 of it are the margin
    assert model.peak_mib(budget_mib=5699) == 4410
    assert model.peak_mib(budget_mib=1000) == 4410  # the least there is
    # Sequences of 100 tokens: a limit of 100 cut them, one of 512 did not.
    assert model.peak_mib(limits=(100, 200)) == 11200
    assert model.peak_mib(limits=(512, 1024)) == 5600
    assert model.peak_mib(limits=(512, 50)) == 2800


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kinds": [0]}', json.dumps({**MODEL, "margin_bytes": None}),
             json.dumps({**MODEL, "kinds": [1]})]
)  # fmt: skip
def test_a_memory_model_of_another_kind_predicts_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "memory_model.json").write_text(text)
    assert read_model(tmp_path) is None


@pytest.mark.parametrize(
    ("params", "keys", "expected"),
    [
        ({"lr": 0.1, "seed": 3, "trainer.weight_decay": 0.0}, None, ""),
        ({"+model": "base", "trainer.batch_size": 8}, None, 'model="base" trainer.batch_size=8'),
        ({"model": "base", "width": 9}, ["model"], 'model="base"'),
        ({"model.width": 9, "lr": 1}, ["width"], "model.width=9"),
        ({"b": 1, "a": [2, None]}, None, "a=[2, null] b=1"),
    ],
)
def test_the_key_is_made_of_the_searched_settings_that_decide_memory(
    params: dict[str, Any], keys: list[str] | None, expected: str
) -> None:
    assert Siblings(keys).known(Job(0, ("x=1",), params=params)).key == expected


def test_under_another_sweeper_the_overrides_tell_a_job_from_its_siblings() -> None:
    job = Job(0, ("hydra.sweep.dir=/x", "+model=base", "lr=1e-3", "batch_size=8"))
    need = Siblings().known(job)
    assert (need.key, need.family, need.batch) == ('batch_size=8.0 model="base"', 'model="base"', 8)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ({}, (None, False)),
        ({"budget_gib": None}, (None, False)),
        ({"budget_gib": 6}, (6144, True)),
        ({"budget_gib": 0.5, "hard_cap": False}, (512, False)),
        ({"budget_mib": 700, "hard_cap": True}, (700, True)),
        ({"memory_threshold": 8}, (8192, True)),
        ({"budget_gib": "much"}, (None, False)),
        ({"budget_gib": float("inf")}, (None, False)),
    ],
)
def test_a_budget_is_read_from_the_section_memory(
    memory: dict[str, Any], expected: tuple[int | None, bool]
) -> None:
    assert budget_of(memory) == expected


def test_after_a_shortage_the_kind_runs_alone_until_that_job_has_shown_its_peak() -> None:
    found = Reservations()
    found.learn(Used(0, 1, PLANNED, "", reserved_mib=100.0, context_mib=0.0))
    found.ran_out(7, PLANNED)
    assert found.of(PLANNED, 1).alone
    assert not found.of(Need("other"), 1).alone
    found.learn(Used(8, 1, PLANNED, "", reserved_mib=200.0, context_mib=0.0))
    assert found.of(PLANNED, 1).alone, "another one had enough"
    found.learn(Used(7, 1, PLANNED, "", reserved_mib=300.0, context_mib=0.0))
    assert found.of(PLANNED, 1).mib == 315


def test_without_a_reported_context_it_is_what_the_driver_counted_on_top() -> None:
    found = Reservations()
    found.learn(Used(0, 1, PLANNED, "", sampled_mib=5600, reserved_mib=5000.0))
    assert found.of(PLANNED, 1).mib == math.ceil(5600 * 1.05)
    found.learn(Used(1, 1, Need("x"), "", reserved_mib=5000.0))
    assert found.of(Need("x"), 1).mib == math.ceil(6024 * 1.05)


def test_the_lease_less_the_context_is_the_share_of_a_job() -> None:
    assert Reservation(9216, "declared", 1024).share_of(81920) == 0.1
    assert Reservation(99_999, "sampled", 0).share_of(81920) == 1.0
    assert Reservation(1000, "declared", 1024).share_of(81920) is None
    assert Reservation(None, "unknown").share_of(81920) is None
    assert Reservation(9216, "declared").share_of(None) is None


uses = st.builds(
    Used,
    number=st.integers(0, 5),
    stage=st.integers(1, 2),
    need=st.sampled_from([PLANNED, Need(), Need("a", "a")]),
    gpu=st.sampled_from(["", "A100", "H100"]),
    sampled_mib=st.none() | st.integers(0, 999),
    reserved_mib=st.none() | st.floats(1, 999),
    context_mib=st.none() | st.floats(1, 99),
)


@given(st.lists(uses, max_size=8), st.randoms())
def test_what_was_learned_does_not_depend_on_the_order_nor_on_the_way_it_came(
    learned: list[Used], random: Any
) -> None:
    one, other = Reservations(), Reservations()
    for found in (one, other):
        found.ran_out(3, Need("a", "a"))
        for used in learned:
            found.learn(Used.from_json(json.loads(json.dumps(used.to_json()))))
        random.shuffle(learned)
    for need in (PLANNED, Need(), Need("a", "a")):
        for gpu in ("", "A100", "H100"):
            assert one.of(need, 1, gpu, 50) == other.of(need, 1, gpu, 50)


def test_a_model_survives_the_way_to_another_machine(tmp_path: Path) -> None:
    (tmp_path / "memory_model.json").write_text(json.dumps(MODEL))
    used = used_by(0, 1, PLANNED, finished(static_mib=5.0), tmp_path)
    assert used is not None and used.model is not None
    assert Used.from_json(json.loads(json.dumps(used.to_json()))) == used
    assert used_by(0, 1, PLANNED, Outcome(State.FAIL), Path(os.devnull)) is None
