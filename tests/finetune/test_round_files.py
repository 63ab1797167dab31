"""log_file.txt, best_model, schedule.yaml, links and scalars of a search in rounds."""

from __future__ import annotations

import csv
import json
import logging
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.plans import plan_of
from support.rounds import FULLTRAIL, POPULATION, SETTINGS, Jobs, option, swept

from autocl_sweeper.display.progress import LogProgress
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.rounds import scalars
from autocl_sweeper.rounds.watch import RoundsProgress
from autocl_sweeper.sweep.loop import Sweep
from autocl_sweeper.types import History


@pytest.fixture
def without_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scalars, "find_spec", lambda name: None)


pytestmark = pytest.mark.usefixtures("without_events")


def watched(folder: Path, settings: dict[str, Any], **fails: Any) -> tuple[History, Jobs]:
    jobs = Jobs(folder, **fails)
    return swept(plan_of(**settings), jobs, RoundsProgress(LogProgress(), folder)), jobs


def table(path: Path, delimiter: str = "\t") -> list[dict[str, str]]:
    text = path.read_text()
    head, _, rows = text.partition("\n\n") if delimiter == "\t" else ("", "", text)
    assert head.count("\t") == 0
    return list(csv.DictReader(rows.splitlines(), delimiter=delimiter))


def test_log_file_has_a_row_per_trial_and_the_winner_on_top(tmp_path: Path) -> None:
    history, _ = watched(tmp_path, POPULATION, fails=[1])
    rows = table(tmp_path / "log_file.txt")
    assert list(rows[0]) == [
        *("round", "trial", "state", "score", "x", "n"),
        *("total epochs", "parent", "seconds", "saved_params_dir"),
    ]
    assert [(row["round"], row["trial"]) for row in rows] == [
        (str(r), str(i)) for r in range(3) for i in range(4)
    ]
    assert rows[1]["state"] == "FAIL" and rows[1]["score"] == ""
    for row, trial in zip(rows, history, strict=True):
        assert row["x"] == repr(trial.suggestion.params["x"])
        assert row["total epochs"] == ["own", "own+1", "own+2"][trial.stage - 1]
        if trial.parent is not None:
            parent = history[trial.parent]
            assert row["parent"] == f"{parent.stage - 2 + 1}/{parent.suggestion.index}"
    best = max(history.stage(3), key=lambda trial: trial.score or 0)
    head = (tmp_path / "log_file.txt").read_text().splitlines()[:4]
    params = best.suggestion.params
    assert head == [
        "rounds: 3 of 3 are over",
        f"best score: {best.score!r} (round 2, trial {best.suggestion.index})",
        f"best settings: x={params['x']!r} n={params['n']}",
        f"best model: {tmp_path / 'best_model'}",
    ]
    assert table(tmp_path / "visualization/trials.csv", ",") == rows


def test_total_epochs_are_numbers_where_the_first_ones_are_known(tmp_path: Path) -> None:
    settings = {**POPULATION, "population": {"first_epochs": 3, "epochs": 2}}
    watched(tmp_path, settings)
    rows = table(tmp_path / "log_file.txt")
    assert [row["total epochs"] for row in rows] == ["3"] * 4 + ["5"] * 4 + ["7"] * 4


@pytest.mark.parametrize("settings", [FULLTRAIL, POPULATION], ids=["fulltrail", "population"])
def test_best_model_is_a_copy_of_the_winners_and_replaced_as_a_whole(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "best_model").mkdir()
    (tmp_path / "best_model/left").touch()
    history, _ = watched(tmp_path, settings)
    last = history.stage(3) if settings is POPULATION else history
    best = max(last, key=lambda trial: trial.score or 0)
    assert [path.name for path in (tmp_path / "best_model").iterdir()] == ["score.json"]
    assert json.loads((tmp_path / "best_model/score.json").read_text()) == best.score
    assert not (tmp_path / "best_model").is_symlink()


