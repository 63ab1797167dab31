"""The tasks so far are handed to an app that has a key for them, and to no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bench import REPOSITORY, Bench

COMMAND = (
    "hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.warm=true",
    "task=low,high", "rate=0.5",
)  # fmt: skip


@pytest.fixture
def smallest(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, REPOSITORY / "examples/minimal/app.py")
    yield bench
    bench.close()


def second(bench: Bench) -> tuple[list[str], str]:
    """What the second job evaluated, and the override of its tasks so far."""
    words = [text for text in bench.events("start")[1]["overrides"] if "seen_tasks=" in text]
    assert len(words) < 2
    return list(bench.finished()[1]["eval"]), "".join(words)


def test_the_smallest_app_measures_every_task_so_far(smallest: Bench) -> None:
    smallest.run(*COMMAND)
    assert second(smallest) == (["low", "high"], "seen_tasks=[low,high]")
    fingerprint = smallest.events("sweep")[0]["fingerprint"]
    handover = {"init_from": "checkpoint", "seen_tasks": "seen_tasks"}
    assert fingerprint["hydra.sweeper.handover"] == handover


@pytest.mark.parametrize(
    ("more", "evaluated", "word"),
    [
        ("+hydra.sweeper.handover.seen_tasks=null", ["high"], ""),
        ("seen_tasks=[high,low]", ["high", "low"], "seen_tasks=[high,low]"),
        ("hydra.sweeper.handover.init_from=null", ["high"], ""),
    ],
    ids=["switched off", "the user's", "no checkpoints"],
)
def test_otherwise_nothing_changes(
    smallest: Bench, more: str, evaluated: list[str], word: str
) -> None:
    smallest.run(*COMMAND, more)
    assert second(smallest) == (evaluated, word)
    fingerprint = smallest.events("sweep")[0]["fingerprint"]
    assert "seen_tasks" not in fingerprint["hydra.sweeper.handover"]
