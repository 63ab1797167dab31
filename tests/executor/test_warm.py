"""Forked jobs are as good as fresh interpreters, and where they cannot be, fresh ones take over."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bench import APPS, Bench, wait_until
from support.fake_nvml import build as fake

BY_DEFAULT = ("hydra/launcher=gpu", "hydra.launcher.cpu_slots=2")
GPU = (*BY_DEFAULT, "hydra.launcher.warm=true")
OURS = ("hydra/sweeper=autocl", "hydra.sweeper.sequence=null", *GPU)
COLD = "fresh interpreters"
HELPER = "def answer(queue):\n    queue.put(42)\n"

with_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)


@pytest.fixture
def bench(benches: Callable[..., Bench]) -> Bench:
    """The app tests/support/apps/warm.py, with a folder for modules to preload."""
    return with_modules(benches("warm"))


def with_modules(bench: Bench) -> Bench:
    modules = bench.folder / "modules"
    modules.mkdir()
    bench.environment["PYTHONPATH"] = f"{modules}:{bench.environment['PYTHONPATH']}"
    write_module(bench, "helper", HELPER)
    return bench


def write_module(bench: Bench, name: str, text: str) -> None:
    (bench.folder / "modules" / f"{name}.py").write_text(text)


def preload(*modules: str) -> str:
    return f"hydra.launcher.preload=[{','.join(modules)}]"


def parents(bench: Bench) -> set[int]:
    return {event["parent"] for event in bench.ledger("job")}


# -- as a fresh interpreter -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen, forked",
    [
        ([preload("helper")], True),
        ([], False),
        pytest.param(
            [preload("helper"), "hydra.launcher.warm=false"], False, marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else " ".join(value) or "default",
)
def test_jobs_are_forked_from_one_process_when_there_is_a_preload_or_when_told(
    bench: Bench, chosen: list[str], forked: bool
) -> None:
    process = bench.start(*BY_DEFAULT, "do=look", "again=1,2", *chosen)
    output = bench.finish(process, 0)
    assert len(bench.ledger()) == 2 and len(parents(bench)) == 1
    assert (parents(bench) != {process.pid}) == forked
    helped = ["helper"] if forked and preload("helper") in chosen else []
    assert [event["modules"] for event in bench.ledger()] == [helped] * 2
    assert ("preloaded helper in " in output) == bool(helped)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What six forked jobs found, two at a time, and what a fresh one did."""
    found = {}
    for how, jobs in (("true", "1,2,3,4,5,6"), ("false", "1")):
        bench = Bench(tmp_path_factory.mktemp(how), APPS / "warm.py")
        try:
            seen = ["do=look", f"again={jobs}", f"hydra.launcher.warm={how}"]
            bench.run(*GPU, *seen, preload("numpy"), "hydra.job.chdir=true", MARK="here")
            found[how] = bench.ledger("job")
        finally:
            bench.close()
    assert [len(found[how]) for how in ("true", "false")] == [6, 1]
    return found


def test_jobs_find_the_environment_that_a_fresh_interpreter_finds(
    reports: dict[str, list[dict[str, Any]]],
) -> None:
    warm, fresh = reports["true"][0]["environment"], reports["false"][0]["environment"]
    assert warm["MARK"] == "here"
    own = {"AUTOCL_LEASE_DIR", "AUTOCL_JOB", "AUTOCL_DEVICES", "AUTOCL_REPORTS", "LEDGER", "HOLD"}
    assert {k: v for k, v in warm.items() if k not in own} == {
        k: v for k, v in fresh.items() if k not in own
    }


def test_what_a_job_does_to_its_process_stays_there(
    reports: dict[str, list[dict[str, Any]]],
) -> None:
    for event in reports["true"]:
        assert "SPOILED" not in event["environment"]
        assert "HOME" in event["environment"]
        assert "/spoiled" not in event["path"]
        assert Path(event["cwd"]).name == str(event["job"])


def test_a_job_has_its_log_its_lease_and_no_file_of_others(
    reports: dict[str, list[dict[str, Any]]],
) -> None:
    for event in reports["true"]:
        names = dict(event["fds"])
        assert names.pop("0").startswith("pipe:")
        assert event["input"] == ""
        for number in ("1", "2"):
            assert names.pop(number).endswith(f"/{event['job']}.log")
        leases = [name for name in names.values() if name.endswith(".lock")]
        assert len(leases) == 1
        rest = [name for name in names.values() if name not in leases]
        assert [Path(name).name for name in rest] == ["warm.log"]  # Hydra's own


def test_a_job_leads_a_session_and_is_no_daemon(reports: dict[str, list[dict[str, Any]]]) -> None:
    for event in reports["true"]:
        assert event["session"] == event["pid"]
        assert event["daemon"] is False


