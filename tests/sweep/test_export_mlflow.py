"""MLflow runs of a sweep, read back with MLflow's own client from a local SQLite store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.journals import Written

from autocl_sweeper.cli import main
from autocl_sweeper.export.rows import Described, Row
from autocl_sweeper.export.runs import Runs
from autocl_sweeper.types import Outcome, Report, State, Suggestion, Trial

pytestmark = [
    pytest.mark.filterwarnings("default"),  # MLflow's own, and those of what it imports
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store whose tables are made by the first export into it."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs.db"


@pytest.fixture(scope="module", autouse=True)
def somebody_elses_run() -> Iterator[None]:
    """The environment of a job that has a run of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_RUN_ID", "0123456789abcdef0123456789abcdef")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield


def client(store: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(store)


def runs(store: str, experiment: str = "autocl", deleted: bool = True) -> dict[str, Any]:
    """Every run of an experiment by name, deleted ones too; no name may occur twice."""
    from mlflow.entities import ViewType

    asked = client(store)
    there = asked.get_experiment_by_name(experiment).experiment_id
    view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    found = asked.search_runs([there], run_view_type=view)
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, store: str) -> dict[str, Any]:
    """A hand-written sweep, exported twice."""
    folder = tmp_path_factory.mktemp("tracked") / "it's/sweep"
    Written(folder).two_stages()
    before: dict[str, Any] = {}
    for _ in range(2):
        assert main(["export", "--mlflow", store, "--study-name", "s", str(folder)]) == 0
        found = runs(store)
        if before:
            now, then = (
                {name: (run.info.run_id, run.data.to_dictionary()) for name, run in one.items()}
                for one in (found, before)
            )
            assert now == then
        before = found
    return before


def test_a_sweep_exported_twice_is_one_parent_run_and_a_nested_run_per_trial(
    exported: dict[str, Any], store: str
) -> None:
    trials = [*(f"1_first/{number}" for number in range(4)), "2_second/4", "2_second/5"]
    assert exported.keys() == {"s", *trials}
    parents = {exported[name].data.tags.get("mlflow.parentRunId") for name in trials}
    assert parents == {exported["s"].info.run_id}
    assert "mlflow.parentRunId" not in exported["s"].data.tags
    assert exported["s"].data.params == {"direction": "maximize"}
    states = {name: run.info.status for name, run in exported.items()}
    assert states == {
        "s": "FINISHED", "1_first/0": "FINISHED", "1_first/1": "FINISHED", "1_first/2": "KILLED",
        "1_first/3": "FAILED", "2_second/4": "FINISHED", "2_second/5": "RUNNING",
    }  # fmt: skip
    history = client(store).get_metric_history(exported["s"].info.run_id, "best_value")
    assert [(one.step, one.value) for one in history] == [(1, 0.75)]
    assert exported["s"].data.tags["beams"] == '{"1": [0, 1]}'


def test_parameters_metrics_and_curves_are_those_of_the_journal(
    exported: dict[str, Any], store: str
) -> None:
    first, stopped = exported["1_first/0"], exported["1_first/2"]
    assert first.data.params == {
        "task": "first", "lr": "0.001", "depth": "3", "optimizer": "adam", "widths": "[1, 2]",
        "extra": "null", "model": "vit", "size": "16",
    }  # fmt: skip
    assert first.data.metrics == {
        "report": 0.5, "score": 0.75, "eval/first": 0.75, "rows": 100.0, "seconds": 2.5,
    }  # fmt: skip
    curve = client(store).get_metric_history(first.info.run_id, "report")
    assert [(one.step, one.value) for one in curve] == [(10, 0.25), (20, 0.5)]
    curve = client(store).get_metric_history(stopped.info.run_id, "report")
    assert [(one.step, one.value) for one in curve] == [(10, 0.125), (30, 0.25)], "no nan"
    assert stopped.data.metrics["score"] == 0.25, "of a stopped trial the last report"
    assert "score" not in exported["1_first/3"].data.metrics


def test_tags_tell_the_lineage(exported: dict[str, Any]) -> None:
    tags = exported["2_second/4"].data.tags
    told = [tags[key] for key in ("trial", "stage", "parent", "lineage")]
    assert told == ["4", "2", "0", "0 > 4"]
    assert tags["parent_run"] == exported["1_first/0"].info.run_id
    assert (tags["origin"], tags["source"], tags["state"]) == ("carried", "0", "COMPLETE")
    assert exported["1_first/1"].data.tags["rank"] == "2"
    assert exported["1_first/3"].data.tags["reason"] == "exited with 1"


# -- while a sweep runs -----------------------------------------------------------------------------


def row(number: int, state: State, *reports: float, started: float = 100.0, **fields: Any) -> Row:
    outcome = None if state is State.RUNNING else Outcome(state, score=reports[-1], seconds=1.0)
    params = fields.pop("params", {"x@y": number})
    trial = Trial(number, 1, "t", Suggestion(number, params), None, outcome=outcome, **fields)
    told = [Report(number, step, score) for step, score in enumerate(reports, start=1)]
    return Row(trial, state, told, started, None if outcome is None else started + 9)


def described(tmp_path: Path, **fields: Any) -> Described:
    return Described(tmp_path, "s", True, {}, **fields)


def test_a_run_goes_on_where_a_killed_export_left_it(store: str, tmp_path: Path) -> None:
    sweep = described(tmp_path, settings={"top_k": 2})
    Runs(store, sweep, "live").write([row(0, State.RUNNING, 0.25)], {})
    begun = runs(store, "live")
    assert {run.info.status for run in begun.values()} == {"RUNNING"}
    again = Runs(store, sweep, "live")
    again.write([row(0, State.COMPLETE, 0.25, 0.5)], {})
    again.write([row(1, State.RUNNING)], {1: [0]})
    found = runs(store, "live")
    assert found["s"].info.run_id == begun["s"].info.run_id
    assert found["1_t/0"].info.run_id == begun["1_t/0"].info.run_id
    assert found["1_t/0"].data.params == {"task": "t", "x_y": "0"}
    assert (found["1_t/0"].info.start_time, found["1_t/0"].info.end_time) == (100_000, 109_000)
    curve = client(store).get_metric_history(found["1_t/0"].info.run_id, "report")
    assert [(one.step, one.value) for one in curve] == [(1, 0.25), (2, 0.5)]
    assert found["s"].info.status == "FINISHED" and found["s"].data.params == {"top_k": "2"}


@pytest.mark.parametrize(
    "other",
    [
        row(0, State.COMPLETE, 0.5, attempt=2, started=200.0),
        row(0, State.COMPLETE, 0.5, params={"x@y": 7}),
        row(0, State.COMPLETE, 0.5, started=5000.0),
    ],
    ids=["another attempt", "other parameters", "a sweep begun anew in the same folder"],
)
def test_a_run_of_something_else_is_deleted_and_written_anew(
    store: str, tmp_path: Path, other: Row
) -> None:
    name = tmp_path.name
    Runs(store, described(tmp_path), name).write([row(0, State.FAIL, 0.125, 0.25)], {})
    Runs(store, described(tmp_path), name).write([other], {})
    found = runs(store, name, deleted=False)
    curve = client(store).get_metric_history(found["1_t/0"].info.run_id, "report")
    assert [(one.step, one.value) for one in curve] == [(1, 0.5)]
    assert found["1_t/0"].info.status == "FINISHED"
