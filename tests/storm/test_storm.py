"""A minute of the storm, with another seed each time; `make storm` is the whole of it."""

from __future__ import annotations

import pytest
from storm import KINDS, main


@pytest.mark.slow
def test_a_minute_of_the_storm_finds_nothing() -> None:
    assert sum(main(["--seconds", "60"]).values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_episode_works_by_itself(kind: str) -> None:
    assert sum(main(["--seed", "1", "--episode", "1", "--kinds", kind]).values()) > 0
