"""`trainer.report_to`: what is refused, what trackers find in the environment, TensorBoard for real."""

from __future__ import annotations

import ast
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from support.train_app import SMALL, train

from train.config import trackers
from train.config.sections import TrainerSettings
from train.config.trackers import run_and_sweep, tracked
from train.config.typed import SettingsError


@pytest.mark.parametrize("given", ["none", None, [], ["none"]])
def test_without_a_tracker_nothing_changes(given: Any, tmp_path: Path) -> None:
    assert TrainerSettings(report_to=given).report_to == given
    before = dict(os.environ)
    with tracked(given, tmp_path):
        assert dict(os.environ) == before


def test_unknown_and_missing_trackers_are_refused_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SettingsError, match=r"report_to=comet_ml: must be none, or one or more of"):
        TrainerSettings(report_to="comet_ml")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"report_to=wandb: the package wandb is not installed"):
        TrainerSettings(report_to=["none", "wandb"])
    with pytest.raises(
        SettingsError, match=r"`pip install tensorboard`, or trainer.report_to=none"
    ):
        TrainerSettings(report_to="tensorboard")


@pytest.mark.parametrize(
    ("files", "folder", "run", "sweep"),
    [
        (["runs/first/journal.jsonl"], "runs/first/1_a/0", "1_a/0", "runs/first"),
        (["multirun/d/t/multirun.yaml"], "multirun/d/t/3", "3", "d/t"),
        ([], "outputs/2026-11-29/15-20-10", "2026-11-29/15-20-10", "x/outputs"),
    ],
)
def test_a_run_has_the_name_of_its_folder_and_belongs_to_its_sweep(
    tmp_path: Path, files: list[str], folder: str, run: str, sweep: str
) -> None:
    for file in files:
        (tmp_path / "x" / file).parent.mkdir(parents=True)
        (tmp_path / "x" / file).touch()
    assert run_and_sweep(tmp_path / "x" / folder) == (run, sweep)


def test_trackers_find_sweep_and_folder_in_the_environment_during_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("TENSORBOARD_LOGGING_DIR", "WANDB_RUN_GROUP", "WANDB_DIR", "MLFLOW_TAGS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "journal.jsonl").touch()
    folder = tmp_path / "1_a/0"
    sweep = "/".join(tmp_path.parts[-2:])
    with tracked("tensorboard", folder) as run:
        assert run == "1_a/0"
        assert [os.environ[name] for name in names[:3]] == [
            str(folder / "tensorboard"), sweep, str(folder),
        ]  # fmt: skip
        assert json.loads(os.environ["MLFLOW_TAGS"]) == {"sweep": sweep, "run": "1_a/0"}
    assert not os.environ.keys() & set(names)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "/boards")
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    monkeypatch.setenv("MLFLOW_TAGS", '{"sweep": "mine", "who": "me"}')
    with pytest.raises(RuntimeError), tracked("tensorboard", folder):
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == f"/boards/{sweep}/1_a/0"
        assert os.environ["WANDB_RUN_GROUP"] == "mine"
        assert json.loads(os.environ["MLFLOW_TAGS"]) == {
            "sweep": "mine", "who": "me", "run": "1_a/0",
        }  # fmt: skip
        raise RuntimeError
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "/boards"


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """(tag, step) -> value of the one event file in a folder: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found[value.tag, event.step] = value.simple_value
    return found


@pytest.mark.slow
def test_tensorboard_gets_what_the_log_has(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    done = train(
        tmp_path, "task=digits_01", *SMALL, "trainer.report_to=tensorboard",
        "trainer.logging_steps=4", "hydra.run.dir=job",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logged = re.findall(r"step (\d+): (\{'loss.*\})", (tmp_path / "job/train.log").read_text())
    assert logged
    found = scalars(tmp_path / "job/tensorboard")
    for step, text in logged:
        for name, value in ast.literal_eval(text).items():
            assert found[f"train/{name}", int(step)] == pytest.approx(value, rel=1e-6)
