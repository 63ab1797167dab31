"""Exports hold what the journal holds, and are read back by the libraries they are written for."""

from __future__ import annotations

import csv
import json
import logging
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.bench import Bench, wait_until
from support.journals import Written

from autocl_sweeper.cli import main
from autocl_sweeper.distributions import Choice, Interval, Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.export.exporter import Exporter
from autocl_sweeper.export.hparams import HParams
from autocl_sweeper.export.places import Places, places_of
from autocl_sweeper.export.rows import Beams, Described, Row, Rows
from autocl_sweeper.export.studies import Studies, absolute
from autocl_sweeper.plan.spaces import describe, distributions_of
from autocl_sweeper.types import History, Outcome, Report, State, Suggestion, Trial

TRIAL_NUMBERS = {0: "COMPLETE", 1: "COMPLETE", 2: "PRUNED", 3: "FAIL", 4: "COMPLETE", 5: "RUNNING"}

# What Optuna itself says of a storage, as JSON.
ASK_OPTUNA = """
import json, sys, optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
for url in sys.argv[1:]:
    storage = url if "://" in url else JournalStorage(JournalFileBackend(url))
    studies = {}
    for summary in optuna.get_all_study_summaries(storage):
        study = optuna.load_study(study_name=summary.study_name, storage=storage)
        studies[study.study_name] = {
            "direction": study.direction.name, "attrs": study.user_attrs, "trials": [
                {"state": t.state.name, "value": t.value, "params": t.params,
                 "kinds": {k: type(d).__name__ for k, d in t.distributions.items()},
                 "reports": t.intermediate_values, "attrs": t.user_attrs,
                 "seconds": t.duration.total_seconds() if t.duration is not None else None}
                for t in study.trials]}
    print(json.dumps(studies))
"""


def ask_optuna(*urls: str) -> list[dict[str, Any]]:
    """The studies in each storage, read by another process."""
    command = [sys.executable, "-W", "error", "-c", ASK_OPTUNA, *urls]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def events_of(folder: Path) -> list[Any]:
    """The events of the one file in a folder: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def hparams_of(folder: Path) -> tuple[dict[str, Any], dict[str, float], str]:
    """Parameters, last scalars and status of a trial's event file, as TensorBoard takes them."""
    from tensorboardX.proto.api_pb2 import Status
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    params: dict[str, Any] = {}
    scalars: dict[str, float] = {}
    status = ""
    for event in events_of(folder):
        for value in event.summary.value:
            if value.tag.startswith("_hparams_/"):
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                told = data.session_start_info.hparams
                params |= {key: getattr(v, v.WhichOneof("kind")) for key, v in told.items()}
                if value.tag.endswith("end_info"):
                    status = Status.Name(data.session_end_info.status)
            else:
                scalars[value.tag] = value.simple_value
    return params, scalars, status


