"""The tutorials' programs, put together as each page says and swept with the page's command."""

from __future__ import annotations

import difflib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.installed import CLEAN, ROOT

ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
TUTORIALS = ("avalanche", "huggingface", "lightning", "machines", "migration", "slurm")


def blocks(page: str, kind: str) -> list[str]:
    text = (ROOT / f"docs/{page}.md").read_text("utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    return [block for one, block in found if one == kind]


def converted(page: str) -> tuple[str, str]:
    """A page's plain script, and the app: new imports on top, a new `main` at the end."""
    plain, imports, main = blocks(page, "python")
    return plain, imports + plain[: plain.index("def main():")] + main


def command(page: str, program: str) -> list[str]:
    lines = [line for block in blocks(page, "") for line in block.splitlines()]
    (found,) = (line for line in lines if line.startswith(f"python {program}"))
    return shlex.split(found)[1:]


def best(folder: Path, argv: list[str]) -> dict[str, Any]:
    """What the sweep of this command line found, in a process of its own."""
    environment = {**CLEAN, **ON_LOOPBACK, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"AUTOCL_LEASE_DIR": str(folder / "leases"), "HOME": str(folder)}
    argv = [sys.executable, *argv, f"hydra.sweep.dir={folder / 'swept'}"]
    done = subprocess.run(
        argv, cwd=folder, env=environment, text=True, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = yaml.safe_load((folder / "swept/optimization_results.yaml").read_text())
    assert isinstance(found, dict)
    return found


def app(folder: Path, page: str, program: str, text: str) -> list[str]:
    (folder / program).write_text(text)
    (folder / "conf").mkdir()
    (configuration,) = blocks(page, "yaml")
    (folder / "conf/config.yaml").write_text(configuration)
    return command(page, program)


@pytest.mark.parametrize("page", TUTORIALS)
def test_the_programs_of_a_tutorial_are_python(page: str) -> None:
    for program in blocks(page, "python"):
        compile(program, page, "exec")


def test_a_lightning_script_becomes_an_app_by_as_many_new_lines_as_its_page_says() -> None:
    plain, after = (text.splitlines() for text in converted("lightning"))
    new = [line for line in difflib.ndiff(plain, after) if line[:2] == "+ " and line[2:].strip()]
    (said,) = re.findall(r"(\d+) new lines", (ROOT / "docs/lightning.md").read_text())
    assert len(new) == int(said) == 14


def test_the_configuration_for_the_optuna_sweeper_runs_with_its_changed_lines(
    tmp_path: Path,
) -> None:
    (program,) = blocks("migration", "python")
    found = best(tmp_path, app(tmp_path, "migration", "sphere.py", program))
    assert isinstance(found["best_value"], float) and found["best_value"] <= 2.0  # x = y = 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "library"),
    [
        ("lightning", "pytorch_lightning"),
        ("huggingface", "transformers"),
        ("avalanche", "avalanche"),
    ],
)
def test_a_training_tutorial_ends_with_a_chain_through_its_three_tasks(
    tmp_path: Path, page: str, library: str
) -> None:
    pytest.importorskip(library)
    text = blocks(page, "python")[0] if page == "avalanche" else converted(page)[1]
    found = best(tmp_path, app(tmp_path, page, "app.py", text))
    assert [stage["task"] for stage in found["chain"]] == ["a", "b", "c"]
    mean = found["metrics"]["eval"]["average_accuracy"]  # of all three, after the last
    assert found["best_value"] == pytest.approx(mean) and 0.5 < mean <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("page", "library"), [("machines", "ray"), ("slurm", "submitit")])
def test_the_example_runs_on_the_other_launchers(tmp_path: Path, page: str, library: str) -> None:
    pytest.importorskip(library)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    found = best(tmp_path, command(page, "examples/"))
    assert found["best_value"] == pytest.approx(0.8929333)
