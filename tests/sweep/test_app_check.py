"""`hydra.sweeper.check`: the app's own check of every job that is planned, before any of them starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bench import APPS, Bench

RULES = """
from hydra.errors import HydraException

def check(config):
    if config.lr > 5:
        raise HydraException(f"lr={config.lr} is above 5, with {config.hydra.launcher.cpu_slots} slots")
    if config.lr < 0:
        raise ValueError(config.lr)
    return {"net": {"depth": 3}}
"""


@pytest.fixture
def bench(benches: Callable[..., Bench], tmp_path: Path) -> Bench:
    """tests/support/apps/chain.py with a check that it names once, for every sweep of ours."""
    shutil.copytree(APPS, tmp_path / "apps")
    (tmp_path / "apps/rules.py").write_text(RULES)
    named = tmp_path / "apps/conf/hydra/sweeper/app/autocl.yaml"
    named.parent.mkdir(parents=True)
    named.write_text("check: rules.check\n")
    return benches(tmp_path / "apps/chain.py")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["lr=1,9", "hydra.launcher.cpu_slots=2"],
            ["ConfigurationError: Task 'a' is refused by hydra.sweeper.check=rules.check:\n",
             "\nlr=9 is above 5, with 2 slots\n", "No job was started."],
        ),
        (["lr=-1"], ["\nValueError: -1\n", "No job was started."]),
        (
            ["lr=1", "hydra.sweeper.check=rules.gone"],
            ["hydra.sweeper.check=rules.gone cannot be imported", "package.module.function"],
        ),
    ],
)  # fmt: skip
def test_a_sweep_whose_check_refuses_a_job_starts_none(
    bench: Bench, arguments: list[str], words: list[str]
) -> None:
    ours = ("hydra/sweeper=autocl", "hydra/launcher=gpu", "task=a,b")
    printed = bench.run(*ours, *arguments, status=1)
    assert [word for word in words if word not in printed] == []
    assert bench.ledger() == [] and "Traceback" not in printed


def test_jobs_that_pass_the_check_run_and_other_sweepers_know_nothing_of_it(bench: Bench) -> None:
    bench.run("hydra/sweeper=autocl", "task=a", "lr=1")
    bench.run("task=a", "lr=9")
    assert [event["lr"] for event in bench.ledger("start")] == [1, 9]


def test_a_search_begins_with_the_values_that_only_the_check_knows(bench: Bench) -> None:
    space = ("lr=interval(0.5, 2)", "+net.depth=range(1, 9)")
    bench.run("hydra/sweeper=autocl", "task=a", "hydra.sweeper.jobs=2", *space)
    first, second = bench.events("start")
    assert first["params"] == {"lr": 1.0, "+net.depth": 3} and first["origin"] == "init"
    assert second["params"] != first["params"] and second["origin"] == "fresh"