# -- after the fact, from the journal alone ---------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hand-written sweep, exported by the command to SQLite, a journal file and TensorBoard."""
    folder = tmp_path_factory.mktemp("exported")
    Written(folder / "sweep").two_stages()
    for storage in (f"sqlite:///{folder}/new/optuna.db", f"{folder}/optuna.log"):
        arguments = ["--optuna", storage, "--study-name", "s", "--tensorboard", f"{folder}/board"]
        assert main(["export", str(folder / "sweep"), *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def studies(exported: Path) -> list[dict[str, Any]]:
    return ask_optuna(f"sqlite:///{exported}/new/optuna.db", f"{exported}/optuna.log")


def test_another_process_loads_one_study_per_stage(studies: list[dict[str, Any]]) -> None:
    for found in studies:
        assert list(found) == ["s/1_first", "s/2_second"]
        assert {study["direction"] for study in found.values()} == {"MAXIMIZE"}
        first = found["s/1_first"]["attrs"]
        assert (first["stage"], first["task"], first["beam"]) == (1, "first", [0, 1])


def test_states_values_and_attributes_are_those_of_the_journal(
    studies: list[dict[str, Any]],
) -> None:
    for found in studies:
        trials = {t["attrs"]["trial"]: t for study in found.values() for t in study["trials"]}
        assert {number: t["state"] for number, t in trials.items()} == TRIAL_NUMBERS
        values = {number: t["value"] for number, t in trials.items()}
        assert values == {0: 0.75, 1: 0.5, 2: 0.25, 3: None, 4: 0.625, 5: None}
        attributes = trials[4]["attrs"]
        assert attributes == {
            "trial": 4, "task": "second", "stage": 2, "parent": 0, "folder": "2_second/4",
            "attempt": 1, "origin": "carried", "source": 0, "seconds": 2.5,
        }  # fmt: skip
        assert trials[0]["attrs"]["eval/first"] == 0.75 and trials[0]["attrs"]["rows"] == 100
        assert trials[3]["attrs"]["reason"] == "exited with 1"
        assert trials[0]["seconds"] >= 0 and trials[5]["seconds"] is None


def test_reports_are_intermediate_values_by_step(studies: list[dict[str, Any]]) -> None:
    for found in studies:
        trials = found["s/1_first"]["trials"]
        assert trials[0]["reports"] == {"10": 0.25, "20": 0.5}
        scores = [str(trials[2]["reports"][step]) for step in ("10", "20", "30")]
        assert scores == ["0.125", "nan", "0.25"]
        assert found["s/2_second"]["trials"][1]["reports"] == {"10": 0.25}


def test_parameters_keep_their_distributions_and_inactive_ones_are_absent(
    studies: list[dict[str, Any]],
) -> None:
    for found in studies:
        adam, sgd = (found["s/1_first"]["trials"][number] for number in (0, 1))
        assert adam["params"] == {
            "lr": 0.001, "depth": 3, "optimizer": "adam", "widths": "[1, 2]", "extra": "null",
            "model": "vit", "size": 16,
        }  # fmt: skip
        assert sgd["params"]["optimizer.momentum"] == 0.5
        assert sgd["params"]["extra"] == '{"a": 1}' and sgd["params"]["widths"] == "[3]"
        kinds = {"lr": "FloatDistribution", "depth": "IntDistribution"}
        listed = ("optimizer", "widths", "extra", "model", "size")
        assert adam["kinds"] == kinds | dict.fromkeys(listed, "CategoricalDistribution")
        # Suggestions that are listed are choices.
        assert found["s/2_second"]["trials"][1]["params"] == {"lr": 0.2, "depth": 2}


def test_every_trial_that_is_over_has_its_subfolder_of_hparams(exported: Path) -> None:
    board = exported / "board/s"
    written = {str(path.parent.relative_to(board)) for path in board.rglob("events.*")}
    assert written == {*(f"1_first/{number}" for number in range(4)), "2_second/4"}
    params, scalars, status = hparams_of(board / "1_first/0")
    about = {"task": "first", "parent": "-", "state": "COMPLETE"}
    assert params == {
        "lr": 0.001, "depth": 3, "optimizer": "adam", "widths": "[1, 2]", "extra": "null",
        "model": "vit", "size": 16, **about,
    }  # fmt: skip
    numbers = {"score": 0.75, "eval/first": 0.75, "rows": 100, "seconds": 2.5}
    assert scalars == numbers | {"report": 0.5}
    assert status == "STATUS_SUCCESS"
    assert hparams_of(board / "1_first/3")[2] == "STATUS_FAILURE"
    assert hparams_of(board / "2_second/4")[0]["parent"] == "0"


def test_a_key_has_one_kind_in_the_whole_export(tmp_path: Path) -> None:
    known = {"t": {"x": Choice((1, "auto")), "y": Choice((1, 2)), "+z": Choice((True, False))}}
    board = HParams(tmp_path, known)
    board.write([row(0, {"x": 1, "y": 1, "+z": True})], {})
    params, _, _ = hparams_of(tmp_path / "1_t/0")
    assert (params["x"], params["y"], params["z"]) == ("1", 1, True)
    # A value outside the space: what was written before is written again.
    board.write([row(1, {"x": "auto", "y": "many", "+z": False})], {})
    found = [hparams_of(tmp_path / f"1_t/{number}")[0] for number in (0, 1)]
    assert [one["x"] for one in found] == ["1", "auto"]
    assert [one["y"] for one in found] == ["1", "many"]
    assert [one["z"] for one in found] == [True, False]


def test_the_reports_of_a_trial_are_a_curve(exported: Path) -> None:
    steps = [
        (event.step, value.simple_value)
        for event in events_of(exported / "board/s/1_first/0")
        for value in event.summary.value
        if value.tag == "report"
    ]
    assert steps == [(10, 0.25), (20, 0.5)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optuna", "a.log"], "journal.jsonl' cannot be read"),
        ([], "nothing without --optuna, --tensorboard or --mlflow"),
    ],
)
def test_a_folder_or_a_place_that_is_missing_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["export", str(tmp_path), *arguments]) == 1
    assert said in capsys.readouterr().err