def test_signals_of_a_forked_job_are_those_of_a_fresh_interpreter(
    reports: dict[str, list[dict[str, Any]]],
) -> None:
    def masks(event: dict[str, Any]) -> list[str]:
        return re.findall(r"^Sig(?:Blk|Ign|Cgt):.*$", event["status"], re.MULTILINE)

    assert masks(reports["true"][0]) == masks(reports["false"][0])


def test_arguments_and_import_path_are_those_of_a_fresh_interpreter(
    reports: dict[str, list[dict[str, Any]]],
) -> None:
    warm, fresh = reports["true"][0], reports["false"][0]
    assert warm["path"] == fresh["path"]
    own = (
        "hydra.launcher.warm=",
        "hydra.sweep.dir=",
        "again=",
    )  # they differ between the two sweeps
    assert [text for text in warm["argv"] if not text.startswith(own)] == [
        text for text in fresh["argv"] if not text.startswith(own)
    ]
    assert warm["argv"][0] == str(APPS / "warm.py")


def test_every_job_draws_other_random_numbers(reports: dict[str, list[dict[str, Any]]]) -> None:
    drawn = [number for event in reports["true"] for number in event["random"]]
    assert None not in drawn
    assert len(set(drawn)) == len(drawn) == 12


def test_a_job_can_fork_and_spawn_workers(bench: Bench) -> None:
    bench.run(*GPU, "do=workers", "again=1,2", preload("helper"))
    assert [event["answers"] for event in bench.ledger()] == [[42, 42]] * 2
    assert bench.nothing_is_left()


@with_torch
def test_torch_and_its_data_loaders_work_in_forked_jobs_with_as_many_threads_as_in_fresh_ones(
    bench: Bench,
) -> None:
    # At import, a parallel operation as libraries do them for a table of constants.
    write_module(
        bench, "tables", "import torch\nTABLE = torch.randn(500, 500) @ torch.randn(500, 500)\n"
    )
    jobs = ("do=matmul,loader", "again=1,2")
    output = bench.run(*GPU, *jobs, preload("torch", "tables"), OMP_NUM_THREADS="2")
    assert COLD not in output
    assert len(parents(bench)) == 1
    loaders = [event["total"] for event in bench.ledger() if "total" in event]
    assert loaders == [28.0] * 2
    products = [event for event in bench.ledger() if "total" not in event]
    assert [(event["threads"], event["finite"]) for event in products] == [(2, True)] * 2
    assert len({event["seed"] for event in products}) == 2
    # OpenBLAS starts the second thread when it is needed. Started before, it spins.
    assert [event["native"] for event in products] == [[1, 2]] * 2


@pytest.mark.slow  # a spawned worker imports torch
@with_torch
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_data_loader_with_other_workers_works_in_a_forked_job(bench: Bench, method: str) -> None:
    output = bench.run(*GPU, "do=loader", "again=1", preload("torch"), WORKERS=method)
    assert COLD not in output
    assert [event["total"] for event in bench.ledger()] == [28.0]


# -- one fork server for all ---------------------------------------------------------------------------


INSIDE = """
import os
import hydra

@hydra.main(config_path=os.path.dirname(__file__))
def main(cfg):
    import inside

    print("job", cfg.n, inside.main.__wrapped__.__globals__ is globals())
    return float(cfg.n)
"""


@pytest.mark.parametrize("warm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_function_that_its_module_wraps_is_that_of_the_imported_module(
    bench: Bench, warm: bool
) -> None:
    """Not a copy of it: what the module registers for composing has to be there in jobs."""
    write_module(bench, "inside", INSIDE)
    bench.app = bench.folder / "app.py"
    bench.app.write_text("from inside import main\n\nif __name__ == '__main__':\n    main()\n")
    bench.run(*BY_DEFAULT, f"hydra.launcher.warm={warm}", "+n=1,2", PYTHONWARNINGS="ignore")
    logs = sorted(bench.sweep.glob("*/job.log"))
    assert [log.read_text().splitlines()[-1] for log in logs] == ["job 1 True", "job 2 True"]


def test_batches_of_a_launcher_are_forked_from_one_forkserver(bench: Bench) -> None:
    output = bench.run(
        *GPU, "hydra.sweeper.max_batch_size=2", "do=look", "again=1,2,3,4,5", preload("helper")
    )
    assert len(bench.ledger()) == 5 and len(parents(bench)) == 1
    assert output.count("preloaded helper in ") == 1
    assert bench.nothing_is_left()


def test_a_forkserver_ends_with_a_sweeper_that_raises_between_batches(bench: Bench) -> None:
    bench.run(
        *GPU, "hydra.sweeper.max_batch_size=1", "do=look,nothing", "again=1", preload("helper"),
        status=1,
    )  # fmt: skip
    assert len(bench.ledger()) == 1
    wait_until(bench.nothing_is_left, "the forkserver is gone")


