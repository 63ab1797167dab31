"""Builds the fake NVIDIA library and writes what it shows.

    library = build(tmp_path)                       # a folder for LD_LIBRARY_PATH
    figures = write_figures(tmp_path / "figures", gpus(8))
    subprocess.run(argv, env={**os.environ, **environment(library, figures)})

Call `write_figures` again at any time: running processes see it with their next look. The loader
reads LD_LIBRARY_PATH when a process starts, so the library is for child processes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GPU_IS_LOST = 15
DRIVER_NOT_LOADED = 9
VERSION_MISMATCH = 18
NO_PERMISSION = 4
NOT_SUPPORTED = 3

SOURCE = Path(__file__).with_name("fake_nvml.c")


@dataclass(frozen=True)
class Gpu:
    """What the library says about one GPU, or one MIG instance of it.

    `pids`: a mapping tells what each process uses in MiB. `error` and `memory_error` are NVML's
    codes. `mig`: None for a board not in MIG mode, else the instances, None standing for a gap.
    """

    uuid: str
    name: str = "Fake H100 80GB"
    total_mib: int = 81559
    free_mib: int = 81000
    pids: Sequence[int] | Mapping[int, int] = ()
    error: int = 0
    memory_error: int = 0
    compute_mode: int = 0
    mig: Sequence[Gpu | None] | None = None
    utilisation: int = 0
    temperature_c: int = 40
    clock_mhz: int = 1980  # now and at most
    pcie_lanes: int = 16


def gpus(count: int = 8) -> list[Gpu]:
    """Idle GPUs; the first and the last digits of a UUID are its number."""
    return [
        Gpu(f"GPU-{number:08x}-aaaa-bbbb-cccc-{number:012x}", free_mib=81000 + number)
        for number in range(count)
    ]


def build(folder: Path, without: Sequence[str] = ()) -> Path:
    """The folder that holds libnvidia-ml.so.1, compiled now.

    `without` leaves functions out, as old drivers do: MEMORY_V2, PROCESSES_V3. Raises RuntimeError
    when there is no compiler: the tests of GPUs must not be skipped in silence.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError(
            "the tests of GPUs compile tests/support/fake_nvml/fake_nvml.c: install gcc"
        )
    folder.mkdir(parents=True, exist_ok=True)
    name = "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{name}"]
    flags += [f"-DWITHOUT_{function}" for function in without]
    argv = [compiler, *flags, "-o", str(folder / name), str(SOURCE)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{compiler} cannot compile {SOURCE}:\n{done.stderr}")
    return folder


def write_figures(path: Path, devices: Sequence[Gpu], init_error: int = 0) -> Path:
    """The file the library reads; it changes as a whole, also under a reader."""
    lines = [f"init {init_error}"]
    for gpu in devices:
        lines.append(_line("gpu", gpu))
        lines += ["gap" if part is None else _line("mig", part) for part in gpu.mig or ()]
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text("\n".join(lines) + "\n")
    aside.replace(path)
    return path


def _line(kind: str, gpu: Gpu) -> str:
    used = gpu.pids if isinstance(gpu.pids, Mapping) else {}
    pids = ",".join(f"{pid}:{used[pid]}" if pid in used else str(pid) for pid in gpu.pids) or "-"
    figures = (gpu.total_mib, gpu.free_mib, pids, gpu.error, gpu.memory_error, gpu.compute_mode)
    # Most boards answer "not supported" when asked for their MIG mode: -1 in the file.
    mig_mode = -1 if gpu.mig is None else 1
    load = (gpu.utilisation, gpu.temperature_c, gpu.clock_mhz, gpu.pcie_lanes)
    return " ".join(map(str, (kind, gpu.uuid, *figures, mig_mode, *load, gpu.name)))


def environment(library: Path, figures: Path) -> dict[str, str]:
    """What a child process needs to see the fake GPUs instead of real ones."""
    others = os.environ.get("LD_LIBRARY_PATH")
    return {
        "LD_LIBRARY_PATH": f"{library}:{others}" if others else str(library),
        "FAKE_NVML_FIGURES": str(figures),
    }