# -- whose studies, which values --------------------------------------------------------------------


def row(number: int, params: Any, state: State = State.COMPLETE, **fields: Any) -> Row:
    outcome = None if state is State.RUNNING else Outcome(state, score=float(number), seconds=1.0)
    suggestion = Suggestion(number, params)
    trial = Trial(number, 1, "t", suggestion, None, outcome=outcome, **fields)
    return Row(trial, state, (), 100.0, 101.0)


def sweep_of(folder: Path, name: str = "s", **space: Any) -> Described:
    return Described(folder, name, False, {"t": space})


def loaded(path: Path, name: str = "s/1_t") -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name=name, storage=storage)


def test_a_study_of_another_sweep_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "optuna.log"
    x = Interval(0, 1)
    Studies(str(path), sweep_of(tmp_path / "one", x=x)).write([row(0, {"x": 0.5})], {})
    with pytest.raises(ConfigurationError, match=r"the sweep in '.*one'.*\n.*study_name"):
        Studies(str(path), sweep_of(tmp_path / "two", x=x)).write([row(0, {"x": 0.25})], {})
    assert loaded(path).trials[0].params == {"x": 0.5}
    # Of the same sweep, it is written anew.
    Studies(str(path), sweep_of(tmp_path / "one", x=x)).write([row(0, {"x": 0.75})], {})
    assert [trial.params for trial in loaded(path).trials] == [{"x": 0.75}]
    assert loaded(path).direction.name == "MINIMIZE"


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ((1, 2), [1, 2]),
        ((1, True), ["1", "true"]),
        ((0.5, 0.5), [0.5]),
        (("a", None), ["a", None]),
        ((float("inf"), 1.0), ["Infinity", 1.0]),
        (([1], {"k": [2]}, "x"), ["[1]", '{"k": [2]}', "x"]),
        (("1", 1, True), ['"1"', "1", "true"]),
    ],
)
def test_choices_are_what_optuna_can_tell_apart(
    tmp_path: Path, choices: tuple[Any, ...], told: list[Any]
) -> None:
    path = tmp_path / "optuna.log"
    sweep = sweep_of(tmp_path, x=Choice(choices))
    rows = [row(number, {"x": value}) for number, value in enumerate(choices)]
    Studies(str(path), sweep).write(rows, {})
    trials = loaded(path).trials
    assert [*trials[0].distributions["x"].choices] == told
    wanted = told * 2 if len(told) < len(choices) else told
    found = [trial.params["x"] for trial in trials]
    assert [(type(v), v) for v in found] == [(type(v), v) for v in wanted]


