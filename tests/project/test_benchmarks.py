"""Benchmarks run on the code as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from support.bench import REPOSITORY


@pytest.mark.parametrize(
    ("words", "figure"),
    [
        (["scale.py", "20", "--inline"], r"controller CPU per trial: mean \d+\.\d\d ms"),
        pytest.param(
            ["utilisation.py", "--seeds", "1"],
            r"\| longest, durations known \| .* \| 1\.000 \|",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_small_run_of_a_benchmark_of_the_launchers_prints_figures(
    words: list[str], figure: str
) -> None:
    program = REPOSITORY / "benchmarks/launchers" / words[0]
    done = subprocess.run(
        [sys.executable, str(program), *words[1:]],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(figure, done.stdout), done.stdout
