"""A machine whose driver is the fake library: children of a test read it through the real pynvml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.fake_nvml import build as fake

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
from autocl_sweeper.device.choice import *
from autocl_sweeper.errors import *
from support.fake_nvml import build as fake

def figures(devices, init_error=0):
    fake.write_figures(Path(os.environ["FAKE_NVML_FIGURES"]), devices, init_error)

def free(count):
    # What is wrong with each device, and which ones a job of so many devices gets, or why none.
    probe = find_probe(None, os.environ)
    say([device.problem for device in probe.devices()])
    got = lease_free(probe, LeaseFolder(), count)
    say(str(got) if isinstance(got, Refusal) else [lease.device_id for lease in got])

def say(value):
    print("SAID " + json.dumps(value))

def attempt(act):
    try:
        act()
    except AutoCLError as error:
        say([type(error).__name__, str(error)])

def ids(environ):
    attempt(lambda: say([device.id for device in find_probe(None, environ).devices()]))

EIGHT = fake.gpus(8)
attempt(lambda: exec(sys.argv[1], globals()))
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
        environ |= fake.environment(self.library, self.figures)
        environ["AUTOCL_LEASE_DIR"] = str(self.folder / "leases")
        argv = [sys.executable, "-c", PRELUDE, code]
        done = subprocess.run(
            argv, env=clean_environment(**environ), capture_output=True, text=True, timeout=300
        )
        said = [line[5:] for line in done.stdout.splitlines() if line.startswith("SAID ")]
        assert said, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
        answers = [json.loads(line) for line in said]
        return answers[0] if len(answers) == 1 else answers

    def ids(self, **environ: str) -> Any:
        """The devices found, or the class and the text of the error."""
        return self.run("ids(os.environ)", **environ)

    def ids_under(self, *masks: str) -> Any:
        """What `ids` answers under each of these values of CUDA_VISIBLE_DEVICES."""
        return self.run(f"for mask in {masks}: ids({{'CUDA_VISIBLE_DEVICES': mask}})")