def test_round_folders_lead_to_the_models_that_are_still_there(tmp_path: Path) -> None:
    history, _ = watched(tmp_path, POPULATION)
    needed = {one.number for number in history.beams[3] for one in history.lineage(history[number])}
    for trial in history:
        link = tmp_path / f"round{trial.stage - 1}/model-{trial.suggestion.index}"
        assert link.is_symlink() == (trial.number in needed)
        if trial.number in needed:
            assert json.loads((link / "score.json").read_text()) == trial.score
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert (moved / "best_model/score.json").is_file()
    assert all(link.exists() for link in moved.glob("round*/model-*"))
    moved.rename(tmp_path)


def test_trials_are_kept_on_request(tmp_path: Path) -> None:
    watched(tmp_path, {**POPULATION, "keep_checkpoints": "all"})
    assert len(list(tmp_path.glob("round*/model-*/score.json"))) == 12


def test_schedule_is_the_winners_chain_and_replays_to_its_score(tmp_path: Path) -> None:
    history, first = watched(tmp_path / "first", POPULATION)
    file = tmp_path / "first/schedule.yaml"
    schedule = yaml.safe_load(file.read_text())
    best = max(history.stage(3), key=lambda trial: trial.score or 0)
    chain = history.lineage(best)
    assert [step["number"] for step in schedule["steps"]] == [one.number for one in chain]
    assert [step["params"] for step in schedule["steps"]] == [
        dict(t.suggestion.params) for t in chain
    ]
    assert [step["epochs"] for step in schedule["steps"]] == [None, 1, 1]
    assert schedule["score"] == best.score
    settings = {**SETTINGS, "parents": "population", "popsize": None, "rounds": 1, "params": {}}
    settings["population"] = {"replay": str(file)}
    again, second = watched(tmp_path / "second", settings)
    assert [trial.score for trial in again] == [one.score for one in chain]
    for key in ("x", "n", "epochs"):
        given = [option(job, key) for job in second.given]
        assert given == [option(first.given[one.number], key) for one in chain]


def test_schedule_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("steps: [{round: 0}]")
    settings = {**POPULATION, "popsize": None, "population": {"replay": str(tmp_path / "s.yaml")}}
    with pytest.raises(Exception, match="is no schedule: KeyError"):
        plan_of(**settings)


