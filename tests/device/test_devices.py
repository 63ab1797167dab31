"""Devices are read through the real pynvml from a fake driver; leases are raced by processes."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fake_nvml import build as fake

from autocl_sweeper.device.leases import Lease, LeaseFolder, Refusal, lease_free
from autocl_sweeper.device.probe import (
    CpuProbe,
    Device,
    FakeProbe,
    NvmlProbe,
    find_probe,
    short,
)
from autocl_sweeper.errors import ConfigurationError, DeviceError

TESTS = Path(__file__).parents[1]
EIGHT = fake.gpus(8)
UUIDS = [gpu.uuid for gpu in EIGHT]

# What a child of these tests begins with. `figures` changes what the fake driver says.
PRELUDE = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
from autocl_sweeper.device.probe import *
from autocl_sweeper.device.leases import *
from autocl_sweeper.errors import *
from support.fake_nvml import build as fake

def figures(devices, init_error=0):
    fake.write_figures(Path(os.environ["FAKE_NVML_FIGURES"]), devices, init_error)

def say(value):
    print("SAID " + json.dumps(value))

EIGHT = fake.gpus(8)
try:
    exec(sys.argv[1])
except AutoCLError as error:
    say([type(error).__name__, str(error)])
"""


def clean_environment(**changes: str) -> dict[str, str]:
    """Our environment without what would change the answers, and with the repository importable."""
    changing = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "AUTOCL_LEASE_DIR")
    kept = {key: value for key, value in os.environ.items() if key not in changing}
    return {**kept, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", **changes}


class Machine:
    """A machine whose driver is the fake library."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.library = library
        self.folder = folder
        self.figures = folder / "figures"
        self.show(EIGHT)

    def show(self, devices: Sequence[fake.Gpu], init_error: int = 0) -> None:
        fake.write_figures(self.figures, devices, init_error)

    def run(self, code: str, **environ: str) -> Any:
        """What `code` says, executed in a process that loads the fake library."""
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE, code],
            env=clean_environment(
                **fake.environment(self.library, self.figures),
                AUTOCL_LEASE_DIR=str(self.folder / "leases"),
                **environ,
            ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        said = [line[5:] for line in done.stdout.splitlines() if line.startswith("SAID ")]
        assert said, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
        answers = [json.loads(line) for line in said]
        return answers[0] if len(answers) == 1 else answers

    def ids(self, **environ: str) -> Any:
        return self.run("say([d.id for d in find_probe(None, os.environ).devices()])", **environ)


@pytest.fixture
def machine(library: Path, tmp_path: Path) -> Machine:
    return Machine(library, tmp_path)


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[LeaseFolder]:
    taken: list[Lease] = []

    class Remembering(LeaseFolder):
        def try_lease(self, device_id: str, holder: str) -> Lease | None:
            lease = super().try_lease(device_id, holder)
            taken.extend([lease] if lease else [])
            return lease

    yield Remembering(tmp_path / "leases")
    for lease in taken:
        lease.close()


def ids_of(taken: Any) -> list[str]:
    assert not isinstance(taken, Refusal), str(taken)
    return [lease.device_id for lease in taken]


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


@pytest.mark.parametrize(
    ("visible", "numbers"),
    [
        ("0", [0]),
        ("5,3", [5, 3]),  # CUDA counts in the order of the list, so the first is device 5
        (" 1 , 2,", [1, 2]),
        ("4,-1,5", [4]),  # -1 ends a list
        (UUIDS[6], [6]),
        ("GPU-00000007", [7]),
        (f"2,{UUIDS[1]},GPU-00000004-aaaa", [2, 1, 4]),
    ],
)
def test_a_parents_mask_is_the_pool(machine: Machine, visible: str, numbers: list[int]) -> None:
    assert machine.ids(CUDA_VISIBLE_DEVICES=visible) == [UUIDS[n] for n in numbers]


@pytest.mark.parametrize(
    ("visible", "message"),
    [
        ("8", "'8' is not a device here"),
        ("0,GPU-12345678,1", "'GPU-12345678' is not a device here"),
        ("GPU-0000000", "'GPU-0000000' fits several devices"),
        ("0,GPU-00000000", "'GPU-00000000' comes twice"),
        ("0,,1", "'' is not a device here"),
        ("all", "'all' is not a device here"),
        ("-2", "'-2' is not a device here"),
    ],
)
def test_a_mask_that_does_not_fit_is_an_error_that_lists_what_exists(
    machine: Machine, visible: str, message: str
) -> None:
    kind, text = machine.ids(CUDA_VISIBLE_DEVICES=visible)
    assert kind == "DeviceError"
    assert f"CUDA_VISIBLE_DEVICES={visible}: {message}" in text
    assert all(f"{number}: {uuid}" in text for number, uuid in enumerate(UUIDS))


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles", " "])
def test_hidden_gpus_mean_cpu_slots_whose_jobs_see_none_either(
    machine: Machine, visible: str
) -> None:
    said = machine.run(
        "probe = find_probe(2, os.environ)\n"
        "say([[d.id for d in probe.devices()], probe.environment(['cpu-0'])])",
        CUDA_VISIBLE_DEVICES=visible,
    )
    assert said[0] == ["cpu-0", "cpu-1"]
    assert said[1]["CUDA_VISIBLE_DEVICES"] == ""


def test_numbers_on_a_machine_of_several_models_come_with_a_warning(machine: Machine) -> None:
    machine.show([EIGHT[0], replace(EIGHT[1], name="Another Board")])
    warned = (
        "import logging\nheard = []\n"
        "logging.getLogger('autocl_sweeper.device.probe').handle = lambda r: heard.append(r.msg)\n"
        "find_probe(None, os.environ)\nsay([len(heard), *heard])"
    )
    assert machine.run(warned, CUDA_VISIBLE_DEVICES="1")[0] == 1
    assert machine.run(warned, CUDA_VISIBLE_DEVICES=UUIDS[1]) == [0]
    assert machine.run(warned, CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID") == [0]


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


def test_memory_that_cannot_be_read_is_the_problem_of_that_gpu_alone(machine: Machine) -> None:
    machine.show([replace(EIGHT[0], memory_error=999), EIGHT[1]])
    said = machine.run("say([[d.id, d.problem] for d in find_probe(None, os.environ).devices()])")
    assert said == [[UUIDS[0], "NVML: Unknown Error"], [UUIDS[1], ""]]


def test_a_board_that_shares_the_hosts_memory_is_leased_without_a_memory_rule(
    machine: Machine,
) -> None:
    machine.show([replace(EIGHT[0], memory_error=fake.NOT_SUPPORTED)])
    said = machine.run(
        "probe = find_probe(None, os.environ)\n"
        "say([probe.devices()[0].total_mib, len(lease_free(probe, LeaseFolder()))])"
    )
    assert said == [None, 1]


def test_a_gpu_in_compute_mode_prohibited_is_not_used(machine: Machine) -> None:
    machine.show([replace(EIGHT[0], compute_mode=2), EIGHT[1]])
    said = machine.run(
        "probe = find_probe(None, os.environ)\n"
        "say([probe.devices()[0].problem, lease_free(probe, LeaseFolder())[0].device_id])"
    )
    assert "Prohibited" in said[0] and said[1] == UUIDS[1]


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


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [UUIDS[0], FIRST, SECOND, UUIDS[2]]),
        ("1", [FIRST, SECOND]),  # the number of a GPU: all its instances
        (MIG.uuid, [FIRST, SECOND]),
        (f"2,{SECOND}", [UUIDS[2], SECOND]),
        ("MIG-1111", [FIRST]),
        (f"{SECOND},1", [SECOND, FIRST]),
    ],
)
def test_mig_instances_are_devices_and_their_gpu_is_not(
    machine: Machine, visible: str | None, expected: list[str]
) -> None:
    machine.show([EIGHT[0], MIG, EIGHT[2]])
    mask = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert machine.ids(**mask) == expected


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


def test_a_gpu_in_mig_mode_without_instances_says_so(machine: Machine) -> None:
    machine.show([replace(MIG, mig=[])])
    said = machine.run("say(str(lease_free(find_probe(None, os.environ), LeaseFolder())))")
    assert "GPU-00000001 in MIG mode without a compute instance" in said


def test_a_job_of_two_devices_is_not_given_mig_instances(machine: Machine) -> None:
    machine.show([EIGHT[0], MIG, EIGHT[2]])
    said = machine.run(
        "probe = find_probe(None, os.environ)\n"
        "say([l.device_id for l in lease_free(probe, LeaseFolder(), 2)])\n"
        "lease_free(probe, LeaseFolder(), 3)"
    )
    assert said[0] == [UUIDS[0], UUIDS[2]]
    assert said[1][0] == "DeviceError" and "wants 3 devices, and 2 can serve it" in said[1][1]


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
    assert machine.ids(CUDA_VISIBLE_DEVICES="0")[0] == "cpu-0"


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
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "1\n", done.stderr


def test_no_cpu_slot_at_all_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="cpu_slots=0"):
        CpuProbe(0, {})


# -- which devices are free -----------------------------------------------------------------------


def test_memory_decides_anew_at_each_look(machine: Machine) -> None:
    machine.show(EIGHT[:1])
    said = machine.run(
        "probe, folder = find_probe(None, os.environ), LeaseFolder()\n"
        "def attempt():\n"
        "    got = lease_free(probe, folder, 1, 0.8, holder='t')\n"
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


def test_every_device_has_its_own_reason(leases: LeaseFolder) -> None:
    probe = FakeProbe.gpus(4)
    ids = [device.id for device in probe.devices()]
    held = leases.try_lease(ids[0], "boolq/0003")
    probe.change(ids[1], free_mib=9788)
    probe.change(ids[2], problem="NVML: GPU is lost")
    probe.change(ids[3], processes={11: None, 12: 500})
    refusal = lease_free(probe, leases)
    assert isinstance(refusal, Refusal)
    assert list(refusal.reasons) == ids
    reasons = list(refusal.reasons.values())
    assert f"leased by pid {os.getpid()}: boolq/0003" in reasons[0]
    assert "12 % of 81559 MiB" in reasons[1]
    assert reasons[2] == "NVML: GPU is lost"
    assert "2 foreign" in reasons[3]
    assert str(refusal).startswith("1 wanted: GPU-fa000000 is leased by pid")
    assert ids_of(lease_free(probe, leases, allow_processes=True)) == [ids[3]]
    assert held is not None


def test_two_devices_are_leased_together_or_not_at_all(leases: LeaseFolder) -> None:
    probe = FakeProbe.gpus(3)
    ids = [device.id for device in probe.devices()]
    others = [leases.try_lease(ids[0], "another"), leases.try_lease(ids[2], "another")]
    refusal = lease_free(probe, leases, 2)
    assert isinstance(refusal, Refusal)
    assert sorted(refusal.reasons) == ids
    assert ids_of(lease_free(probe, leases, 1)) == [ids[1]]  # it was given back
    assert others[0] is not None
    others[0].close()
    assert isinstance(lease_free(probe, leases, 2), Refusal)  # ids[1] is ours by now
    assert ids_of(lease_free(probe, leases, 1)) == [ids[0]]


def test_what_was_taken_in_vain_is_free_again(leases: LeaseFolder) -> None:
    probe = FakeProbe.gpus(4)
    ids = [device.id for device in probe.devices()]
    probe.change(ids[2], free_mib=0)
    probe.change(ids[3], free_mib=0)
    refusal = lease_free(probe, leases, 3)
    assert isinstance(refusal, Refusal)
    assert refusal.reasons[ids[0]] == refusal.reasons[ids[1]] == "is free, but does not suffice"
    assert ids_of(lease_free(probe, leases, 2)) == ids[:2]


def test_a_sweep_that_cannot_get_all_takes_nothing_another_one_may_need(
    leases: LeaseFolder,
) -> None:
    probe = FakeProbe.gpus(3)
    ids = [device.id for device in probe.devices()]
    first, second = leases.try_lease(ids[0], "ahead of us"), leases.try_lease(ids[1], "too")
    refusal = lease_free(probe, leases, 2)
    assert isinstance(refusal, Refusal)
    assert refusal.reasons[ids[2]] == "was not tried: it could not suffice"
    assert first is not None and second is not None


def test_only_the_first_devices_are_considered(leases: LeaseFolder) -> None:
    probe = FakeProbe.gpus(8)
    ids = [device.id for device in probe.devices()]
    assert ids_of(lease_free(probe, leases, 2, max_devices=2)) == ids[:2]
    refusal = lease_free(probe, leases, 1, max_devices=2)
    assert isinstance(refusal, Refusal) and list(refusal.reasons) == ids[:2]
    assert ids_of(lease_free(probe, leases, 6)) == ids[2:]


@pytest.mark.parametrize(("count", "max_devices"), [(9, None), (3, 2), (0, None), (1, 0)])
def test_what_can_never_be_leased_is_an_error_not_a_wait(
    leases: LeaseFolder, count: int, max_devices: int | None
) -> None:
    with pytest.raises(DeviceError, match=f"wants {count} devices"):
        lease_free(FakeProbe.gpus(8), leases, count, max_devices=max_devices)


class Changing(FakeProbe):
    """Shows one list of devices before the leases are taken and another one after."""

    def __init__(self, readings: Sequence[Sequence[Device]]) -> None:
        super().__init__(readings[0])
        self.readings = list(readings)

    def devices(self, load: bool = False) -> list[Device]:
        return list(self.readings.pop(0) if len(self.readings) > 1 else self.readings[0])


def test_a_device_taken_between_reading_and_lease_is_given_back(leases: LeaseFolder) -> None:
    before = FakeProbe.gpus(3).devices()
    full = [replace(before[0], free_mib=10), before[1], before[2]]
    assert ids_of(lease_free(Changing([before, full]), leases)) == [before[1].id]
    gone = [before[2]]
    assert ids_of(lease_free(Changing([before, gone]), leases)) == [before[2].id]
    free = leases.try_lease(before[0].id, "")
    assert free is not None  # it was given back


def test_a_reading_that_fails_leaves_no_lease_behind(leases: LeaseFolder) -> None:
    class Broken(FakeProbe):
        looks = 0

        def devices(self, load: bool = False) -> list[Device]:
            self.looks += 1
            if self.looks == 2:
                raise KeyboardInterrupt
            return super().devices()

    probe = Broken(FakeProbe.gpus(1).devices())
    with pytest.raises(KeyboardInterrupt):
        lease_free(probe, leases)
    assert len(ids_of(lease_free(probe, leases))) == 1


def test_cpu_slots_are_leased_like_devices(leases: LeaseFolder) -> None:
    probe = CpuProbe(2, {})
    assert ids_of(lease_free(probe, leases)) == ["cpu-0"]
    assert ids_of(lease_free(probe, leases)) == ["cpu-1"]
    assert isinstance(lease_free(probe, leases), Refusal)


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


# -- leases ---------------------------------------------------------------------------------------


def test_a_lease_is_taken_once_and_free_after_close(leases: LeaseFolder) -> None:
    lease = leases.try_lease("GPU-a", "first")
    assert lease is not None
    assert leases.try_lease("GPU-a", "second") is None
    assert leases.holder("GPU-a") == f"pid {os.getpid()}: first"
    lease.close()
    lease.close()
    with pytest.raises(ValueError, match="GPU-a is closed"):
        lease.filenos()
    again = leases.try_lease("GPU-a", "x")
    assert again is not None
    assert leases.holder("GPU-a") == f"pid {os.getpid()}: x"
    assert leases.file("GPU-a").read_text().count("\n") == 1  # the longer text is gone
    assert leases.holder("GPU-b") is None


def test_the_id_of_a_device_cannot_leave_the_folder(leases: LeaseFolder) -> None:
    lease = leases.try_lease("MIG-GPU-1234/../1/0", "")
    assert lease is not None
    assert {path.parent for path in leases.path.iterdir()} == {leases.path}


def test_descriptors_of_leases_reach_only_the_jobs_they_are_passed_to(leases: LeaseFolder) -> None:
    lease = leases.try_lease("GPU-a", "")
    assert lease is not None and not any(map(os.get_inheritable, lease.filenos()))


RACER = """
import os, sys
from pathlib import Path
from autocl_sweeper.device.leases import LeaseFolder
folder, witness, rounds = LeaseFolder(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
won = clashes = 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(rounds):
    lease = folder.try_lease("GPU-a", "racer")
    if lease is None:
        continue
    won += 1
    try:
        os.close(os.open(witness, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        clashes += 1
    else:
        os.sched_yield()
        os.unlink(witness)
    lease.close()
print(won, clashes)
"""


def start(code: str, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def test_of_processes_that_race_for_a_lease_one_has_it(tmp_path: Path) -> None:
    # The folder does not exist: creating it is part of the race.
    racers = [start(RACER, tmp_path / "new", tmp_path / "witness", 800) for _ in range(4)]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    answers = [racer.communicate("go\n", timeout=60)[0].split() for racer in racers]
    assert [int(clashes) for _, clashes in answers] == [0] * 4
    assert all(int(won) > 0 for won, _ in answers)


SHARERS = """
import os, sys
from pathlib import Path
from autocl_sweeper.device.leases import Lease, LeaseFolder
from autocl_sweeper.device.packing import Claim, refusal
from autocl_sweeper.device.probe import Device
folder, witness, limit = LeaseFolder(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
mine, device = witness / f"{os.getpid()}-{limit}", Device("GPU-a", "")
claim = Claim(os.getpid(), str(limit), limit=limit)
most = won = 0
print("ready", flush=True)
sys.stdin.readline()
while won < 60:
    lease = folder.take("GPU-a", claim, lambda there: refusal(device, there.claims, claim, 0.8))
    if isinstance(lease, Lease):
        won += 1
        mine.touch()
        os.sched_yield()
        there = os.listdir(witness)
        most = max(most, len(there))
        assert len(there) <= min(int(name.partition("-")[2]) for name in there), there
        mine.unlink()
        lease.close()
print(won, most)
"""


def test_of_processes_that_race_for_places_the_strictest_on_a_device_decides(
    tmp_path: Path,
) -> None:
    (tmp_path / "witness").mkdir()
    racers = [start(SHARERS, tmp_path / "new", tmp_path / "witness", n) for n in (1, 2, 3, 3, 3)]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert [int(won) for won, _ in answers] == [60] * 5
    assert int(answers[0][1]) == 1 and max(int(most) for _, most in answers) >= 2


PAIRS = """
import sys
from pathlib import Path
from autocl_sweeper.device.probe import FakeProbe
from autocl_sweeper.device.leases import LeaseFolder, Refusal, lease_free
folder, wanted = LeaseFolder(Path(sys.argv[1])), int(sys.argv[2])
probe = FakeProbe.gpus(4)
won = 0
while won < wanted:
    got = lease_free(probe, folder, 3)
    if not isinstance(got, Refusal):
        won += 1
        for lease in got: lease.close()
print(won)
"""


def test_sweeps_that_want_several_devices_each_do_not_starve_each_other(tmp_path: Path) -> None:
    sweeps = [start(PAIRS, tmp_path / "leases", 200) for _ in range(3)]
    assert [sweep.communicate(timeout=60)[0] for sweep in sweeps] == ["200\n"] * 3


CREATOR = """
import os, subprocess, sys, time
from pathlib import Path
from autocl_sweeper.device.packing import Claim
from autocl_sweeper.device.leases import LeaseFolder
claim = Claim(os.getpid(), "a job that outlives its sweep", limit=int(sys.argv[3]))
lease = LeaseFolder(Path(sys.argv[1])).take("GPU-a", claim)
job = subprocess.Popen(["sleep", "600"], pass_fds=lease.filenos(), stdout=subprocess.DEVNULL)
other = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
if sys.argv[2] == "close":
    lease.close()
print(job.pid, other.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Processes to kill at the end, if a test fails before it does."""
    started: list[int] = []
    yield started
    for pid in started:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("ours", "limit"), [("close", 1), ("keep", 1), ("close", 2)])
def test_a_lease_lives_as_long_as_the_job_that_inherited_it(
    leases: LeaseFolder, pids: list[int], ours: str, limit: int
) -> None:
    creator = start(CREATOR, leases.path, ours, limit)
    assert creator.stdout is not None
    job, other = map(int, creator.stdout.readline().split())
    pids += [job, other]
    assert leases.try_lease("GPU-a", "") is None
    creator.kill()
    creator.communicate()
    assert leases.try_lease("GPU-a", "") is None
    there = leases.look("GPU-a")
    assert there is not None and len(there.claims) == 1
    said = leases.words("GPU-a", there.claims[0])
    assert said.startswith(f"pid {creator.pid}: a job that outlives its sweep (ended; 'fuser ")
    os.kill(job, signal.SIGKILL)
    lease = None
    for _ in range(2000):  # the job is not our child: nobody tells us when it is gone
        lease = leases.try_lease("GPU-a", "")
        if lease is not None:
            break
        time.sleep(0.01)
    assert lease is not None, "the lease outlived the job"
    os.kill(other, 0)  # a process started without the descriptor does not keep it


def test_a_lock_file_deleted_by_a_cleaner_is_not_leased_twice_from_then_on(
    leases: LeaseFolder,
) -> None:
    first = leases.try_lease("GPU-a", "")
    assert first is not None
    first.close()
    shutil.rmtree(leases.path)
    assert leases.try_lease("GPU-a", "") is not None
    assert leases.try_lease("GPU-a", "") is None


def test_a_lock_on_a_file_that_was_replaced_meanwhile_is_no_lease(
    leases: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases.file("GPU-a").touch()
    before = leases.file("GPU-a").stat().st_ino
    real = fcntl.flock
    locked: list[int] = []

    def slow(fd: int, how: int) -> None:
        if os.fstat(fd).st_ino == before:
            leases.file("GPU-a").unlink()
            leases.file("GPU-a").touch()
        locked.append(os.fstat(fd).st_ino)
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    lease = leases.try_lease("GPU-a", "")
    assert lease is not None and locked.count(before) == 1
    assert os.fstat(lease.filenos()[0]).st_ino == leases.file("GPU-a").stat().st_ino


def test_the_folder_is_ours_alone(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path / "deep" / "leases")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    LeaseFolder(folder.path)
    (tmp_path / "link").symlink_to(folder.path)
    with pytest.raises(DeviceError, match="links are not followed"):
        LeaseFolder(tmp_path / "link")
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="not a folder"):
        LeaseFolder(tmp_path / "file")
    folder.path.chmod(0o777)
    with pytest.raises(DeviceError, match="everybody may write"):
        LeaseFolder(folder.path)


def test_a_folder_of_another_account_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(DeviceError, match="belongs to uid"):
        LeaseFolder(tmp_path)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, f"/tmp/autocl-leases-{os.geteuid()}"),
        ({"TMPDIR": "/var/tmp"}, f"/tmp/autocl-leases-{os.geteuid()}"),
        ({"AUTOCL_LEASE_DIR": ""}, f"/tmp/autocl-leases-{os.geteuid()}"),
        ({"AUTOCL_LEASE_DIR": "elsewhere"}, "elsewhere"),
    ],
)
def test_all_sweeps_of_an_account_meet_in_one_folder(
    monkeypatch: pytest.MonkeyPatch,
    environ: Mapping[str, str],
    expected: str,
) -> None:
    monkeypatch.setattr(LeaseFolder, "_prepare", lambda folder: None)
    monkeypatch.delenv("AUTOCL_LEASE_DIR", raising=False)
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    assert LeaseFolder().path == Path(expected)


def test_falling_back_to_cpu_slots_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nothing:
        NVML_ERROR_LIBRARY_NOT_FOUND, NVML_ERROR_DRIVER_NOT_LOADED = 12, 9

        class NVMLError(Exception):
            value = 12

        def nvmlInit(self) -> None:
            raise self.NVMLError("NVML Shared Library Not Found")

    monkeypatch.setitem(sys.modules, "pynvml", Nothing())
    with caplog.at_level(logging.INFO):
        find_probe(2, {"CUDA_VISIBLE_DEVICES": "0"})
    (message,) = caplog.messages
    assert message == (
        "no GPU (NVML: NVML Shared Library Not Found): jobs run on 2 CPU slots; "
        "CUDA_VISIBLE_DEVICES=0 has no effect"
    )
