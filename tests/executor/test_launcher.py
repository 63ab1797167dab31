"""hydra/launcher=gpu with real processes and, for GPUs, a fake NVIDIA library."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.bench import Bench, Gpus, wait_until
from support.fake_nvml import build as fake
from support.launching import GPUS, OURS, WARM, choices


def devices(bench: Bench) -> list[str]:
    """What each job had in CUDA_VISIBLE_DEVICES before its first instruction, in order of start."""
    return [event["devices"] for event in bench.ledger("start")]


def held(bench: Bench) -> list[set[str]]:
    """After each line of the ledger, the devices in use; fails when one is in use twice."""
    in_use: set[str] = set()
    states = []
    for event in bench.ledger():
        for device in event["devices"].split(","):
            if event["event"] == "start":
                assert device not in in_use, f"{device} has two jobs: {event}"
                in_use.add(device)
            else:
                in_use.remove(device)
        states.append(set(in_use))
    return states


def ends_well(bench: Bench, process: subprocess.Popen[bytes]) -> None:
    bench.release(process)
    assert {event["state"] for event in bench.finished().values()} == {"COMPLETE"}
    assert bench.nothing_is_left()


def test_jobs_fill_all_gpus_and_each_sees_one_from_its_very_start(on_gpus: Bench) -> None:
    process = on_gpus.start_held(8, *OURS, choices(9))
    assert sorted(devices(on_gpus)) == GPUS
    assert sorted(on_gpus.leased()) == GPUS
    ends_well(on_gpus, process)
    assert devices(on_gpus)[8] in GPUS
    held(on_gpus)


def test_a_parents_mask_is_the_pool_of_which_max_devices_takes_the_first(on_gpus: Bench) -> None:
    mask = f"6,{GPUS[3]},1"
    on_gpus.run(*WARM, choices(4), "hydra.launcher.max_devices=2", CUDA_VISIBLE_DEVICES=mask)
    assert set(devices(on_gpus)) == {GPUS[6], GPUS[3]}
    assert max(map(len, held(on_gpus))) <= 2


def test_a_job_of_two_devices_sees_two(on_gpus: Bench) -> None:
    process = on_gpus.start_held(4, *WARM, choices(5), "hydra.launcher.devices_per_job=2")
    pairs = [pair.split(",") for pair in devices(on_gpus)]
    assert [len(pair) for pair in pairs] == [2, 2, 2, 2]
    assert sorted(gpu for pair in pairs for gpu in pair) == GPUS
    ends_well(on_gpus, process)
    held(on_gpus)


def test_a_device_is_refilled_while_its_neighbour_still_runs(on_gpus: Bench) -> None:
    """No barrier inside a stage: one long job, and all others go through the other device."""
    process = on_gpus.start_held(1, *WARM, choices(5), "hydra.launcher.max_devices=2", HOLDS="[1]")
    wait_until(lambda: len(on_gpus.ledger("end")) == 4, "the other jobs ended")
    assert {event["trial"] for event in on_gpus.ledger("end")} == {1, 2, 3, 4}
    ends_well(on_gpus, process)
    long_one = {e["devices"] for e in on_gpus.ledger("start") if e["trial"] == 0}
    others = {e["devices"] for e in on_gpus.ledger("start") if e["trial"] != 0}
    assert (len(long_one), len(others), len(long_one | others)) == (1, 1, 2)


def test_two_sweeps_at_once_never_share_a_device(
    benches: Callable[..., Bench], gpus: Gpus, tmp_path: Path
) -> None:
    both = [gpus.seen_by(benches("chain", name)) for name in ("one", "other")]
    for bench in both:
        bench.leases = tmp_path / "leases-of-both"
        bench.environment |= {
            "AUTOCL_LEASE_DIR": str(bench.leases),
            "LEDGER": str(both[0].ledger_file),
        }
    mask = ",".join(GPUS[:3])
    running = [
        bench.start(*WARM, choices(6), CUDA_VISIBLE_DEVICES=mask, LASTS_S="0.1") for bench in both
    ]
    for bench, process in zip(both, running, strict=True):
        assert process.wait(300) == 0, bench.printed(process)
        assert len(bench.finished()) == 6
    assert len(both[0].ledger("end")) == 12
    held(both[0])
    assert both[0].nothing_is_left()


def test_a_device_counts_as_free_when_its_memory_is(on_gpus: Bench, gpus: Gpus) -> None:
    """The figures change while the sweep runs, as they do when others come and go."""
    for number in range(1, 8):
        gpus.change(number, free_mib=10_000)
    process = on_gpus.start_held(1, *WARM, choices(3), "hydra.launcher.free_memory=0.5")
    assert devices(on_gpus) == GPUS[:1]
    gpus.change(5, free_mib=60_000)
    wait_until(lambda: len(on_gpus.ledger("start")) == 2, "a job on the device that became free")
    gpus.change(5, free_mib=0)
    assert devices(on_gpus) == [GPUS[0], GPUS[5]]
    ends_well(on_gpus, process)
    assert devices(on_gpus)[2] == GPUS[0]


def test_a_sweep_waits_for_a_device_and_says_for_which(on_gpus: Bench, gpus: Gpus) -> None:
    for number in range(8):
        gpus.change(number, pids=[1])
    process = on_gpus.start(*OURS, "lr=1")
    wait_until(lambda: "waiting for a device" in on_gpus.printed(process), "it says so")
    assert "foreign process" in on_gpus.printed(process)
    assert on_gpus.ledger() == []
    gpus.change(7, pids=[])
    on_gpus.finish(process)
    assert devices(on_gpus) == GPUS[7:]


def test_a_device_that_is_lost_costs_its_job_an_attempt_and_the_sweep_nothing(
    on_gpus: Bench, gpus: Gpus
) -> None:
    process = on_gpus.start_held(2, *WARM, choices(4), "hydra.launcher.max_devices=2")
    gpus.change(0, error=fake.GPU_IS_LOST)
    (event,) = wait_until(lambda: on_gpus.events("attempt_failed"), "its job is ended")
    assert (event["cause"], event["lost"]) == ("device", True)
    assert event["reason"] == "its device is lost: NVML: GPU is lost"
    ends_well(on_gpus, process)
    assert devices(on_gpus)[2:] == [GPUS[1]] * 3
    told = [line for line in on_gpus.printed(process).splitlines() if "out of service" in line]
    assert len(told) == 1 and "GPU-00000000 is out of service for this sweep" in told[0]


def test_cpu_slots_bound_the_jobs_side_by_side(chain: Bench) -> None:
    process = chain.start_held(3, *WARM, choices(5), "hydra.launcher.cpu_slots=3")
    assert sorted(chain.leased()) == ["cpu-0", "cpu-1", "cpu-2"]
    assert len(chain.ledger("start")) == 3
    ends_well(chain, process)


def test_hidden_gpus_stay_hidden_from_jobs_on_cpu_slots(on_gpus: Bench) -> None:
    on_gpus.run(*OURS, "lr=1", CUDA_VISIBLE_DEVICES="")
    assert devices(on_gpus) == [""]


WAYS = ("print", "print to stderr", "write to 1", "write to 2", "a child", "a shell")
LINES = [f"by {way}" for way in WAYS]


@pytest.mark.parametrize(
    "folder, arguments", [("1_a/0", OURS), ("0", ("hydra/launcher=gpu", "task=a"))]
)
def test_all_output_of_a_job_is_in_its_log_and_none_of_it_elsewhere(
    benches: Callable[..., Bench], folder: str, arguments: Sequence[str]
) -> None:
    bench = benches("noisy")
    output = bench.run(*arguments, "lr=1")
    log = (bench.sweep / folder / "job.log").read_text().splitlines()
    assert not set(LINES) - set(log)
    assert "stdin has: ''" in log
    assert not any(line in output for line in LINES)


def test_job_returns_come_in_the_order_of_the_jobs(chain: Bench) -> None:
    """Hydra's basic sweeper on our launcher: the first job ends last."""
    process = chain.start_held(
        1, "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2", "lr=1,2,3",
        "hydra.launcher.warm=true", "+hydra.callbacks.order._target_=callbacks.Returns", HOLDS="[1]",
    )  # fmt: skip
    wait_until(lambda: len(chain.ledger("end")) == 2, "the others ended")
    output = chain.release(process)
    assert chain.ledger("end")[-1]["trial"] == 0
    returned = re.findall(r"returned (.*)", output)
    assert returned == ["[(['lr=1'], 1.0), (['lr=2'], 2.0), (['lr=3'], 3.0)]"]


def test_hydras_own_jobs_numbers_and_folders_are_kept(chain: Bench) -> None:
    chain.run("hydra/launcher=gpu", "lr=1,2", "hydra.sweep.subdir=${hydra.job.override_dirname}")
    assert {path.parent.name for path in chain.sweep.glob("*/job.log")} == {"lr=1", "lr=2"}
    assert {event["trial"] for event in chain.ledger("start")} == {0, 1}
    assert not (chain.sweep / ".autocl").exists()


@pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_optuna_sweeper") is None,
    reason="hydra-optuna-sweeper for Hydra 1.3 does not install beside a current Optuna",
)
def test_hydra_optuna_sweeper_gets_its_batches_run_one_process_a_job(chain: Bench) -> None:
    chain.run(
        "hydra/sweeper=optuna", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2",
        "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "hydra.sweeper.direction=maximize",
        "task=a", "lr=interval(0.1,0.9)",
    )  # fmt: skip
    started = chain.ledger("start")
    assert len({event["pid"] for event in started}) == 4
    # The score of a job without a parent is its learning rate.
    assert chain.results()["best_value"] == pytest.approx(max(event["lr"] for event in started))
    assert all((chain.sweep / str(number) / "job.log").exists() for number in range(4))