def test_crash_is_warned_of_in_the_words_of_the_original(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    history, _ = watched(tmp_path, FULLTRAIL, fails=[5])
    params = history[5].suggestion.params
    told = f"as x={params['x']!r} n={params['n']} was crashed!"
    (warning,) = (m for m in caplog.messages if "was crashed" in m)
    assert warning.splitlines()[0] == f"WARNING: Program which was ran with hyperparameters {told}"
    assert "round 1, trial 1: it broke" in warning
    assert str(tmp_path / "round1/log-1.info") in warning


def test_each_round_and_the_end_say_who_is_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    history, _ = watched(tmp_path, FULLTRAIL)
    for number in range(3):
        of_round = [history[4 * number + place] for place in range(4)]
        best = max(of_round, key=lambda trial: trial.score or 0)
        said = f"round {number} ({number + 1} of 3): local best score {best.score!r}"
        assert sum(message.startswith(said) for message in caplog.messages) == 1
    best = max(history, key=lambda trial: trial.score or 0)
    end = caplog.messages[-3:]
    assert end[0].startswith(f"best score {best.score!r} with x=")
    assert end[1].endswith(str(tmp_path / "best_model"))
    assert end[2].endswith(str(tmp_path / "log_file.txt"))


def test_winner_that_saved_nothing_empties_best_model_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(tmp_path)
    run = jobs.executor._run

    def saving_nothing(job: Any) -> Any:
        outcome = run(job)
        for path in Path(str(outcome.checkpoint)).iterdir():
            path.unlink()
        return outcome

    jobs.executor._run = saving_nothing
    swept(plan_of(**FULLTRAIL), jobs, RoundsProgress(LogProgress(), tmp_path))
    assert list((tmp_path / "best_model").iterdir()) == []
    assert "is the best and has saved nothing" in caplog.text


def test_tasks_of_a_sequence_have_files_of_their_own(tmp_path: Path) -> None:
    settings = {**POPULATION, "sequence": "task", "rounds": 2}
    plan = plan_of("task=a,b", **settings)
    swept(plan, Jobs(tmp_path), RoundsProgress(LogProgress(), tmp_path))
    for root in ("1_a", "2_b"):
        assert len(table(tmp_path / root / "log_file.txt")) == 8
        assert (tmp_path / root / "best_model/score.json").is_file()
    steps = yaml.safe_load((tmp_path / "2_b/schedule.yaml").read_text())["steps"]
    assert [step["task"] for step in steps] == ["b", "b"]


def test_files_of_a_search_that_is_continued_are_whole(tmp_path: Path) -> None:
    """As after a kill: an open round, and files of the controller that died."""
    plan = plan_of(**POPULATION)
    jobs = Jobs(tmp_path)

    class Killed(Exception): ...

    class Stops(LogProgress):
        def finished(self, trial: Any) -> None:
            super().finished(trial)
            if trial.number == 6:
                raise Killed

    sweep = Sweep(tmp_path, plan, jobs.executor, JobFiles.of(tmp_path), Stops())
    with pytest.raises(Killed):
        sweep.run()
    (tmp_path / ".best_model.new").mkdir()
    (tmp_path / "log_file.txt").write_text("half of a li")
    rest = Jobs(tmp_path)
    rest.fails = ()
    history = swept(plan, rest, RoundsProgress(LogProgress(), tmp_path))
    untouched, _ = watched(tmp_path / "untouched", POPULATION)
    assert [t.suggestion.params for t in history] == [t.suggestion.params for t in untouched]
    one, other = (
        (folder / "log_file.txt").read_text().replace(str(folder), "")
        for folder in (tmp_path, tmp_path / "untouched")
    )
    assert one == other
    assert not (tmp_path / ".best_model.new").exists()


# -- scalars ----------------------------------------------------------------------------------------


def test_scalars_are_those_of_the_original(tmp_path: Path) -> None:
    history, _ = watched(tmp_path, {**FULLTRAIL, "rounds": 2}, fails=[1])
    from autocl_sweeper.rounds.table import Rounds

    plan = plan_of(**{**FULLTRAIL, "rounds": 2})
    found = scalars.scalars_of(Rounds(plan, history, "sweep"))
    assert list(found) == ["", "pop_0", "pop_1", "pop_2", "pop_3"]
    best = [max(t.score or 0 for t in list(history)[:n]) for n in (4, 8)]
    values = [(step, n) for tag, step, n in found[""] if tag.endswith("/best_eval_value")]
    assert values == [(1, best[0]), (2, best[1])]
    x = [float(history[n].suggestion.params["x"]) for n in (1, 5)]  # type: ignore[arg-type]
    moves = [
        (tag, step, n) for tag, step, n in found["pop_1"] if tag == "population_transformation/x"
    ]
    assert moves == [("population_transformation/x", step, x[step - 1]) for step in (1, 2)]
    scores = [step for tag, step, _ in found["pop_1"] if tag.endswith("/eval_value")]
    assert scores == [2], "a failed trial has no score"
    tags = {tag for tag, _, _ in found[""]}
    assert tags == {f"hyperparameter_tuning/{name}" for name in ("x", "n", "best_eval_value")}


def test_event_files_hold_the_scalars_and_are_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as in the process that writes them
    pytest.importorskip("tensorboardX")
    from autocl_sweeper.rounds.events import write_runs

    write_runs(tmp_path, {"": [("a/b", 1, 0.5)], "pop_0": [("c", 1, 0.25)]})
    (tmp_path / "events.out.tfevents.1.old").touch()
    write_runs(tmp_path, {"": [("a/b", 1, 0.5), ("a/b", 2, 0.75)], "pop_0": [("c", 1, 0.25)]})
    (file,) = tmp_path.glob("events*")
    assert _scalars(file) == [("a/b", 1, 0.5), ("a/b", 2, 0.75)]
    (file,) = tmp_path.glob("pop_0/events*")
    assert _scalars(file) == [("c", 1, 0.25)]
    assert not (tmp_path / ".new").exists()


def _scalars(path: Path) -> list[tuple[str, int, float]]:
    """The records of an event file: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return found
