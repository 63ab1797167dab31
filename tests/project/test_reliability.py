"""Each promise of docs/reliability.md has a test, and that test exists."""

from __future__ import annotations

import re
import sys

import pytest
from support.bench import REPOSITORY

TABLE = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (REPOSITORY / "docs/reliability.md").read_text().splitlines()
    if line.startswith("|")
]
PROMISES = [row for row in TABLE[2:] if len(row) == 2 and ("test" in row[1] or "storm" in row[1])]


def names_of_tests() -> set[str]:
    files = (REPOSITORY / "tests").rglob("test_*.py")
    return {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }


@pytest.mark.parametrize("promise, behind", PROMISES, ids=[row[0][:40] for row in PROMISES])
def test_a_promise_names_tests_that_exist(promise: str, behind: str) -> None:
    sys.path.insert(0, str(REPOSITORY / "tests/storm"))
    from storm import KINDS

    files = re.findall(r"`(tests/[\w/]+\.py)`", behind)
    names = re.findall(r"`(test_\w+)`", behind)
    kinds = re.findall(r"storm `(\w+)`", behind)
    assert files or names or kinds, f"nothing is behind: {promise}"
    assert [file for file in files if not (REPOSITORY / file).is_file()] == []
    assert set(names) <= names_of_tests() and set(kinds) <= set(KINDS)


def test_every_kind_of_the_storm_is_named_with_a_promise() -> None:
    from storm import KINDS

    told = " ".join(behind for _, behind in PROMISES)
    assert {kind for kind in KINDS if f"storm `{kind}`" not in told} == set()
