"""Files written for hydra-optuna-sweeper run under hydra/sweeper=autocl with two lines changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.bench import Bench

APP = """
import hydra

@hydra.main(config_path="conf", config_name="config"{more})
def main(cfg):
    print(f"at {{cfg.x}} {{cfg.y}}")
    return cfg.x ** 2 + cfg.y ** 2

if __name__ == "__main__":
    main()
"""
# A file for hydra-optuna-sweeper, with every key that such files have.
THEIRS = """
defaults:
  - override hydra/sweeper: optuna
  - override hydra/sweeper/sampler: tpe

hydra:
  sweeper:
    sampler:
      seed: 123
    direction: minimize
    study_name: sphere
    storage: null
    n_trials: 4
    n_jobs: 1
    max_failure_rate: 0.0
    params:
      x: range(-5.5, 5.5, step=0.5)
      y: choice(-5, 0, 5)

x: 1
y: 1
"""
TWO_LINES = {
    "override hydra/sweeper: optuna": "override hydra/sweeper: autocl",
    "max_failure_rate: 0.0": "max_failures: 0",
}


def ours() -> str:
    changed = THEIRS
    for theirs, other in TWO_LINES.items():
        assert changed.count(theirs) == 1
        changed = changed.replace(theirs, other)
    return changed


@pytest.fixture
def sphere(benches: Callable[..., Bench], tmp_path: Path) -> Bench:
    from hydra import __version__

    folder = tmp_path / "app"
    (folder / "conf").mkdir(parents=True)
    more = ", version_base=None" if __version__.startswith("1.3") else ""
    (folder / "app.py").write_text(APP.format(more=more))
    (folder / "conf/config.yaml").write_text(ours())
    return benches(folder / "app.py")


def tried(bench: Bench) -> list[tuple[float, float]]:
    return [(e["params"]["x"], e["params"]["y"]) for e in bench.events("start")]


def test_their_file_runs_with_two_lines_changed(sphere: Bench) -> None:
    printed = sphere.run()
    assert "hydra.sweeper.n_jobs=1 is ignored" in printed
    assert "x: range(-5.5, 5.5, step=0.5) ends at 5.0 here" in printed
    points = tried(sphere)
    assert len(points) == 4 == len(set(points))
    assert all(-5.5 <= x <= 5 and (2 * x).is_integer() and y in (-5, 0, 5) for x, y in points)
    results = sphere.results()
    assert results["direction"] == "minimize"
    assert results["best_score"] == min(x * x + y * y for x, y in points)
    (setup,) = sphere.events("sweep")
    assert setup["fingerprint"]["hydra.sweeper.seed"] == 123


def test_the_group_of_samplers_chooses_the_search(sphere: Bench) -> None:
    sphere.run("hydra/sweeper/sampler=grid", "hydra.sweeper.params.x='choice(1)'")
    assert tried(sphere) == [(1, -5), (1, 0), (1, 5)]


def test_what_cannot_be_taken_over_is_reported_before_any_job(sphere: Bench) -> None:
    printed = sphere.run(
        "hydra/sweeper/sampler=nsgaii",
        "hydra.sweeper.direction=[minimize,minimize]",
        "hydra.sweeper.max_failure_rate=0.0",
        "hydra.sweeper.custom_search_space=app.configure",
        "hydra.sweeper.search_space={x:{type:int,low:2,high:8,step:2}}",
        status=1,
    )
    for said in ("several objectives", "selection=pareto", "max_failures=0", "hydra.sweeper.when",
                 "x: range(2, 10, 2)"):  # fmt: skip
        assert said in printed
    assert not sphere.sweep.exists()


def test_a_file_without_a_direction_is_refused(sphere: Bench) -> None:
    config = sphere.app.parent / "conf/config.yaml"
    config.write_text(config.read_text().replace("    direction: minimize\n", ""))
    assert "hydra.sweeper.direction is not given" in sphere.run(status=1)
    assert not sphere.sweep.exists()


def test_the_plugin_itself_keeps_working_beside_ours(sphere: Bench) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    (sphere.app.parent / "conf/config.yaml").write_text(THEIRS)
    sphere.run()
    theirs = yaml.safe_load((sphere.sweep / "optimization_results.yaml").read_text())
    assert theirs["name"] == "optuna"
    shutil.rmtree(sphere.sweep)
    # Its group gives every option of a sampler; ours knows the seed alone.
    (sphere.app.parent / "conf/config.yaml").write_text(ours())
    assert "is not taken over" not in sphere.run("hydra.sweeper.n_trials=2")
