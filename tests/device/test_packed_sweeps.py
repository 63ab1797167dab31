"""Sweeps whose jobs share a GPU by what their siblings reported, in real processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
from support.bench import Bench, Gpus, wait_until
from support.launching import GPUS, WARM, choices

from autocl_sweeper.cli.show import facts
from autocl_sweeper.cli.status import text as status_text
from autocl_sweeper.device.leases import LeaseFolder
from autocl_sweeper.overview import look
from autocl_sweeper.page.data import data

PACKED = (*WARM, "hydra.launcher.jobs_per_device=4")
RESERVED = 21_525  # of a small one: 20000 and 500 of context, and a twentieth
TOTAL = 81_559


@pytest.fixture
def bench(benches: Callable[..., Bench], gpus: Gpus) -> Bench:
    found = gpus.seen_by(benches("packed"))
    found.environment |= {
        "CUDA_VISIBLE_DEVICES": "2",
        "PEAKS": json.dumps({"small": 20_000, "large": 50_000}),
    }
    return found


def reservations(bench: Bench) -> list[tuple[int, Any, Any]]:
    return [
        (e["trial"], e.get("reserved_mib"), e.get("reserved_by")) for e in bench.events("running")
    ]


def most_reserved(bench: Bench) -> int:
    """MiB reserved on the device at any time, as the jobs learned it; one alone has all."""
    running: dict[int, int] = {}
    most = 0
    for event in bench.ledger():
        if event["event"] == "start":
            running[event["pid"]] = int(event["MIB"] or TOTAL)
        else:
            running.pop(event["pid"])
        most = max(most, sum(running.values()))
    return most


def test_siblings_share_a_gpu_by_what_the_first_one_reported_and_resume_reserves_the_same(
    bench: Bench,
) -> None:
    bench.environment["HOLDS"] = json.dumps([2, 3, 4])
    killed = bench.start_held(4, *PACKED, choices(5))
    wait_until(lambda: len(bench.events("running")) == 4, "they are in the journal")
    said = status_text(look(bench.sweep))
    assert f"trial 1 on GPU-00000002: {RESERVED} MiB reserved (reported)" in said
    bench.kill(killed)
    wait_until(bench.nothing_is_left, "its jobs end, and their reservations with them")
    there = LeaseFolder(bench.leases).look(GPUS[2])
    assert there is not None and there.claims == []
    first = [(0, None, "unknown"), *((n, RESERVED, "reported") for n in (1, 2, 3))]
    assert reservations(bench) == first
    bench.hold.unlink()
    bench.run(*PACKED, choices(5))
    again = reservations(bench)[4:]
    assert sorted(again) == [(n, RESERVED, "reported") for n in (1, 2, 3, 4)]
    assert {event["state"] for event in bench.finished().values()} == {"COMPLETE"}
    sweep = look(bench.sweep)
    shown = facts(sweep, sweep.history[4])
    assert (shown["reserved_mib"], shown["reserved_by"]) == (RESERVED, "reported")
    assert any(
        name.endswith(f", {RESERVED} MiB reserved (reported)") for name in data(sweep)["devices"]
    )
    first_job, *others = bench.ledger("start")
    assert (first_job["MIB"], first_job["FRACTION"]) == (None, None), "it had the GPU to itself"
    share = f"{(RESERVED - 500) / TOTAL:.4f}"
    assert {(job["MIB"], job["FRACTION"]) for job in others} == {(str(RESERVED), share)}
    assert bench.nothing_is_left()


def test_kinds_of_jobs_that_differ_in_memory_never_reserve_more_than_the_gpu_has(
    bench: Bench,
) -> None:
    bench.run(*PACKED, choices(4), "model=small,large")
    assert len(bench.finished()) == 8
    assert most_reserved(bench) <= TOTAL
    by_model: dict[str, list[Any]] = {"small": [], "large": []}
    for job in bench.ledger("start"):
        by_model[job["model"]].append(job["MIB"])
    # The first of each kind is alone; the others know.
    assert by_model["small"].count(None) == by_model["large"].count(None) == 1
    assert {*by_model["small"]} == {None, str(RESERVED)}
    assert {*by_model["large"]} == {None, "53025"}


def test_who_runs_out_of_memory_beside_others_runs_once_more_alone_and_its_like_do_too(
    bench: Bench,
) -> None:
    bench.run(*PACKED, choices(3), "model=large", "memory.budget_gib=30")
    failed = bench.events("attempt_failed")
    # Two have room beside each other; the third comes when it is known that they had too little.
    assert {event["trial"] for event in failed} <= {0, 1} and 1 <= len(failed) <= 2
    assert {(event["cause"], event["lost"]) for event in failed} == {("device_memory", True)}
    assert {event["state"] for event in bench.finished().values()} == {"COMPLETE"}
    told = reservations(bench)
    assert told[0] == (0, 31 * 1024, "budget")
    assert [one for one in told if one[0] == 0][1:] == [(0, None, "alone")]
    assert told[-1] == (2, 53_025, "reported"), "by what one had that was alone"


@pytest.mark.parametrize("launcher", ["joblib", "submitit_slurm"])
def test_launchers_that_do_not_lease_devices_refuse_the_keys_of_packing(
    bench: Bench, launcher: str
) -> None:
    arguments = ("hydra/sweeper=autocl", f"hydra/launcher={launcher}", "lr=1")
    output = bench.run(*arguments, "hydra.launcher.jobs_per_device=2", status=1)
    assert "Could not override 'hydra.launcher.jobs_per_device'" in output
    assert bench.ledger() == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["memory.budget_gib=80"], "memory budget of 81920 MiB (memory.budget_gib) is more than"),
        (["hydra.launcher.memory_per_job_mib=81560"], "GPU-00000002 Fake H100 80GB: 81559 MiB\n"),
        (["hydra.launcher.memory_keys=[modle]"], "memory_keys has 'modle', which is no key"),
    ],
)  # fmt: skip
def test_what_can_never_fit_is_refused_before_any_job(
    bench: Bench, arguments: list[str], expected: str
) -> None:
    output = bench.run(*PACKED, "lr=1", *arguments, status=1)
    assert expected in output and "No job was started." in output
    assert bench.ledger() == [] and not bench.sweep.joinpath("journal.jsonl").exists()


@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")
@pytest.mark.slow
def test_on_a_ray_node_siblings_share_a_gpu_by_what_the_first_one_reported(bench: Bench) -> None:
    bench.environment["HOLDS"] = json.dumps([2, 3, 4])
    ray = ("hydra/sweeper=autocl", "hydra/launcher=ray", "hydra.launcher.address=local", "task=a")
    process = bench.start_held(4, *ray, "hydra.launcher.jobs_per_device=4", choices(5))
    wait_until(lambda: len(bench.events("running")) == 4, "they are in the journal")
    bench.release(process)
    first, *others = reservations(bench)
    assert first == (0, None, "unknown")
    assert sorted(others) == [(n, RESERVED, "reported") for n in (1, 2, 3, 4)]
    assert {job["MIB"] for job in bench.ledger("start")} == {None, str(RESERVED)}