def test_a_finished_sweep_run_again_imports_nothing(bench: Bench) -> None:
    sweep = (*OURS, "do=look", "again=1,2", preload("helper"))
    assert "preloaded helper in " in bench.run(*sweep)
    assert "preloaded" not in bench.run(*sweep)
    assert len(bench.ledger()) == 2


# -- what is imported for all of them ---------------------------------------------------------------

LEDGER = """
import json, os
def tell(**told):
    with open(os.environ["LEDGER"], "a") as ledger:
        ledger.write(json.dumps(told) + "\\n")
"""
# A library whose allocator has a thread, unless an environment variable switches it off.
ARROW_LIKE = """
import os, threading, time
if os.environ.get("JE_ARROW_MALLOC_CONF") != "background_thread:false":
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
"""
SETS = """
import os
os.environ["SET_BY_IMPORT"] = "yes"
os.environ.pop("REMOVED_BY_IMPORT")
os.environ["CUDA_VISIBLE_DEVICES"] = "7"
"""
SCRATCH = """
import atexit, os, tempfile, told
assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
FOLDER = tempfile.TemporaryDirectory()
def tell():
    checks = "PYTORCH_NVML_BASED_CUDA_CHECK" in os.environ
    told.tell(event="exit", there=os.path.isdir(FOLDER.name), checks=checks)
atexit.register(tell)
"""
LIBCUDA = """
static int count_status = 3;
int cuDeviceGetCount(int *count) { *count = 1; return count_status; }
int cuInit(unsigned flags) { (void)flags; count_status = 0; return 0; }
"""
LOAD = "import ctypes\nLIBRARY = ctypes.CDLL({library!r})\n"
# Modules that forks would suffer from, and why.
UNFIT = {
    "raises": ("raise ValueError('not today')", "ValueError: not today"),
    "leaves": ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
    "needs": ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
    "threads": (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        r"it leaves 1 thread\(s\) running \(Thread-1 \(sleep\)\)",
    ),
    "children": (
        "import subprocess\nCHILD = subprocess.Popen(['sleep', '1000'])",
        "it leaves a child process running",
    ),
    "sockets": ("import socket\nPAIR = socket.socketpair()", "it leaves a socket open"),
    "starts": (f"{LOAD}LIBRARY.cuInit(0)", "it initialises CUDA"),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bench, str]]:
    """Two jobs on two GPUs, forked from a process that imported all sorts of modules; what was printed."""
    folder = tmp_path_factory.mktemp("imported")
    made = with_modules(Bench(folder, APPS / "warm.py"))
    gpus = fake.gpus(2)
    made.environment |= fake.environment(fake.build(folder), fake.write_figures(folder / "f", gpus))
    del made.environment["CUDA_VISIBLE_DEVICES"]
    (folder / "libcuda.c").write_text(LIBCUDA)
    library = str(folder / "libcuda.so.1")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, folder / "libcuda.c"], check=True)
    fit = {
        "told": LEDGER,
        "arrow_like": ARROW_LIKE,
        "scratch": SCRATCH,
        "sets": SETS,
        "loads": LOAD,
    }
    for name, text in {**fit, **{name: text for name, (text, _) in UNFIT.items()}}.items():
        write_module(made, name, text.replace("{library!r}", repr(library)) + "\n")
    try:
        yield made, made.run(
            "hydra/launcher=gpu", "do=look", "again=1,2", preload("helper", *fit, *UNFIT),
            REMOVED_BY_IMPORT="", TMPDIR=str(folder),
        )  # fmt: skip
    finally:
        made.close()


def test_modules_that_forks_would_suffer_from_are_named_and_left_out(
    imported: tuple[Bench, str],
) -> None:
    bench, output = imported
    for name, (_, reason) in UNFIT.items():
        said = f"hydra.launcher.preload: {name}: .*{reason}.*it is left out"
        assert re.search(said, output), output
    named = re.search(r"preloaded (.*) in ", output)
    assert named and named[1] == "helper, told, arrow_like, scratch, sets, loads", output
    assert not re.search(COLD, output) and len(parents(bench)) == 1
    wait_until(bench.nothing_is_left, "what the modules started is gone")


def test_what_a_module_sets_in_the_environment_holds_in_jobs_and_devices_hold_more(
    imported: tuple[Bench, str],
) -> None:
    bench, _ = imported
    for event in bench.ledger("job"):
        assert event["environment"]["SET_BY_IMPORT"] == "yes"
        assert "REMOVED_BY_IMPORT" not in event["environment"]
        assert "JE_ARROW_MALLOC_CONF" not in event["environment"]
        assert event["environment"]["CUDA_VISIBLE_DEVICES"] == event["mask"]
        (lease,) = (name for name in event["fds"].values() if name.endswith(".lock"))
        assert event["mask"] == Path(lease).stem
    assert {event["mask"] for event in bench.ledger("job")} <= {gpu.uuid for gpu in fake.gpus(2)}


