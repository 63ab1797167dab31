"""Virtual environments that this project is installed in as users install it, in seconds and offline.

    environment = installed("wheel", folder)      # or "editable"; made once for a folder
    environment.run("app.py", "-m", "hydra/sweeper=autocl", cwd=tmp_path)

An environment holds what `install_requires` brings, as links to the packages of the environment the
tests run in, and nothing else: no torch, no pytest, and nothing of the checkout but what was installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
HOWS = ("wheel", "editable")
REQUIRES = (
    "cloudpickle",
    "cma",
    "cmaes",
    "hydra-core",
    "hydra-joblib-launcher",
    "nvidia-ml-py",
    "omegaconf",
    "optuna",
    "rich",
    "scipy",
)
"""All that the core may need; each is explained in docs/dependencies.md. setup.py is compared with this."""

# Another machine's GPUs are none of our business here: jobs run on CPU slots.
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HYDRA"))}
CLEAN |= {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}


@dataclass(frozen=True)
class Environment:
    folder: Path
    source: Path  # the copy of the checkout that was installed

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def site_packages(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    def run(self, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """`python *arguments` in `cwd`, as a user of this environment would."""
        command = [self.python, *map(str, arguments)]
        # Sweeps of the machine's other environments must not be waited for.
        env = CLEAN | {"AUTOCL_LEASE_DIR": str(self.folder / "leases")}
        return subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300
        )


@cache
def installed(how: str, folder: Path) -> Environment:
    """An environment below `folder` with a copy of the checkout in it: as a "wheel" or "editable"."""
    source = copy_of_the_checkout(folder / f"{how}-source")
    environment = Environment(bare(folder / f"{how}-environment"), source)
    what = ["--editable", str(source)] if how == "editable" else [str(wheel(source))]
    _pip("--python", environment.python, "install", *OFFLINE, "--no-deps", *what)
    return environment


def bare(folder: Path) -> Path:
    """A virtual environment with what our requirements bring, without us."""
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for name in sorted(_brought_by([*REQUIRES, "setuptools"])):  # setuptools builds
        _link(name, site_packages)
    return folder


def copy_of_the_checkout(folder: Path) -> Path:
    made = (".*", "*.egg-info", "__pycache__", "build", "dist", "demo", "multirun", "outputs")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*made))
    return folder


def wheel(source: Path) -> Path:
    """The wheel built from a folder, in its dist/, or from a source distribution, beside it."""
    folder = source / "dist" if source.is_dir() else source.parent
    _pip("wheel", *OFFLINE, "--no-deps", "--wheel-dir", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


OFFLINE = ("--no-index", "--no-build-isolation")


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def _brought_by(names: list[str]) -> set[str]:
    found: set[str] = set()
    while names:
        name = names.pop()
        if name in found:
            continue
        found.add(name)
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.append(requirement.name.lower())
    return found


def _link(name: str, site_packages: Path) -> None:
    """The packages of one distribution; never a whole namespace, others have parts in it."""
    home = Path(str(distribution(name).locate_file("")))
    for file in distribution(name).files or ():
        depth = 2 if file.parts[0] == "hydra_plugins" else 1
        part = Path(*file.parts[:depth])
        target = site_packages / part
        package = part.name not in ("..", "__pycache__") and part.suffix != ".pth"
        if not package or target.exists() or not (home / part).exists():
            continue
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(home / part)
