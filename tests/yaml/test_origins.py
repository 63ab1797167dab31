"""Where a value was written, whichever process asks: file, line and includes, or the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from support.files import written

from autocl_sweeper.yaml.origins import Layer, keys_of, layers_of, origin
from autocl_sweeper.yaml.snapshot import Snapshot, install

Plugins.instance()

ROOT = Path(__file__).resolve().parents[2]
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}
FILES = {
    "conf/config": "defaults: [base, db: plain, _self_]\nlr: 1\n'*': {x: 1}",
    "conf/base": "lr: 0.5\nname: base",
    "conf/db/plain": "# a comment\nhost: a\nport: 1",
    "conf/db/pg": "# @package db\n_include: plain.yaml\nport: 5",
    "conf/exp/root": "# @package _global_\ndefaults: [override /db: pg]\nextra: {y: 1}",
    "a": "_include: [below.yaml, other.yaml kept]\nlr: 2",
    "b": "\nlist:\n- 1\n- {z: 2}",
    "below": "name: below\nin:\n  deep: 1",
    "other": "kept: 1\nleft: 1",
    "more/db/far": "port: 9",
    "conf/swept": "defaults: [config, _self_]\nhydra:\n  sweeper:\n    params:\n      lr: 1,2",
    "conf/tasks": "defaults: [config, _self_]\nhydra: {sweeper: {task_params: {\n\n\na: [{lr: 5},\n{lr: 6}]}}}",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    written(tmp_path, FILES)
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(tmp_path / "conf"), **VERSION_BASE):
        yield tmp_path


def composed(folder: Path, *typed: str, files: tuple[str, ...] = ()) -> Any:
    name = "+".join(["config", *(f"{folder}/{file}.yaml" for file in files)])
    return compose(name, list(typed), return_hydra_config=True).hydra


BOTH = ("a", "b")
FAR = "hydra.searchpath=['file://{}/more']"
PLACES: list[tuple[tuple[str, ...], list[str], str, str | None]] = [
    # files, overrides, key, where it was written
    ((), [], "lr", "conf/config.yaml:2"),
    ((), [], "name", "conf/base.yaml:2"),
    ((), [], "db.port", "conf/db/plain.yaml:3"),
    ((), ["db=pg"], "db.port", "conf/db/pg.yaml:3"),
    ((), ["db=pg"], "db.host", "conf/db/plain.yaml:2, included from conf/db/pg.yaml"),
    ((), ["+exp=root"], "extra.y", "conf/exp/root.yaml:3"),
    ((), ["+exp=root"], "db.port", "conf/db/pg.yaml:3"),  # as that file chooses
    ((), ["lr=3"], "lr", "the command line"),
    ((), ["+db.new={q: 1}"], "db.new.q", "the command line"),
    ((), ["~lr"], "lr", "conf/config.yaml:2"),
    ((), ["+db@second=pg"], "second.port", "conf/db/pg.yaml:3"),
    ((), [FAR, "db=far"], "db.port", "more/db/far.yaml:1"),
    (BOTH, [], "lr", "a.yaml:2"),
    (BOTH, [], "name", "below.yaml:1, included from a.yaml"),
    (BOTH, [], "in.deep", "below.yaml:3, included from a.yaml"),
    (BOTH, [], "kept", "other.yaml:1, included from a.yaml"),
    (BOTH, [], "left", None),
    (BOTH, [], "list[1].z", "b.yaml:4"),
    (BOTH, [], "list[7]", "b.yaml:2"),  # its nearest parent
    (BOTH, ["db=pg"], "db.port", "conf/db/pg.yaml:3"),
    (BOTH, [], "hydra.run.dir", None),
]


@pytest.mark.parametrize(("files", "typed", "key", "place"), PLACES)
@pytest.mark.parametrize("recorded", [False, True], ids=["from disk", "from a snapshot"])
def test_a_value_is_found_where_it_was_written(
    folder: Path,
    files: tuple[str, ...],
    typed: list[str],
    key: str,
    place: str | None,
    recorded: bool,
) -> None:
    typed = [text.format(folder) if "{}" in text else text for text in typed]
    if not recorded:
        assert origin(layers_of(composed(folder, *typed, files=files)), key) == place
        return
    with install(Snapshot([str(folder)])) as snapshot:
        of_hydra = composed(folder, *typed, files=files)
        snapshot.complete(folder)
        written(folder, dict.fromkeys(FILES, "\n\n\nedited: true"))
        assert origin(layers_of(of_hydra), key) == place


@pytest.mark.parametrize(
    ("name", "typed", "place"),
    [("swept", "lr=2", "conf/swept.yaml:5"), ("tasks", "lr=5", "conf/tasks.yaml:5"),
     ("tasks", "lr=6", "conf/tasks.yaml:6"), ("tasks", "name=x", "the command line")],
)  # fmt: skip
def test_a_value_that_a_job_got_from_a_search_space_is_found_there(
    folder: Path, name: str, typed: str, place: str
) -> None:
    choice = "hydra/sweeper=autocl"
    of_hydra = compose(name, [typed, choice], return_hydra_config=True).hydra
    assert origin(layers_of(of_hydra), typed.partition("=")[0]) == place


def test_what_a_star_gave_is_found_at_the_star_and_another_name_where_it_was_said() -> None:
    layers = [Layer({"task": {"*": {"x": 1}, "a": {}}, "old": 1}, text="", file="")]
    assert origin(layers, "task.a.x") == "the command line"
    assert origin(layers, "new", ["gone", "old"]) == "the command line, as old"
    assert origin(layers, "nowhere.x") is None


def test_a_file_of_defaults_says_nothing_of_a_key_it_does_not_have() -> None:
    defaults = Layer({"trainer": {}}, "/conf/trainer/default.yaml", ("trainer",))
    assert origin([defaults], "trainer.max_steps") is None


@pytest.mark.parametrize("key", ["a", "a.b", "a.b[0].c", "a[1][2]"])
def test_keys_are_taken_apart_as_they_are_put_together(key: str) -> None:
    from autocl_sweeper.yaml.text import dotted

    assert dotted(keys_of(key)) == key


def test_a_process_that_was_sent_its_configuration_finds_file_and_line(folder: Path) -> None:
    """It gets Hydra's singletons, as job processes of every launcher do, and has read nothing."""
    import cloudpickle

    (folder / "sent").write_bytes(
        cloudpickle.dumps((Singleton.get_state(), composed(folder, files=BOTH)))
    )
    code = (
        "import pickle; from hydra.core.singleton import Singleton\n"
        "state, of_hydra = pickle.load(open('sent', 'rb')); Singleton.set_state(state)\n"
        "from autocl_sweeper.yaml.origins import layers_of, origin\n"
        "print(origin(layers_of(of_hydra), 'in.deep'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip
    assert done.stdout == "below.yaml:3, included from a.yaml\n", done.stderr


def test_without_hydra_at_work_nothing_is_known(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_hydra = composed(folder)
    monkeypatch.setattr(GlobalHydra.instance(), "hydra", None)
    assert layers_of(of_hydra) == []
    monkeypatch.undo()