def test_what_an_import_made_for_all_jobs_stays_and_its_exit_hook_runs_in_each(
    imported: tuple[Bench, str],
) -> None:
    bench, _ = imported
    assert bench.ledger("exit") == [{"event": "exit", "there": True, "checks": False}] * 2


# -- when it cannot be ------------------------------------------------------------------------------


def test_where_an_import_kills_the_process_jobs_are_fresh(bench: Bench) -> None:
    write_module(bench, "dies", "import os; print('last words', flush=True); os._exit(3)\n")
    output = bench.run(*GPU, "do=look", preload("helper", "dies"))
    assert re.search(f"exit status 3.*{COLD}", output) and "last words" in output, output
    assert len(bench.ledger()) == 1


@pytest.mark.parametrize(
    "name",
    [
        "not_there",
        *(
            pytest.param(f"{outer}.inner", marks=pytest.mark.slow)
            for outer in ("helper", "not_there")
        ),
    ],
)
def test_a_module_that_does_not_exist_stops_everything_before_a_job(
    bench: Bench, name: str
) -> None:
    output = bench.run(*OURS, "do=look,workers", preload("helper", name), status=1)
    assert f"ConfigurationError: hydra.launcher.preload names '{name}'" in output
    assert bench.ledger() == []
    assert bench.events("start") == []
    assert bench.nothing_is_left()


def test_a_job_that_cannot_use_cuda_in_a_fork_runs_again_in_a_fresh_interpreter(
    bench: Bench,
) -> None:
    output = bench.run(*OURS, "hydra.launcher.cpu_slots=1", "do=bad_fork", "again=1,2")
    assert re.search(f"could not use CUDA.*{COLD}", output)
    assert [event["forked"] for event in bench.ledger()] == [1, 0, 0]
    assert {event["state"] for event in bench.finished().values()} == {"COMPLETE"}


# -- when somebody dies -----------------------------------------------------------------------------


HELD = ("do=hold", "again=1,2,3")


def test_nothing_outlives_a_controller_that_is_killed(bench: Bench) -> None:
    bench.start_held(2, *OURS, *HELD).kill()
    wait_until(bench.nothing_is_left, "forkserver, jobs and their children are gone")


def test_nothing_outlives_controller_and_forkserver_killed_together(bench: Bench) -> None:
    process = bench.start_held(2, *OURS, *HELD)
    (forkserver,) = parents(bench)
    process.send_signal(signal.SIGSTOP)  # so that it sees nothing before its own end
    os.kill(forkserver, signal.SIGKILL)
    process.kill()
    wait_until(bench.nothing_is_left, "jobs and their children are gone")


@pytest.mark.parametrize(
    "sweeper", [OURS, pytest.param(GPU, marks=pytest.mark.slow)], ids=["our sweeper", "Hydra's"]
)
def test_jobs_of_a_killed_forkserver_run_again_in_fresh_interpreters(
    bench: Bench, sweeper: tuple[str, ...]
) -> None:
    process = bench.start_held(2, *sweeper, *HELD)
    (forkserver,) = parents(bench)
    children = [event["child"] for event in bench.ledger()]
    os.kill(forkserver, signal.SIGKILL)
    wait_until(lambda: len(bench.ledger("job")) == 4, "they run again")
    assert set(children) & set(bench.processes()) == set()
    output = bench.release(process)
    assert {event["parent"] for event in bench.ledger()[2:]} == {process.pid}
    assert re.search(f"died .killed by SIGKILL.*{COLD}", output)
    if sweeper is OURS:
        again = bench.events("attempt_failed")
        assert sorted((e["trial"], e["lost"]) for e in again) == [(0, True), (1, True)]
        assert {e["reason"] for e in again} == {"the process it was forked from died"}
        assert {event["state"] for event in bench.finished().values()} == {"COMPLETE"}
    assert bench.nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_ends_while_modules_are_imported_leaves_nothing(
    bench: Bench, number: int
) -> None:
    mark = bench.folder / "importing"
    write_module(bench, "slow", f"import time\nopen({str(mark)!r}, 'w')\ntime.sleep(1000)\n")
    process = bench.start(*OURS, "do=look", preload("slow"))
    wait_until(mark.exists, "the import has begun")
    process.send_signal(number)
    process.wait(300)
    assert bench.ledger() == []
    wait_until(bench.nothing_is_left, "the forkserver is gone")
