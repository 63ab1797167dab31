"""Every example does what its README says: run as typed there, from another folder, as a real process."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.installed import ROOT, Environment, installed
from support.readme import BLOCKS, COMMANDS, typed

EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/README.md"))
LAUNCHER_ALONE = "gpu_launcher"
STRANGERS = "strangers_script"  # needs scikit-learn: tests/script/test_script_sweeps.py runs it


@dataclass(frozen=True)
class Sweep:
    printed: str
    folder: Path

    @property
    def trials(self) -> list[dict[str, str]]:
        """Those that count. How many began early and were given up is a matter of timing."""
        with (self.folder / "trials.csv").open() as file:
            return [trial for trial in csv.DictReader(file) if trial["state"] != "PRUNED"]

    @property
    def best(self) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load(
            (self.folder / "optimization_results.yaml").read_text()
        )
        return loaded


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return installed("wheel", tmp_path_factory.getbasetemp())


def command(readme: Path) -> list[str]:
    """The one `python ...` line of a README, its paths made absolute."""
    (line,) = (line for line in readme.read_text().splitlines() if line.startswith("python "))
    words = shlex.split(line)[1:]
    return [str(ROOT / word) if word.startswith("examples/") else word for word in words]


@pytest.fixture(scope="module")
def swept(
    environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Sweep]:
    """What the command of an example's README leaves, run once each."""

    @cache
    def sweep(example: str) -> Sweep:
        cwd = tmp_path_factory.mktemp(example)
        done = environment.run(*command(ROOT / "examples" / example / "README.md"), cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        (folder,) = cwd.glob("multirun/*/*")
        return Sweep(done.stdout, folder)

    return sweep


def test_every_example_has_a_readme_with_its_command() -> None:
    folders = {path.name for path in (ROOT / "examples").iterdir() if path.is_dir()}
    assert EXAMPLES and folders == set(EXAMPLES)


@pytest.mark.parametrize("example", sorted({*EXAMPLES} - {LAUNCHER_ALONE, STRANGERS}))
def test_the_command_of_the_readme_leaves_a_finished_sweep(
    swept: Callable[[str], Sweep], example: str
) -> None:
    sweep = swept(example)
    assert {trial["state"] for trial in sweep.trials} == {"COMPLETE"}
    assert sweep.best["stages_finished"] == sweep.best["stages"] == len(sweep.best["chain"])
    for trial in sweep.trials:
        assert (sweep.folder / trial["folder"] / "job.log").is_file()
        assert (sweep.folder / trial["folder"] / ".hydra/overrides.yaml").is_file()
    for name in ("journal.jsonl", "autoCL_result.txt", "multirun.yaml"):
        assert (sweep.folder / name).stat().st_size > 0
        assert name in sweep.printed or name == "multirun.yaml"
    left = [path for path in (ROOT / "examples" / example).rglob("*") if path.name == "multirun"]
    assert left == [], "the sweep belongs where the command was typed"


def test_the_minimal_app_learns_what_arithmetic_says(
    swept: Callable[[str], Sweep],
) -> None:
    sweep = swept("minimal")
    assert len(sweep.trials) == 3 + 2 * 3 + 2 * 3
    # low at 0.1 learned in full; half the way to middle: 0.3; 0.3 of the way to high: 0.48.
    chain = sweep.best["chain"]
    assert [entry["params"] for entry in chain] == [{"rate": 1.0}, {"rate": 0.5}, {"rate": 0.3}]
    model = json.loads((sweep.folder / chain[-1]["checkpoint"] / "model.json").read_text())
    assert model == pytest.approx(0.1 + 0.5 * 0.4 + 0.3 * 0.6)
    squares = (model - 0.1) ** 2 + (model - 0.5) ** 2 + (model - 0.9) ** 2
    assert sweep.best["best_score"] == pytest.approx(1 - squares / 3)
    # Exhaustively, with the beam: nothing it kept is worse than something it gave up.
    for stage in ("1", "2", "3"):
        scores = sorted(float(t["score"]) for t in sweep.trials if t["stage"] == stage)
        kept = [
            float(t["score"]) for t in sweep.trials if (t["stage"], t["selected"]) == (stage, "1")
        ]
        assert sorted(kept) == scores[-2:]


def unnumbered(text: str) -> list[str]:
    """Its lines without whole numbers: which number a trial gets is a matter of timing."""
    lines = [" ".join(re.sub(r"(?<![\d.])\d+(?![\d.])", "#", x).split()) for x in text.splitlines()]
    return [line for line in lines if line]


def test_the_first_sweep_of_the_readme_prints_what_it_shows_and_can_be_looked_at(
    swept: Callable[[str], Sweep],
) -> None:
    pytest.importorskip("vl_convert")
    first = next(line for line in COMMANDS if line.startswith("python "))
    assert first in (ROOT / "examples/minimal/README.md").read_text().splitlines()
    sweep = swept("minimal")
    (shown,) = (text for _, text in BLOCKS if text.startswith("Best chain"))
    printed, shown_lines = unnumbered(sweep.printed), unnumbered(shown)
    begin = printed.index(shown_lines[0])
    assert printed[begin : begin + len(shown_lines)] == shown_lines
    looks = [line for line in COMMANDS if line.startswith("autocl ") and "runs/" not in line]
    assert looks[0] == "autocl report"
    for line in looks:
        assert typed(line, sweep.folder.parents[2]).strip()
    assert (sweep.folder / "report.html").exists()


def test_the_launcher_alone_runs_each_job_of_hydras_own_sweeper_in_its_own_process(
    swept: Callable[[str], Sweep],
) -> None:
    folder = swept(LAUNCHER_ALONE).folder
    logs = [(folder / str(number) / "job.log").read_text() for number in range(6)]
    said = [
        re.search(r"pi is about ([\d.]+), by process (\d+) on a processor core", x) for x in logs
    ]
    assert all(3 < float(match[1]) < 3.3 for match in said if match)
    assert len({match[2] for match in said if match}) == 6
    assert not (folder / "journal.jsonl").exists()


def test_the_minimal_app_is_a_plain_hydra_app(environment: Environment, tmp_path: Path) -> None:
    app = ROOT / "examples/minimal/app.py"
    assert "autocl" not in app.read_text()
    done = environment.run(app, "task=middle", "rate=0.5", "hydra.run.dir=alone", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "alone/checkpoint/model.json").read_text()) == 0.25
