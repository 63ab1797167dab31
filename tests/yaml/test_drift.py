"""A sweep reads its configuration once: edits while it runs are told, and refused when it goes on."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.bench import APPS, Bench, wait_until
from support.files import written

from autocl_sweeper.yaml import snapshot as snapshots
from autocl_sweeper.yaml.snapshot import FOLDER, Snapshot

OURS = "hydra/sweeper=autocl"
LAUNCHERS = {
    "forked": ("hydra/launcher=gpu", "hydra.launcher.cpu_slots=1", "hydra.launcher.warm=true"),
    "fresh": ("hydra/launcher=gpu", "hydra.launcher.cpu_slots=1"),
    "joblib": (
        *("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.sweeper.max_batch_size=1"),
    ),
    "basic": ("hydra/launcher=basic",),
}


@pytest.fixture
def bench(benches: Callable[..., Bench], tmp_path: Path) -> Bench:
    """tests/support/apps/chain.py with files of its own to edit; what it is configured by includes another."""
    shutil.copytree(APPS, tmp_path / "apps")
    conf = tmp_path / "apps/conf"
    (conf / "base.yaml").write_text("momentum: 0.9\nsaves: true\n")
    text = (conf / "chain.yaml").read_text()
    text = text.replace("momentum: 0.9\n", "").replace("saves: true\n", "")
    (conf / "chain.yaml").write_text(f"{text}_include: base.yaml\n")
    return benches(tmp_path / "apps/chain.py")


def conf(bench: Bench) -> Path:
    return bench.app.parent / "conf"


def momenta(bench: Bench) -> list[float]:
    """What each job was configured with, in the order of trials."""
    files = sorted(bench.sweep.glob("*/*/.hydra/config.yaml"), key=lambda file: int(file.parts[-3]))
    return [yaml.safe_load(file.read_text())["momentum"] for file in files]


@pytest.mark.parametrize(
    "launcher",
    [
        "forked",
        "joblib",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("fresh", "basic")),
    ],
)
def test_an_edit_during_a_sweep_is_reported_and_reaches_no_job(bench: Bench, launcher: str) -> None:
    hold = bench.folder / "hold"
    hold.touch()
    process = bench.start(OURS, "task=a", "lr=1,2,3", *LAUNCHERS[launcher], HOLD=str(hold))
    wait_until(lambda: bench.ledger("start"), "the first job runs")
    included = conf(bench) / "base.yaml"
    included.write_text("momentum: 0.1\nsaves: true\n")
    shutil.rmtree(conf(bench) / "optimizer")
    hold.unlink()
    output = bench.finish(process)
    assert process.returncode == 0, output
    assert momenta(bench) == [0.9, 0.9, 0.9]
    told = [line for line in output.splitlines() if "was edited during the sweep" in line]
    assert [sum(name in line for line in told) for name in ("base.yaml", "adam.yaml")] == [1, 1]
    copy = f"{bench.sweep}/{FOLDER}{included}"
    assert copy in told[0] and Path(copy).read_text() == "momentum: 0.9\nsaves: true\n"


def test_every_file_is_in_the_journal_and_the_folder_and_a_project_that_moved_goes_on(
    bench: Bench,
) -> None:
    command = (OURS, "task=a,b", "lr=1", "optimizer=adam,sgd", *LAUNCHERS["basic"])
    bench.run(*command)
    (setup,) = bench.events("sweep")
    names = ["chain.yaml", "base.yaml", "task/a.yaml", "optimizer/adam.yaml", "task/b.yaml"]
    files = {str(conf(bench) / name) for name in (*names, "optimizer/sgd.yaml")}
    assert set(setup["configuration"]["files"]) == files
    for path, digest in setup["configuration"]["files"].items():
        copy = (bench.sweep / FOLDER / path.lstrip("/")).read_bytes()
        assert copy == Path(path).read_bytes()
        assert hashlib.sha256(copy).hexdigest() == digest
    assert len(setup["configuration"]["composed"]) == 64

    bench.ledger_file.unlink()
    bench.app = shutil.move(bench.app.parent, bench.folder / "moved") / bench.app.name
    bench.run(*command)
    assert bench.ledger() == []


def test_after_a_kill_an_edited_file_is_listed_and_refused_and_undone_the_sweep_goes_on(
    bench: Bench,
) -> None:
    hold = bench.folder / "hold"
    hold.touch()
    command = (OURS, "task=a", "lr=1,2", *LAUNCHERS["fresh"])
    process = bench.start(*command, HOLD=str(hold))
    wait_until(lambda: bench.ledger("start"), "the first job runs")
    process.kill()
    process.wait()
    wait_until(bench.nothing_is_left, "nothing is left")
    hold.unlink()
    edited = conf(bench) / "base.yaml"
    kept = edited.read_text()
    edited.write_text(kept + "# a comment, which no value shows\n")
    (conf(bench) / "task/a.yaml").unlink()
    (conf(bench) / "task/a.yaml").write_text("name: a\n\n")
    journal = (bench.sweep / "journal.jsonl").read_bytes()
    output = bench.run(*command, status=1)
    assert f"ChangedSweepError: '{bench.sweep}' holds a sweep with another configuration" in output
    assert f"{edited}: was edited" in output
    assert f"{conf(bench) / 'task/a.yaml'}: was edited" in output
    assert "chain.yaml: " not in output
    assert "set another hydra.sweep.dir" in output and str(bench.sweep / FOLDER) in output
    assert (bench.sweep / "journal.jsonl").read_bytes() == journal
    shutil.copytree(bench.sweep / FOLDER / str(conf(bench))[1:], conf(bench), dirs_exist_ok=True)
    bench.run(*command)
    assert sorted(bench.finished()) == [0, 1]


# -- the snapshot itself ----------------------------------------------------------------------------


def taken(folder: Path, *used: str, sweep: Path = Path("/no/sweep")) -> Snapshot:
    snapshot = Snapshot([str(folder)])
    for name in used:
        snapshot.text(str(folder / name))
    snapshot.complete(sweep)
    return snapshot


def test_a_choice_that_nobody_composed_ahead_is_read_as_it_was(tmp_path: Path) -> None:
    files = {"app.yaml": "a: 1", "opt/adam.yaml": "n: 1", "opt/sgd.yaml": "n: 2"}
    conf = written(tmp_path / "conf", files)
    snapshot = taken(conf, "app.yaml")
    written(conf, {"opt/sgd.yaml": "n: edited", "opt/new.yaml": "n: 3"})
    (conf / "opt/adam.yaml").unlink()
    assert snapshot.text(str(conf / "opt/adam.yaml")) == "n: 1"
    assert snapshot.text(str(conf / "opt/sgd.yaml")) == "n: 2"
    assert snapshot.names(str(conf / "opt")) == ["adam.yaml", "sgd.yaml"]
    assert not snapshot.is_file(str(conf / "opt/new.yaml"))
    with pytest.raises(FileNotFoundError, match="was not there when the sweep began"):
        snapshot.text(str(conf / "opt/new.yaml"))
    shutil.rmtree(conf)
    assert snapshot.is_folder(str(conf / "opt")) and not snapshot.is_folder(str(conf / "other"))


def test_what_an_unread_choice_includes_from_elsewhere_is_taken_too(tmp_path: Path) -> None:
    written(tmp_path, {"conf/opt/sgd.yaml": "_include: ../../far.yaml", "far.yaml": "n: 1"})
    snapshot = taken(tmp_path / "conf")
    written(tmp_path, {"far.yaml": "n: edited"})
    assert snapshot.text(str(tmp_path / "far.yaml")) == "n: 1"
    assert list(snapshot.used) == []


def test_a_file_from_elsewhere_that_only_a_job_asks_for_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, {"conf/app.yaml": "a: 1", "far.yaml": "n: 1"})
    snapshot = taken(tmp_path / "conf", "app.yaml")
    for _ in range(2):
        assert snapshot.text(str(tmp_path / "far.yaml")) == "n: 1"
    assert [record.getMessage().split("'")[1] for record in caplog.records] == [
        str(tmp_path / "far.yaml")
    ]


def test_a_search_path_of_thousands_of_files_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "MOST_ENTRIES", 3)
    names = [f"data/{number}/x.yaml" for number in range(5)]
    conf = written(tmp_path, {name: "x: 1" for name in ["app.yaml", *names]})
    snapshot = taken(conf, "app.yaml", names[0])
    assert set(snapshot.texts) == {str(conf / "app.yaml"), str(conf / names[0])}
    assert snapshot.is_file(str(conf / names[1])) and not snapshot.is_file(str(conf / "gone.yaml"))


def test_earlier_sweeps_and_hidden_folders_are_not_copied(tmp_path: Path) -> None:
    sweep = {"runs/1/journal.jsonl": "", "runs/1/configuration/a.yaml": "a: 1"}
    files = {"app.yaml": "a: 1", ".venv/x.yaml": "x: 1", "runs/1/multirun.yaml": "a: 1", **sweep}
    conf = written(tmp_path, files)
    assert list(taken(conf).texts) == [str(conf / "app.yaml")]


def test_what_became_of_recorded_files(tmp_path: Path) -> None:
    files = {f"{name}.yaml": f"{name}: 1" for name in ("kept", "edited", "gone", "unread")}
    conf = written(tmp_path / "conf", files)
    recorded = taken(conf, *files).record({})["files"]
    written(conf, {"edited.yaml": "edited: 2"})
    (conf / "gone.yaml").unlink()
    changes = taken(conf, "kept.yaml", "edited.yaml").changes(recorded)
    assert changes == [f"{conf}/edited.yaml: was edited", f"{conf}/gone.yaml: was deleted"]


def test_an_edit_is_reported_once_and_a_touch_is_none(tmp_path: Path) -> None:
    conf = written(tmp_path, {"app.yaml": "a: 1", "unread.yaml": "a: 1"})
    path = str(conf / "app.yaml")
    snapshot = taken(conf, "app.yaml")
    assert list(snapshot.edits()) == []
    os.utime(path, ns=(1, 1))
    assert list(snapshot.edits()) == []
    for text in ("a: 2", "a: 33"):
        written(conf, {"app.yaml": text, "unread.yaml": text})
        assert list(snapshot.edits()) == [path]
        assert list(snapshot.edits()) == []
    written(conf, {"app.yaml": "a: 1"})
    assert list(snapshot.edits()) == []
    os.unlink(path)
    assert list(snapshot.edits()) == [path]


def test_what_a_sweep_does_not_read_is_not_copied_and_a_copy_is_as_closed_as_its_file(
    tmp_path: Path,
) -> None:
    files = {"app": "a: 1", "secret": "key: x", "opt/x": "n: 1", "opt/y": "n: 2"}
    conf = written(tmp_path / "conf", files)
    for name, mode in (("app.yaml", 0o644), ("opt/x.yaml", 0o600), ("opt/y.yaml", 0o666)):
        (conf / name).chmod(mode)
    snapshot = taken(conf, "app.yaml", "opt/y.yaml")
    snapshot.keep(tmp_path / "sweep")
    snapshot.text(str(conf / "opt/x.yaml"))  # by a job that nothing had planned
    copies = tmp_path / "sweep" / FOLDER / str(conf)[1:]
    modes = {str(p.relative_to(copies)): p.stat().st_mode & 0o777 for p in copies.rglob("*.yaml")}
    assert modes == {"app.yaml": 0o644, "opt/x.yaml": 0o600, "opt/y.yaml": 0o644}


def test_a_resumed_sweep_takes_what_it_has_not_read_from_its_first_session(tmp_path: Path) -> None:
    conf = written(tmp_path / "conf", {"app.yaml": "a: 1", "opt/x.yaml": "n: 1"})
    sweep = written(tmp_path / "sweep", {"journal.jsonl": '{"event": "sweep"}\n'})
    first = taken(conf, "app.yaml")
    first.keep(sweep)
    first.text(str(conf / "opt/x.yaml"))
    written(conf, {"opt/x.yaml": "n: edited"})
    path = str(conf / "opt/x.yaml")
    assert taken(conf, "app.yaml", sweep=sweep).text(path) == "n: 1"
    written(sweep, {"journal.jsonl": '{"event": "sweep"}\n{"event": "end"}\n'})
    assert taken(conf, "app.yaml", sweep=sweep).text(path) == "n: edited"