def test_values_outside_the_space_are_attributes_and_long_lists_of_numbers_ranges(
    tmp_path: Path,
) -> None:
    path = tmp_path / "optuna.log"
    space = {"x": Interval(0, 1), "n": Choice(tuple(range(0, 1000, 2))), "+k": Choice(("a",))}
    params = {"x": 1.5, "n": 8, "+k": "a", "other": [1]}
    Studies(str(path), sweep_of(tmp_path, **space)).write([row(0, params)], {})
    (trial,) = loaded(path).trials
    assert trial.params == {"n": 8, "k": "a"}
    assert (trial.user_attrs["param x"], trial.user_attrs["param other"]) == (1.5, [1])
    assert (trial.distributions["n"].low, trial.distributions["n"].high) == (0, 998)


def test_a_trial_without_a_score_fails_as_it_does_in_optuna(tmp_path: Path) -> None:
    unranked = Row(Trial(0, 1, "t", Suggestion(0, {}), None, outcome=Outcome(State.COMPLETE)),
                   State.COMPLETE)  # fmt: skip
    Studies(str(tmp_path / "o.log"), sweep_of(tmp_path)).write([unranked], {})
    assert [trial.state.name for trial in loaded(tmp_path / "o.log").trials] == ["FAIL"]


def test_a_failed_trial_that_runs_again_is_running_again(tmp_path: Path) -> None:
    path, sweep = tmp_path / "optuna.log", sweep_of(tmp_path, x=Interval(0, 1))
    studies = Studies(str(path), sweep)
    studies.write([row(0, {"x": 0.5}), row(1, {"x": 0.25}, State.FAIL)], {})
    studies.write([row(1, {"x": 0.25}, State.RUNNING, attempt=2)], {})
    assert [trial.state.name for trial in loaded(path).trials] == ["COMPLETE", "RUNNING"]
    studies.write([row(1, {"x": 0.25}, attempt=2)], {})
    assert [trial.value for trial in loaded(path).trials] == [0, 1]


def test_what_a_trial_costs_does_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "optuna.log"
    studies = Studies(str(path), sweep_of(tmp_path, x=Interval(0, 1)))
    sizes = []
    for number in range(60):
        for state in (State.RUNNING, State.COMPLETE):
            studies.write([row(number, {"x": 0.5}, state)], {})
        sizes.append(path.stat().st_size)
    grown = [after - before for before, after in pairwise(sizes)]
    assert max(grown) - min(grown) < 20, "a few digits more, and not one record"


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("sqlite:///o.db", "sqlite:///{cwd}/o.db"),
        ("sqlite:///a/o.db?timeout=5", "sqlite:///{cwd}/a/o.db?timeout=5"),
        ("sqlite:////a/o.db", "sqlite:////a/o.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql://u:p@host/db", "postgresql://u:p@host/db"),
        ("o.log", "{cwd}/o.log"),
        ("/a/o.log", "/a/o.log"),
    ],
)
def test_a_storage_does_not_move_with_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, means: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(given) == means.format(cwd=tmp_path)


def test_what_a_fingerprint_says_of_a_space_is_read_back() -> None:
    axes = {
        "a": Interval(1e-5, 0.1, log=True),
        "b": Interval(1, 64, log=True, integer=True),
        "c": Interval(-2, 3, integer=True),
        "d": Choice(("x", [1, 2], None)),
        "e,f": Choice(([1, "u"], [2, "v"])),
    }
    space = Space(axes, when={"d": {"c": [1]}}, zips={"e,f": ("e", "f")})
    found = distributions_of(json.loads(json.dumps(describe(space))))
    assert found == {
        **{key: axes[key] for key in ("a", "b", "c", "d")},
        "e": Choice((1, 2)), "f": Choice(("u", "v")),
    }  # fmt: skip
    listed = distributions_of([{"x": 1}, {"x": 2, "y": 3}])
    assert listed == {"x": Choice((1, 2)), "y": Choice((3,))}


