"""Hydra imports our plugin in every app of the environment: it must cost nothing and break nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("autocl_sweeper", "torch", "optuna", "pynvml", "rich", "joblib", "cloudpickle", "numpy")
OURS = ("_schema", "config", "guard", "include", "launcher", "sweeper")
APP = """
import hydra
from omegaconf import DictConfig

@hydra.main(version_base=None, config_path=".", config_name="app")
def main(cfg: DictConfig) -> float:
    print(f"x is {cfg.x}")
    return float(cfg.x)

main()
"""


def run(*arguments: str, cwd: Path, before: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python with the plugin on its path; modules in `before` hide those of the same name."""
    path = [*([str(before)] if before else []), str(ROOT)]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=300
    )


def said(done: subprocess.CompletedProcess[str]) -> object:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_after_the_scan_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    code = (
        "import json, sys; from hydra.core.plugins import Plugins\n"
        "names = [c.__name__ for c in Plugins.instance().discover()]\n"
        "assert {'AutoCLSweeper', 'GPULauncher'} <= set(names), names\n"
        f"print(json.dumps([m for m in sys.modules if m.split('.')[0] in {HEAVY}]))"
    )
    assert said(run("-c", code, cwd=tmp_path)) == []


def test_our_modules_load_nothing_that_hydra_has_not_loaded(tmp_path: Path) -> None:
    code = (
        "import __future__, json, sys, hydra.main, hydra.core.plugins, hydra._internal.core_plugins\n"
        "from hydra._internal.core_plugins import basic_launcher, basic_sweeper\n"
        "from hydra._internal.core_plugins import file_config_source\n"
        "before = set(sys.modules)\n"
        f"for name in {OURS}: __import__('hydra_plugins.hydra_autocl_sweeper.' + name)\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    home = "hydra_plugins.hydra_autocl_sweeper"
    ours = ["hydra_plugins", home, *(f"{home}.{name}" for name in OURS)]
    assert said(run("-c", code, cwd=tmp_path)) == ours


def test_a_second_scan_as_in_every_worker_warns_of_nothing(tmp_path: Path) -> None:
    code = (
        "import json; from hydra.core.singleton import Singleton\n"
        "from hydra.core.plugins import Plugins; from hydra.core.config_store import ConfigStore\n"
        "Plugins.instance(); Singleton.set_state(Singleton.get_state()); Plugins.instance()\n"
        "groups = [('hydra/sweeper', 'autocl.yaml'), ('hydra/launcher', 'gpu.yaml')]\n"
        "groups += [('hydra/sweeper/search', 'grid.yaml')]\n"
        "print(json.dumps([name in ConfigStore.instance().list(group) for group, name in groups]))"
    )
    assert said(run("-W", "error", "-c", code, cwd=tmp_path)) == [True, True, True]


@pytest.mark.parametrize(
    "fault, ours",
    [("ImportError", "hydra/sweeper=autocl"), ("RuntimeError", "hydra/launcher=gpu")],
)
def test_a_broken_core_shows_in_its_own_sweeps_and_nowhere_else(
    tmp_path: Path, fault: str, ours: str
) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "app.yaml").write_text("x: 1")
    broken = tmp_path / "broken"
    (broken / "autocl_sweeper").mkdir(parents=True)
    (broken / "autocl_sweeper/__init__.py").write_text(f"raise {fault}('the core is broken')")

    alone = run("app.py", "x=7", cwd=tmp_path, before=broken)
    assert (alone.returncode, alone.stdout) == (0, "x is 7\n"), alone.stderr
    assert "the core is broken" not in alone.stderr
    swept = run("app.py", "-m", "x=8,9", cwd=tmp_path, before=broken)
    assert swept.returncode == 0 and "x is 9" in swept.stdout, swept.stderr

    used = run("app.py", "-m", ours, "x=8,9", cwd=tmp_path, before=broken)
    assert used.returncode != 0 and "the core is broken" in used.stderr
    assert "x is" not in used.stdout
