"""`report_final_result`: a score reported instead of returned."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
from support.bench import Bench

import autocl_sweeper
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.reporter import VARIABLE, final_result, report_final_result

APP = """
import os, sys
import hydra
import autocl_sweeper

@hydra.main(version_base=None, config_path=None)
def main(config):
    autocl_sweeper.report_final_result(config.x / 2)
    autocl_sweeper.report_final_result(config.x)
    if config.x == 3:
        sys.exit(4)
    if config.x == 4:
        return 0.5

main()
"""


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "0.reports"
    monkeypatch.setenv(VARIABLE, str(path))
    return path


class Tensor:
    """What torch scalars have in common with numpy's."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def item(self) -> float:
        if len(self.values) != 1:
            raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")
        return self.values[0]


@pytest.mark.parametrize(
    ("score", "read"),
    [
        (0.5, 0.5),
        (-3, -3.0),
        (Fraction(1, 4), 0.25),
        (numpy.float32(0.25), 0.25),
        (numpy.int64(2), 2.0),
        (numpy.array(0.125), 0.125),
        (Tensor(0.75), 0.75),
        (math.inf, math.inf),
        (10**400, math.inf),
    ],
)
def test_score_of_any_number_is_read_back(reports: Path, score: Any, read: float) -> None:
    report_final_result(score)
    assert final_result() == final_result(reports) == read
    assert [path.name for path in reports.parent.iterdir()] == ["0.reports.final"]


@pytest.mark.parametrize(
    "score", ["0.5", None, True, numpy.True_, [0.5], Tensor(1, 2), numpy.zeros(2), 1j, Decimal(1)]
)
def test_score_that_is_no_number_is_refused(reports: Path, score: Any) -> None:
    with pytest.raises(ValueError, match="not a number"):
        report_final_result(score)
    assert final_result() is None


def test_last_call_wins_and_nan_is_kept_for_the_verdict(reports: Path) -> None:
    report_final_result(0.5)
    report_final_result(math.nan)
    found = final_result()
    assert found is not None and math.isnan(found)


def test_final_result_is_forgotten_with_its_job(tmp_path: Path, monkeypatch: Any) -> None:
    files = JobFiles.of(tmp_path)
    files.folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(files.reports(3)))
    report_final_result(0.5)
    assert files.returned(3, None) == 0.5 and files.returned(3, 0.25) == 0.25
    files.forget(3)
    assert files.returned(3, None) is None


def test_outside_a_sweep_the_score_is_printed_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    autocl_sweeper.report_final_result(numpy.float32(0.5))
    assert capsys.readouterr().out == "final result: 0.5\n"
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone" / "0.reports"))  # the sweep ended before
    autocl_sweeper.report_final_result(0.5)


@pytest.mark.parametrize("launcher", ["gpu", "basic"])
def test_hydra_app_reports_where_it_returns_nothing(launcher: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    bench = Bench(tmp_path, tmp_path / "app.py")
    try:
        ours = ("hydra/sweeper=autocl", f"hydra/launcher={launcher}", "+task=a", "+x=2,3,4")
        bench.run(*ours, "hydra.sweeper.handover.init_from=null")
        scores = {trial: event["score"] for trial, event in bench.finished().items()}
        assert scores == {0: 2.0, 1: None, 2: 0.5}
    finally:
        bench.close()