@pytest.mark.parametrize(
    ("export", "said"),
    [
        (
            {"optunas": 3},
            "knows no 'optunas'; its keys are optuna, tensorboard, study_name, mlflow",
        ),
        ({"optuna": 3}, "export.optuna=3 is no text"),
        ({"study_name": ""}, "export.study_name='' is no text"),
        ({"tensorboard": 3}, "export.tensorboard=3 is neither true nor a folder"),
        ({"mlflow": 3}, "export.mlflow=3 is no text"),
        ({"mlflow": "runs.db"}, "has no '://'"),
    ],
)
def test_a_wrong_key_of_the_export_is_refused(export: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        places_of(export)


@pytest.mark.parametrize(("key", "place"), [("tensorboard", True), ("mlflow", "sqlite:///runs.db")])
def test_a_place_without_its_package_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, key: str, place: Any
) -> None:
    monkeypatch.setattr("autocl_sweeper.export.places.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=rf"pip install 'autocl-sweeper\[{key}\]'"):
        Places(**{key: place})
    assert Places(tensorboard=False).of(sweep_of(Path("s"))) == {}


# -- while a sweep runs -----------------------------------------------------------------------------


def test_a_trial_that_began_early_is_running_until_its_parent_is_sure() -> None:
    history = History()
    rows = Rows(history)

    def after(event: str, **record: Any) -> dict[int, str]:
        return {row.trial.number: row.state.value for row in rows.after(event, record, 7.0)}

    for number, (stage, parent) in enumerate([(1, None), (1, None), (2, 0), (2, 1), (2, 1)]):
        history.start(Trial(number, stage, "t", Suggestion(number, {}), parent))
        assert after("start", trial=number) == {number: "RUNNING"}
    for number, told in ((0, "COMPLETE"), (2, "RUNNING"), (3, "RUNNING"), (1, "COMPLETE")):
        history.finish(number, Outcome(State.COMPLETE, score=1.0))
        assert after("finish", trial=number) == {number: told}
    history.select(1, [0])
    assert after("select", stage=1, beam=[0]) == {2: "COMPLETE", 3: "RUNNING"}
    history.give_up(3, "its parent left the beam")
    assert after("give_up", trial=3) == {3: "PRUNED"}
    history.give_up(4, "its parent left the beam")
    assert after("give_up", trial=4) == {4: "RUNNING"}, "its job is not over"
    history.finish(4, Outcome(State.PRUNED))
    assert after("finish", trial=4) == {4: "PRUNED"}


def test_an_early_stopped_trial_is_running_until_its_job_is_over() -> None:
    history = History()
    rows = Rows(history)
    history.start(Trial(0, 1, "t", Suggestion(0, {}), None))
    history.report(Report(0, 3, 0.25))
    history.stop(0, "not among the best")
    (row,) = rows.after("report", {"trial": 0}, 7.0)
    assert row.state is State.RUNNING
    history.finish(0, Outcome(State.PRUNED, "not among the best", score=0.25))
    (row,) = rows.after("finish", {"trial": 0}, 8.0)
    assert (row.state, row.score, row.ended) == (State.PRUNED, 0.25, 8.0)


class Slow:
    """A place that takes nothing before it may, and then notes it; it fails as often as it shall."""

    def __init__(self, fails: int = 0) -> None:
        self.may = threading.Event()
        self.fails = fails
        self.rows: dict[int, State] = {}
        self.beams: Beams = {}

    def write(self, rows: Sequence[Row], beams: Beams) -> None:
        self.may.wait(300)
        if self.fails:
            self.fails -= 1
            raise OSError("the storage is away")
        self.rows |= {row.trial.number: row.state for row in rows}
        self.beams = beams


def sweep_through(exporter: Exporter, count: int) -> None:
    history = History()
    exporter.begin([], history)
    for number in range(count):
        history.start(Trial(number, 1, "t", Suggestion(number, {}), None))
        exporter.note("start", {"trial": number})
        history.report(Report(number, 1, 0.5))
        exporter.note("report", {"trial": number})
        history.finish(number, Outcome(State.COMPLETE, score=1.0))
        exporter.note("finish", {"trial": number})
    history.select(1, [0])
    exporter.note("select", {"stage": 1, "beam": [0]})


def test_a_slow_place_holds_up_no_sweep_and_has_everything_in_the_end() -> None:
    place = Slow()
    exporter = Exporter({"a place": lambda: place})
    sweep_through(exporter, 50)  # returns, though nothing is written
    assert place.rows == {}
    place.may.set()
    exporter.close()
    assert place.rows == dict.fromkeys(range(50), State.COMPLETE)
    assert place.beams == {1: (0,)}


def test_a_place_that_fails_warns_once_and_gets_everything_when_it_is_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocl_sweeper.export.exporter.RETRY_S", 0.0)
    monkeypatch.setattr("autocl_sweeper.export.exporter.PAUSE_S", 0.0)
    caplog.set_level(logging.WARNING)
    place = Slow(fails=2)
    place.may.set()
    exporter = Exporter({"a place": lambda: place})
    sweep_through(exporter, 3)
    wait_until(lambda: place.fails < 2, "a first failure")
    exporter.note("start", {"trial": 0})
    exporter.close()
    assert place.fails == 0
    (line,) = (line for line in caplog.messages if "could not be written" in line)
    assert "the storage is away" in line and "autocl export" in line


def of_journal(bench: Bench) -> dict[int, tuple[str, float | None, dict[str, Any]]]:
    with open(bench.sweep / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        int(row["trial"]): (row["state"], float(row["score"]), {"lr": json.loads(row["param/lr"])})
        for row in rows
    }


COMMAND = (
    "hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2",
    "hydra.launcher.warm=true", "task=a,b", "lr=1,2", "hydra.sweeper.pipeline=false",
    "+hydra.sweeper.export.study_name=s", "+hydra.sweeper.export.tensorboard=true",
)  # fmt: skip


def test_a_killed_sweep_that_goes_on_leaves_an_export_as_its_journal(chain: Bench) -> None:
    path = chain.folder / "optuna.log"
    command = (*COMMAND, f"+hydra.sweeper.export.optuna={path}")
    process = chain.start_held(2, *command, REPORTS="2")

    wait_until(
        lambda: path.exists() and _states(path) == {"RUNNING": 2},
        "both trials are in the study while they run",
    )
    chain.kill(process)
    chain.hold.unlink()
    wait_until(chain.nothing_is_left, "the jobs are gone")
    chain.run(*command, REPORTS="2")
    (found,) = ask_optuna(str(path))
    assert list(found) == ["s/1_a", "s/2_b"]
    trials = {t["attrs"]["trial"]: t for study in found.values() for t in study["trials"]}
    exported = {n: (t["state"], t["value"], t["params"]) for n, t in trials.items()}
    assert exported == of_journal(chain)
    assert all(len(trial["reports"]) == 4 for trial in trials.values())
    beams = {stage: found[name]["attrs"]["beam"] for stage, name in ((1, "s/1_a"), (2, "s/2_b"))}
    assert beams == chain.results()["beams"]
    board = chain.sweep / "tensorboard"
    for number, (state, score, params) in of_journal(chain).items():
        (folder,) = board.glob(f"*/{number}")
        hparams, scalars, _ = hparams_of(folder)
        assert (hparams["state"], hparams["lr"]) == (state, params["lr"])
        assert scalars["score"] == pytest.approx(score)


def _states(path: Path) -> dict[str, int]:
    try:
        trials = loaded(path, "s/1_a").trials
    except KeyError:  # not yet
        return {}
    names = [trial.state.name for trial in trials]
    return {name: names.count(name) for name in names}


def test_a_storage_that_cannot_be_written_warns_once_and_stops_no_sweep(chain: Bench) -> None:
    chain.sweep.parent.mkdir(exist_ok=True)
    (chain.folder / "file").touch()
    path = chain.folder / "file/optuna.log"
    printed = chain.run(*COMMAND, f"+hydra.sweeper.export.optuna={path}", "task=a")
    assert printed.count("could not be written") == 1 and "the sweep goes on" in printed
    assert chain.results()["stages_finished"] == 1
