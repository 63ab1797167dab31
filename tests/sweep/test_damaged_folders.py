"""A sweep folder never gets stuck: whatever lies there, a rerun goes on, or says what to do."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.bench import Bench
from support.damaged import Killed, damage, run
from support.plans import plan_of

from autocl_sweeper.errors import AutoCLError, SweepFolderError
from autocl_sweeper.outcome import JobFiles, outcome_of
from autocl_sweeper.retention import Retention
from autocl_sweeper.selection import TopK
from autocl_sweeper.types import Cause, History, Outcome, State, Suggestion, Trial


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the sweep comes to that nothing happened to."""
    return run(tmp_path_factory.mktemp("whole") / "sweep")


@pytest.mark.parametrize(
    "seeds",
    [range(24), pytest.param(range(24, 1000), marks=pytest.mark.slow)],
    ids=["some", "many"],
)
def test_random_damage_gives_the_same_result_or_a_named_refusal(
    tmp_path: Path, whole: dict[str, Any], seeds: range
) -> None:
    """Never another history, and never an error that is not one of ours."""
    refused = 0
    for seed in seeds:
        dice = random.Random(seed)
        folder = tmp_path / str(seed)
        with suppress(Killed):
            run(folder, dice.randrange(18))
        what = damage(folder, dice)
        try:
            found = run(folder)
        except AutoCLError as error:
            refused += 1
            assert str(folder) in str(error), f"seed {seed}: {what}: {error}"
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}: {what}") from error
        assert found == whole, f"seed {seed}: {what}"
    assert refused < len(seeds) / 2


def left(folder: Path, steps: int = 7) -> None:
    with pytest.raises(Killed):
        run(folder, steps)


