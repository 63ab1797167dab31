"""carry_from: an older sweep is read, refused or learned from, and what comes from it says so."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.bench import APPS, Bench
from support.lineages import Simulated, completed
from support.plans import plan_of

from autocl_sweeper.errors import ChangedSweepError, ConfigurationError
from autocl_sweeper.journal import read
from autocl_sweeper.types import Carried, History, Outcome, Trial

RELAY = {"factory": "autocl_sweeper.search.relay.RelaySearch"}


def sweep(folder: Path, tasks: str = "a,b", **settings: Any) -> History:
    """A real sweep on one simulated device: a job's score is its x, whatever else it gets."""
    given = {"params": {"x": "interval(0,1)"}, "search": RELAY, "jobs": 4, **settings}

    def end(lineage: Sequence[Trial]) -> Outcome:
        return completed(float(lineage[-1].suggestion.params["x"]), folder)  # type: ignore[arg-type]

    return Simulated(folder, plan_of(f"task={tasks}", **given), end).history


pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    sweep(tmp_path / "old")
    return tmp_path / "old"


def best(history: History, count: int, sign: int = 1) -> list[Any]:
    trials = sorted(history.stage(2), key=lambda trial: -sign * (trial.score or 0))
    return trials[:count]


def test_the_first_stage_begins_with_the_winners_of_the_older_sweep(
    tmp_path: Path, old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = sweep(old)
    caplog.set_level(logging.INFO)
    history = sweep(tmp_path / "new", "c,d", carry_from=str(old), jobs=6)
    first = [trial.suggestion for trial in history.stage(1)][:3]
    # Winners of the later of two stages weigh 0.9 / rank, those of the first 0.81 / rank.
    winner = best(before, 1)[0]
    assert first[0].params == winner.suggestion.params
    assert [one.origin for one in first] == ["carried"] * 3
    assert first[0].carried == Carried("b", 1, str(old)) and first[0].source == winner.number
    told = f"(carried from b, trial {winner.number} of {old}; 1 of 1 keys carried)"
    assert any(line.endswith(told) for line in caplog.messages)
    own = history.stage(2)[0].suggestion
    assert own.origin == "own" and own.carried == Carried("c", 1)


def test_files_say_which_sweep_and_trial_a_suggestion_is_from(tmp_path: Path, old: Path) -> None:
    history = sweep(tmp_path / "new", "c", carry_from=str(old), jobs=2)
    source = history[0].suggestion.source
    with open(tmp_path / "new/trials.csv", newline="") as file:
        row = next(csv.DictReader(file))
    told: Mapping[str, Any] = {
        "origin": "carried", "source": source, "source_task": "b", "source_sweep": str(old),
        "keys_carried": 1,
    }  # fmt: skip
    assert {key: row[key] for key in told} == {key: str(value) for key, value in told.items()}
    lines = (tmp_path / "new/autoCL_result.txt").read_text().splitlines()
    first = json.loads(lines[1])
    assert {key: first[key] for key in told} == told
    chain = yaml.safe_load((tmp_path / "new/optimization_results.yaml").read_text())["chain"]
    assert chain[0]["origin"] == "carried" and chain[0]["source_sweep"] == str(old)


def test_an_older_sweep_that_minimized_carries_its_lowest_scores(tmp_path: Path) -> None:
    before = sweep(tmp_path / "old", direction="minimize")
    history = sweep(tmp_path / "new", "c", carry_from=str(tmp_path / "old"), jobs=2)
    assert history[0].suggestion.params == best(before, 1, sign=-1)[0].suggestion.params


def test_a_sweep_continues_with_an_older_sweep_as_it_was_and_refuses_one_that_grew(
    tmp_path: Path, old: Path
) -> None:
    whole = sweep(tmp_path / "whole", "c,d", carry_from=str(old))
    records = read(tmp_path / "whole")
    for length in (3, 6, 11):
        folder = tmp_path / str(length)
        folder.mkdir()
        lines = "".join(json.dumps(one) + "\n" for one in records[:length])
        (folder / "journal.jsonl").write_text(lines)
        again = sweep(folder, "c,d", carry_from=str(old))
        assert [t.suggestion for t in again] == [t.suggestion for t in whole]
    grown = "".join(json.dumps(one) + "\n" for one in read(old))
    (old / "journal.jsonl").write_text(grown.replace('"score": 0.', '"score": 1.'))
    with pytest.raises(ChangedSweepError, match=r"carry_from / digest: was"):
        sweep(tmp_path / "whole", "c,d", carry_from=str(old))


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/journal.jsonl").write_text('{"event": "moved", "x": 1}\n')
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/journal.jsonl").write_text('{"event": "session", "pid": 1}\n')
    for name in ("missing", "empty", "foreign", "begun"):
        with pytest.raises(ConfigurationError, match=rf"{name} is not the folder of a sweep"):
            plan_of("task=a", "x=1,2", search=RELAY, carry_from=str(tmp_path / name))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"params": {"y": "interval(0,1)"}}, r"(?s)no key in common.*searched: x.*searches: y"),
        ({"params": {"x": "small,large"}}, r"(?s)searched: x \(numbers\).*searches: x \(names\)"),
        ({"transfer": False}, r"transfer=false"),
        ({"search": {"factory": "autocl_sweeper.search.random.RandomSearch"}},
         r"RandomSearch does not learn"),
    ],
    ids=["no common key", "another type", "no transfer", "no search that learns"],
)  # fmt: skip
def test_an_older_sweep_that_cannot_help_is_refused(
    old: Path, settings: dict[str, Any], told: str
) -> None:
    wanted = {"params": {"x": "interval(0,1)"}, "search": RELAY, "jobs": 2, **settings}
    with pytest.raises(ConfigurationError, match=told):
        plan_of("task=c", carry_from=str(old), **wanted)


def test_a_real_sweep_relays_by_default_and_another_takes_it_up(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    one, two = (Bench(tmp_path / name, APPS / "chain.py") for name in ("first", "second"))
    common = (
        "hydra/sweeper=autocl", "lr=interval(1,3)", "hydra.sweeper.jobs=3", "hydra/launcher=gpu",
        "hydra.launcher.cpu_slots=1", "hydra.launcher.warm=true",
    )  # fmt: skip
    try:
        printed = one.run("task=a,b", *common)
        starts = one.events("start")
        assert [event["origin"] for event in starts[:4]][-1] == "own"
        source = starts[3]["source"]
        assert f"(carried from a, trial {source}; 1 of 1 keys carried)" in printed
        assert " origin " in printed  # a column of the tables at the end
        printed = two.run("task=c", *common, f"hydra.sweeper.carry_from={one.sweep}")
        carried = next(event for event in two.events("start") if event["origin"] == "carried")
        assert carried["carried"]["sweep"] == str(one.sweep)
        assert f"trial {carried['source']} of {one.sweep}; 1 of 1 keys" in printed
    finally:
        one.close()
        two.close()
