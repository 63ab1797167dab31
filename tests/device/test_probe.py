"""Devices are read through the real pynvml from a fake driver."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_nvml import build as fake
from support.machine import EIGHT, UUIDS, Machine, clean_environment

from autocl_sweeper.device.probe import CpuProbe, NvmlProbe, short
from autocl_sweeper.errors import ConfigurationError, DeviceError


@pytest.fixture
def machine(library: Path, tmp_path: Path) -> Machine:
    return Machine(library, tmp_path)


# -- what NVML shows ------------------------------------------------------------------------------


def test_eight_gpus_are_seen_with_uuid_name_memory_and_processes(machine: Machine) -> None:
    machine.show([replace(EIGHT[0], pids=(11, 12)), *EIGHT[1:]])
    seen = machine.run("say([vars(device) for device in find_probe(None, os.environ).devices()])")
    assert seen == [
        {
            "id": gpu.uuid,
            "name": gpu.name,
            "total_mib": 81559,
            "free_mib": 81000 + number,
            "processes": {"11": None, "12": None} if number == 0 else {},
            "problem": "",
            "error": 0,
            "utilisation": None,
            "temperature_c": None,
        }
        for number, gpu in enumerate(EIGHT)
    ]


def test_a_job_gets_its_devices_by_uuid(machine: Machine) -> None:
    said = machine.run(f"say(find_probe(None, os.environ).environment({UUIDS[2:4]}))")
    assert said == {
        "CUDA_VISIBLE_DEVICES": f"{UUIDS[2]},{UUIDS[3]}",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def test_a_parents_mask_is_the_pool(machine: Machine) -> None:
    masks = {
        "0": [0],
        "5,3": [5, 3],  # CUDA counts in the order of the list, so the first is device 5
        " 1 , 2,": [1, 2],
        "4,-1,5": [4],  # -1 ends a list
        UUIDS[6]: [6],
        "GPU-00000007": [7],
        f"2,{UUIDS[1]},GPU-00000004-aaaa": [2, 1, 4],
    }
    found = dict(zip(masks, machine.ids_under(*masks), strict=True))
    assert found == {mask: [UUIDS[n] for n in numbers] for mask, numbers in masks.items()}


def test_a_mask_that_does_not_fit_is_an_error_that_lists_what_exists(machine: Machine) -> None:
    masks = {
        "8": "'8' is not a device here",
        "0,GPU-12345678,1": "'GPU-12345678' is not a device here",
        "GPU-0000000": "'GPU-0000000' fits several devices",
        "0,GPU-00000000": "'GPU-00000000' comes twice",
        "0,,1": "'' is not a device here",
        "all": "'all' is not a device here",
        "-2": "'-2' is not a device here",
    }
    answers = machine.ids_under(*masks)
    for (visible, message), (kind, text) in zip(masks.items(), answers, strict=True):
        assert kind == "DeviceError"
        assert f"CUDA_VISIBLE_DEVICES={visible}: {message}" in text
        assert all(f"{number}: {uuid}" in text for number, uuid in enumerate(UUIDS))


def test_hidden_gpus_mean_cpu_slots_whose_jobs_see_none_either(machine: Machine) -> None:
    answers = machine.run(
        "for mask in ('', '-1', 'NoDevFiles', ' '):\n"
        "    probe = find_probe(2, {'CUDA_VISIBLE_DEVICES': mask})\n"
        "    say([[d.id for d in probe.devices()], probe.environment(['cpu-0'])])"
    )
    for names, environment in answers:
        assert names == ["cpu-0", "cpu-1"]
        assert environment["CUDA_VISIBLE_DEVICES"] == ""


# Says what is logged when devices are looked for.
WARNINGS = (
    "import logging\nheard, log = [], logging.getLogger('autocl_sweeper.device.probe')\n"
    "log.handle = lambda record: heard.append(record.getMessage())\n"
    "find_probe(2, os.environ)\nsay(heard)"
)


def test_numbers_on_a_machine_of_several_models_come_with_a_warning(machine: Machine) -> None:
    machine.show([EIGHT[0], replace(EIGHT[1], name="Another Board")])
    assert len(machine.run(WARNINGS, CUDA_VISIBLE_DEVICES="1")) == 1
    assert machine.run(WARNINGS, CUDA_VISIBLE_DEVICES=UUIDS[1]) == []
    assert machine.run(WARNINGS, CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID") == []


def test_a_gpu_lost_while_we_watch_keeps_its_name_and_the_others_stay(machine: Machine) -> None:
    before, after, leased = machine.run(
        "probe, say_all = find_probe(None, os.environ), lambda: say(\n"
        "    [[d.id, d.name, d.problem] for d in probe.devices()])\n"
        "say_all()\n"
        "figures([replace(g, error=fake.GPU_IS_LOST) if n in (0, 3) else g\n"
        "    for n, g in enumerate(EIGHT)])\n"
        "say_all()\n"
        "say([l.device_id for l in lease_free(probe, LeaseFolder(), 6)])"
    )
    assert [problem for _, _, problem in before] == [""] * 8
    assert [(uuid, name) for uuid, name, _ in after] == [(g.uuid, g.name) for g in EIGHT]
    assert [n for n in range(8) if after[n][2]] == [0, 3]
    assert after[3][2] == "NVML: GPU is lost"
    assert leased == [uuid for n, uuid in enumerate(UUIDS) if n not in (0, 3)]


def test_a_gpu_lost_before_we_came_is_shown_and_refused(machine: Machine) -> None:
    machine.show([replace(EIGHT[0], error=fake.GPU_IS_LOST), EIGHT[1]])
    refusal = machine.run(
        "probe = find_probe(None, os.environ)\nsay(str(lease_free(probe, LeaseFolder(), 2)))"
    )
    assert "GPU number 0 NVML: GPU is lost" in refusal
    kind, text = machine.ids(CUDA_VISIBLE_DEVICES=UUIDS[0])
    assert kind == "DeviceError" and "GPU is lost" in text


def test_gpus_that_are_kept_from_us_are_not_counted(machine: Machine) -> None:
    machine.show([replace(gpu, error=fake.NO_PERMISSION) for gpu in EIGHT[:2]] + EIGHT[2:4])
    assert machine.ids() == UUIDS[2:4]
    assert machine.ids(CUDA_VISIBLE_DEVICES="0") == [UUIDS[2]]  # as CUDA counts inside Slurm
    machine.show([replace(gpu, error=fake.NO_PERMISSION) for gpu in EIGHT])
    assert machine.run("say(type(find_probe(1, os.environ)).__name__)") == "CpuProbe"


@pytest.mark.parametrize("without", [("MEMORY_V2",), ("MEMORY_V2", "PROCESSES_V3")])
def test_an_old_driver_is_read_through_its_older_functions(
    tmp_path: Path, without: Sequence[str]
) -> None:
    machine = Machine(fake.build(tmp_path / "old", without), tmp_path)
    machine.show([replace(EIGHT[0], pids=(11,))])
    said = machine.run("say(vars(find_probe(None, os.environ).devices()[0]))")
    assert (said["total_mib"], said["free_mib"]) == (81559, 81000)
    assert said["processes"] == {"11": None}


MIG = fake.Gpu(
    "GPU-00000001-aaaa-bbbb-cccc-000000000001",
    mig=[
        fake.Gpu("MIG-11111111-aaaa-bbbb-cccc-000000000001", "MIG 1g.10gb", 9728, 9700),
        None,
        fake.Gpu("MIG-22222222-aaaa-bbbb-cccc-000000000002", "MIG 1g.10gb", 9728, 100),
    ],
)
FIRST, SECOND = (part.uuid for part in MIG.mig or () if part)


def test_mig_instances_are_devices_and_their_gpu_is_not(machine: Machine) -> None:
    machine.show([EIGHT[0], MIG, EIGHT[2]])
    masks = {
        "1": [FIRST, SECOND],  # the number of a GPU: all its instances
        MIG.uuid: [FIRST, SECOND],
        f"2,{SECOND}": [UUIDS[2], SECOND],
        "MIG-1111": [FIRST],
        f"{SECOND},1": [SECOND, FIRST],
    }
    assert machine.ids() == [UUIDS[0], FIRST, SECOND, UUIDS[2]]
    assert dict(zip(masks, machine.ids_under(*masks), strict=True)) == masks


def test_a_mig_instance_is_leased_by_its_own_memory(machine: Machine) -> None:
    machine.show([MIG])
    said = machine.run(
        "probe, folder = find_probe(None, os.environ), LeaseFolder()\n"
        "held = lease_free(probe, folder)\n"
        "say([held[0].device_id, lease_free(probe, folder).reasons])"
    )
    assert said[0] == FIRST
    assert "is leased by pid" in said[1][FIRST]
    assert "only 1 % of 9728 MiB free" in said[1][SECOND]


@pytest.mark.parametrize(
    ("mask", "expected"), [(None, [FIRST, SECOND] * 2), (SECOND, [SECOND] * 2)]
)
def test_mig_instances_are_shared_by_their_own_memory(
    machine: Machine, mask: str | None, expected: list[str]
) -> None:
    parts = [replace(part, free_mib=9700) for part in MIG.mig or () if part]
    machine.show([replace(MIG, mig=parts)])
    said = machine.run(
        "from autocl_sweeper.device.pool import Pool\n"
        "pool = Pool(find_probe(None, os.environ), LeaseFolder(), memory_per_job_mib=4800)\n"
        "held = []\n"
        "while grant := pool.acquire(): held.append(grant)\n"
        "say([grant.environment['CUDA_VISIBLE_DEVICES'] for grant in held])\n"
        "say(pool.refusal)",
        **({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask}),
    )
    assert said[0] == expected
    assert "has 100 of 9728 MiB to give, and a job reserves 4800" in said[1]


def test_mig_instances_keep_their_ids_when_their_gpu_is_lost(machine: Machine) -> None:
    machine.show([MIG])
    said = machine.run(
        "probe = find_probe(None, os.environ)\n"
        "figures([replace(fake.Gpu(probe.devices()[0].id), uuid=EIGHT[1].uuid, error=15)])\n"
        "say([[d.id, d.problem, d.lost] for d in probe.devices()])"
    )
    assert said == [[name, "NVML: GPU is lost", True] for name in (FIRST, SECOND)]


def test_figures_of_load_are_read_when_asked_for_and_unknown_where_not_supported(
    machine: Machine,
) -> None:
    loaded = replace(EIGHT[0], utilisation=87, temperature_c=66, pids={11: 5000, 12: 300})
    machine.show([loaded, replace(MIG, temperature_c=50), replace(EIGHT[2], temperature_c=-1)])
    said = machine.run(
        "probe = find_probe(None, os.environ)\n"
        "say([[d.utilisation, d.temperature_c] for d in probe.devices(load=True)])\n"
        "say([d.processes for d in probe.devices()][:2])"
    )
    assert said[0] == [[87, 66], [None, 50], [None, 50], [0, None]]
    assert said[1] == [{"11": 5000, "12": 300}, {}]


@pytest.mark.parametrize(
    ("gpus", "count", "problems", "leased"),
    [
        ([replace(EIGHT[0], memory_error=999), EIGHT[1]], 1, ["NVML: Unknown Error", ""], UUIDS[1]),
        # A board that shares the host's memory knows no rule of memory.
        ([replace(EIGHT[0], memory_error=fake.NOT_SUPPORTED)], 1, [""], UUIDS[0]),
        ([replace(EIGHT[0], compute_mode=2), EIGHT[1]], 1, ["Prohibited", ""], UUIDS[1]),
        ([replace(MIG, mig=[])], 1, ["MIG mode"], "GPU-00000001 in MIG mode without a compute inst"),
        # CUDA shows a process one MIG instance, and no GPU beside it.
        ([EIGHT[0], MIG, EIGHT[2]], 2, [""] * 4, f"{UUIDS[0]} {UUIDS[2]}"),
        ([EIGHT[0], MIG, EIGHT[2]], 3, [""] * 4, "wants 3 devices, and 2 can serve it"),
    ],
)  # fmt: skip
def test_a_device_that_cannot_serve_a_job_is_left_out_with_its_problem(
    machine: Machine, gpus: list[fake.Gpu], count: int, problems: list[str], leased: str
) -> None:
    machine.show(gpus)
    found, got = machine.run(f"free({count})")
    assert len(found) == len(problems)
    assert all(part in problem for part, problem in zip(problems, found, strict=True))
    assert [bool(part) for part in problems] == [bool(problem) for problem in found]
    assert leased in (got if isinstance(got, str) else " ".join(got))


# -- no GPU, or no driver that works --------------------------------------------------------------


def test_without_a_driver_there_are_cpu_slots(tmp_path: Path) -> None:
    # A library that cannot be loaded hides a real driver that this machine may have.
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    machine = Machine(tmp_path, tmp_path)
    said = machine.run(
        "probe = find_probe(3, os.environ)\n"
        "say([[d.id for d in probe.devices()], probe.environment(['cpu-0'])])"
    )
    assert said[0] == ["cpu-0", "cpu-1", "cpu-2"]
    assert "CUDA_VISIBLE_DEVICES" not in said[1]  # nothing to hide


def test_a_library_without_a_loaded_driver_means_cpu_slots(machine: Machine) -> None:
    machine.show([], fake.DRIVER_NOT_LOADED)
    assert machine.ids()[0] == "cpu-0"
    (said,) = machine.run(WARNINGS, CUDA_VISIBLE_DEVICES="0")
    assert said.startswith("no GPU (NVML: Driver Not Loaded): jobs run on 2 CPU slots; ")
    assert said.endswith("CUDA_VISIBLE_DEVICES=0 has no effect")


def test_a_driver_that_shows_no_gpu_means_cpu_slots_unless_one_is_named(machine: Machine) -> None:
    machine.show([])
    assert machine.ids()[0] == "cpu-0"
    kind, text = machine.ids(CUDA_VISIBLE_DEVICES="0")
    assert kind == "DeviceError" and "none that this account may use" in text


def test_a_driver_that_does_not_fit_its_library_is_an_error_not_a_slow_sweep(
    machine: Machine,
) -> None:
    machine.show(EIGHT, fake.VERSION_MISMATCH)
    kind, text = machine.ids()
    assert kind == "DeviceError"
    assert "version mismatch" in text and "restart" in text and 'CUDA_VISIBLE_DEVICES=""' in text
    assert machine.ids(CUDA_VISIBLE_DEVICES="")[0] == "cpu-0"  # the way out it names


def test_a_missing_pynvml_is_an_error_that_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(DeviceError, match="nvidia-ml-py"):
        NvmlProbe()


CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("slots", "threads", "expected_slots", "expected_threads"),
    [
        (None, None, CORES, "1"),
        (None, "1", CORES, None),
        (None, str(CORES), 1, None),
        (None, str(10 * CORES), 1, None),
        (None, f"{CORES},2", 1, None),  # one number per nesting level
        (None, "many", CORES, "1"),
        (1, None, 1, str(CORES)),
        (10 * CORES, None, 10 * CORES, "1"),
        (3, "7", 3, None),
    ],
)
def test_cpu_slots_share_the_cores(
    slots: int | None, threads: str | None, expected_slots: int, expected_threads: str | None
) -> None:
    environ = {} if threads is None else {"OMP_NUM_THREADS": threads}
    probe = CpuProbe(slots, environ)
    assert [d.id for d in probe.devices()] == [f"cpu-{n}" for n in range(expected_slots)]
    assert probe.environment(["cpu-0"]).get("OMP_NUM_THREADS") == expected_threads


def test_auto_counts_only_the_cores_we_may_use() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from autocl_sweeper.device.probe import CpuProbe; print(CpuProbe(None, {}).slots)"
    )
    argv = [sys.executable, "-c", code]
    assert subprocess.check_output(argv, env=clean_environment(), text=True) == "1\n"


def test_no_cpu_slot_at_all_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="cpu_slots=0"):
        CpuProbe(0, {})


def test_memory_decides_anew_at_each_look(machine: Machine) -> None:
    machine.show(EIGHT[:1])
    said = machine.run(
        "probe, folder = find_probe(None, os.environ), LeaseFolder()\n"
        "def attempt():\n"
        "    got = lease_free(probe, folder, 1, 0.8)\n"
        "    if isinstance(got, Refusal): return got.reasons[EIGHT[0].uuid]\n"
        "    got[0].close(); return got[0].device_id\n"
        # 0.8 * 81559 = 65247.2
        "for free in (9788, 65247, 65248):\n"
        "    figures([replace(EIGHT[0], free_mib=free)])\n"
        "    say(attempt())\n"
        "figures([replace(EIGHT[0], pids=(4711,))]); say(attempt())\n"
        "figures([replace(EIGHT[0], pids=(os.getpid(),))]); say(attempt())"
    )
    assert said == [
        "has only 12 % of 81559 MiB free (9788 MiB, free_memory=0.8 asks for 65248)",
        "has only 79 % of 81559 MiB free (65247 MiB, free_memory=0.8 asks for 65248)",
        UUIDS[0],
        "is in use: 1 foreign process(es), see nvidia-smi",
        UUIDS[0],
    ]


@pytest.mark.parametrize(
    ("device_id", "expected"),
    [
        (UUIDS[3], "GPU-00000003"),
        (FIRST, "MIG-11111111"),
        ("cpu-0", "cpu-0"),
        ("MIG-GPU-3f1c2a4b-aaaa/1/0", "MIG-GPU-3f1c2a4b-aaaa/1/0"),
    ],
)
def test_log_lines_shorten_a_uuid_only_where_it_stays_unique(device_id: str, expected: str) -> None:
    assert short(device_id) == expected