def test_an_output_folder_replaced_by_a_file_is_moved_aside(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    left(tmp_path)
    (tmp_path / "1_a/2").exists()
    (tmp_path / "2_b").mkdir(exist_ok=True)
    for number in range(3, 9):
        if not (tmp_path / f"2_b/{number}").exists():
            (tmp_path / f"2_b/{number}").write_text("a file")
    assert run(tmp_path) == whole
    assert list((tmp_path / "2_b").glob("*.aside1"))


def test_a_file_in_place_of_a_tasks_folder_is_refused_by_name(tmp_path: Path) -> None:
    left(tmp_path, 2)
    (tmp_path / "2_b").write_text("a file")
    with pytest.raises(SweepFolderError, match=r"'.*2_b' is a file, but trials have their folders"):
        run(tmp_path)


def test_what_looks_like_ours_but_is_in_the_way_is_passed_over(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    left(tmp_path)
    (tmp_path / ".trials.csv.123.tmp").mkdir()
    (tmp_path / "trials.csv").unlink(missing_ok=True)
    (tmp_path / "trials.csv/inner").mkdir(parents=True)
    for number in range(9):
        for stage in ("1_a", "2_b"):
            (tmp_path / stage / f"{number}.attempt1/inner").mkdir(parents=True)
    for file in (tmp_path / ".autocl").iterdir():
        file.unlink()
    (tmp_path / ".autocl").rmdir()
    (tmp_path / ".autocl").write_text("a file")
    assert run(tmp_path) == whole
    assert (tmp_path / ".autocl.aside1").read_text() == "a file"


def test_a_damaged_outcome_is_not_believed(tmp_path: Path, whole: dict[str, Any]) -> None:
    """Its job runs again; so no digit of a score changes on its way to the journal."""
    left(tmp_path, 1)
    outcomes = list((tmp_path / ".autocl").glob("[0-9]*.json"))
    for outcome in outcomes:
        data = outcome.read_bytes()
        outcome.write_bytes(data.replace(b'"score": ', b'"score": 9'))
        assert outcome.read_bytes() != data
    assert outcomes and run(tmp_path) == whole


def test_a_job_that_met_a_full_disk_while_nobody_was_there_runs_again(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    left(tmp_path, 1)
    files = JobFiles.of(tmp_path)
    for number in range(2):
        files.write_outcome(number, Outcome(State.FAIL, "no space", cause=Cause.DISK))
    assert run(tmp_path) == whole


def test_a_parents_checkpoint_that_is_gone_is_named_before_a_trial_starts_from_it(
    tmp_path: Path,
) -> None:
    left(tmp_path, 6)
    for checkpoint in tmp_path.glob("1_a/*/checkpoint"):
        (checkpoint / "model").unlink()
        checkpoint.rmdir()
    with pytest.raises(SweepFolderError, match=r"checkpoint of trial \d is missing: '.*1_a/"):
        run(tmp_path)


# -- checkpoints ------------------------------------------------------------------------------------


def ended(checkpoint: str) -> tuple[History, Trial]:
    history = History()
    history.start(Trial(0, 1, "a", Suggestion(0, {}), None, "1_a/0"))
    return history, history.finish(0, Outcome(State.FAIL, checkpoint=checkpoint))


def test_read_only_folders_of_a_checkpoint_are_removed(tmp_path: Path) -> None:
    inner = tmp_path / "1_a/0/checkpoint/blobs/inner"
    inner.mkdir(parents=True)
    (inner / "weights").write_text("w")
    for folder in (inner, inner.parent):
        folder.chmod(0o555)
    history, trial = ended("1_a/0/checkpoint")
    Retention(tmp_path, TopK(1), drops=True).ended(trial, history)
    assert not (tmp_path / "1_a/0/checkpoint").exists()


def test_a_checkpoint_that_cannot_be_removed_stays_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is open on NFS comes back as .nfs*, so its folder is never empty."""
    (tmp_path / "1_a/0/checkpoint").mkdir(parents=True)

    def busy(path: Path) -> None:
        raise OSError(39, "Directory not empty", str(path))

    monkeypatch.setattr("autocl_sweeper.retention.remove", busy)
    history, trial = ended("1_a/0/checkpoint")
    retention = Retention(tmp_path, TopK(1), drops=True)
    retention.ended(trial, history)
    retention.ended(trial, history)
    assert caplog.text.count("checkpoint of trial 0 cannot be removed and stays") == 1


@pytest.mark.parametrize(
    "value", [{"w": [0.5] * 100}, ["a"], 5.0, "x" * 300, "a\0b", b"\0", object()]
)
def test_a_checkpoint_that_is_no_path_is_left_out(
    tmp_path: Path, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = outcome_of({"score": 1.0, "checkpoint": value}, tmp_path, 1.0)
    assert (outcome.numbers["score"], outcome.checkpoint) == (1.0, None)
    assert "'checkpoint' is no path" in caplog.text
    (tmp_path / "checkpoint").mkdir()
    outcome = outcome_of({"score": 1.0, "checkpoint": value}, tmp_path, 1.0)
    assert outcome.checkpoint == str(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_checkpoint_name_of_an_older_journal_that_no_file_system_knows_is_passed_over(
    tmp_path: Path, name: str
) -> None:
    history, trial = ended(f"1_a/0/{name}")
    Retention(tmp_path, TopK(1), drops=True).ended(trial, history)


# -- names and texts --------------------------------------------------------------------------------


def test_a_task_name_of_260_characters_has_a_folder(tmp_path: Path) -> None:
    plan = plan_of(f"task={'t' * 260},b", "x=1")
    for stage in plan.stages:
        (tmp_path / plan.folder(0, stage)).mkdir(parents=True)


APP = """
import hydra
@hydra.main(config_path=None, config_name=None, version_base="1.3")
def main(cfg):
    if cfg.x == 1:
        raise ValueError("long " * 1_000_000)
    return {"score": float(cfg.x), "checkpoint": {"w": [0.5] * 100}}
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("launcher", ["gpu", "basic"])
def test_a_text_of_5_mb_is_cut_everywhere_but_in_the_log(
    benches: Callable[..., Bench], tmp_path: Path, launcher: str
) -> None:
    app = tmp_path / "app.py"
    app.write_text(APP)
    bench = benches(app)
    output = bench.run(
        "hydra/sweeper=autocl", f"hydra/launcher={launcher}", "+task=a", "+x=0,1,2",
        "hydra.sweeper.handover={}",
    )  # fmt: skip
    reason = bench.finished()[1]["reason"]
    assert reason.startswith("ValueError: long long") and len(reason) < 3000
    assert reason.endswith("characters in all, in job.log]") or launcher == "basic"
    sizes = {path.name: path.stat().st_size for path in bench.sweep.iterdir() if path.is_file()}
    assert max(sizes.values()) < 100_000 and len(output) < 100_000
    whole = "long " * 1_000_000
    folder = bench.sweep / "1_a/1"
    kept = reason.rpartition(" in ")[2].removesuffix("]")
    assert whole.strip() in (folder / kept).read_text()
    assert [step["params"] for step in bench.results()["chain"]] == [{"+x": 2}]
