"""`_include` in every way that Hydra reads a file, and Hydra itself where nobody includes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins import file_config_source as hydras
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from support.files import written

from autocl_sweeper.yaml.snapshot import Snapshot, install

Plugins.instance()

ROOT = Path(__file__).resolve().parents[2]
OLD = hydra.__version__.startswith("1.3.")
VERSION_BASE = {"version_base": "1.3"} if OLD else {}

FILES = {
    "config": "defaults: [{db: plain}, _self_]\n_include: base.yaml\nlr: 1",
    "base": "lr: 0.5\nname: base\ndir: root",
    "db/plain": "host: a\nport: 1",
    "db/pg": "# @package db\n_include: plain.yaml\nport: 5",
    "db/lost": "_include: plain.yaml\nport: 5",
    "sub/includes": "_include: ../base.yaml\nlr: 2",
    "sub/headed": "# @package here\n_include: ../base.yaml\nlr: 2",
    "sub/plain": "lr: 2",
    "over": "_include: sub/plain.yaml\ndb: {port: 9}\ndir: ${dir}/over",
    "more": "dir: ${dir}/more\nlr: 3",
}
BASE = {"name": "base", "dir": "root"}
PLAIN = {"host": "a", "port": 1}

COMPOSED: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "the primary config": ("config", [], {**BASE, "lr": 1, "db": PLAIN}),
    "a group with a header": ("config", ["db=pg"], {**BASE, "lr": 1, "db": {**PLAIN, "port": 5}}),
    "a group without one lands at the root": (
        "config",
        ["db=lost"],
        {**BASE, "lr": 1, "host": "a", "port": 5},
    ),
    "a config in a folder that includes is no group": ("sub/includes", [], {**BASE, "lr": 2}),
    "its header wins": ("sub/headed", [], {"here": {**BASE, "lr": 2}}),
    "one that does not include is where Hydra puts it": ("sub/plain", [], {"sub": {"lr": 2}}),
    "several files": (
        "config+over+more",
        ["lr=4"],
        {"name": "base", "dir": "root/over/more", "lr": 4, "db": {"host": "a", "port": 9}},
    ),
    "several files, a group chosen": (
        "config+more",
        ["db=pg"],
        {"name": "base", "dir": "root/more", "lr": 3, "db": {"host": "a", "port": 5}},
    ),
    "several files, the first one in a folder": (
        "sub/includes+more",
        [],
        {"name": "base", "dir": "root/more", "lr": 3},
    ),
}


@pytest.fixture(autouse=True)
def no_hydra_left() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return written(tmp_path / "conf", FILES)


def composed(conf: Path, name: str, overrides: list[str] | None = None) -> Any:
    with initialize_config_dir(str(conf), **VERSION_BASE):
        return OmegaConf.to_container(compose(name, overrides or []))


@pytest.mark.parametrize("name, overrides, values", COMPOSED.values(), ids=COMPOSED.keys())
def test_files_and_then_their_snapshot_compose_to_these_values_whatever_becomes_of_the_files(
    conf: Path, name: str, overrides: list[str], values: dict[str, Any]
) -> None:
    assert composed(conf, name, overrides) == values
    snapshot = Snapshot([str(conf)])
    with install(snapshot):
        assert composed(conf, name, overrides) == values
        snapshot.complete(conf)
        written(conf, {name: "edited: true" for name in FILES})
        assert composed(conf, name, overrides) == values


def test_absolute_parts_are_found_from_everywhere(conf: Path, tmp_path: Path) -> None:
    written(tmp_path, {"far/over": "_include: more.yaml\ndir: ${dir}/far", "far/more": "new: 1"})
    values = composed(conf, f"config+{tmp_path}/far/over.yaml")
    assert values == {**BASE, "lr": 1, "db": PLAIN, "new": 1, "dir": "root/far"}


def test_a_file_that_has_a_plus_in_its_name_is_that_file(conf: Path) -> None:
    written(conf, {"db/plain+pg": "host: plus", "more+over": "name: plus"})
    assert composed(conf, "more+over") == {"name": "plus"}
    assert composed(conf, "config", ["db=plain+pg"])["db"] == {"host": "plus"}


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_first_file_brings_its_groups_however_they_are_spelled(
    tmp_path: Path, slash: str
) -> None:
    defaults = f"""defaults:
      - {slash}db: plain
      - optional {slash}db@second: gone
      - {slash}db@third: [plain]
      - {slash}shared
      - override {slash}hydra/job_logging: none
      - _self_
    """
    files = {"config": defaults, "db/plain": "port: 1", "shared": "name: shared", "more": "a: 1"}
    conf = written(tmp_path, files)
    values = {"db": {"port": 1}, "third": {"port": 1}, "name": "shared", "a": 1}
    assert composed(conf, "config+more") == values


# -- what Hydra reads as ever -----------------------------------------------------------------------

AS_EVER = {
    "plain": "a: 1\nb: ${a}",
    "empty": "",
    "headed": "# @package here\na: 1",
    "commented": "# _include: gone.yaml\na: 1",
    "in_a_text": "a: _include",
    "another_key": "my_include: x\n_included: y",
    "in_a_list": "a: [_include]",
    "a_list": "- a\n- b",
    "a_text": "a",
    "with_defaults": "defaults: [x]\na: 1",
    "a+b": "a: 1",
}


@pytest.mark.parametrize("recorded", [False, True], ids=["from disk", "from a snapshot"])
@pytest.mark.parametrize("text", ["a: 1\nb: [1, x: y: z", "a: 1\na: 2", b"a: 1\nb: \xfc"])
def test_a_file_that_hydra_cannot_read_is_refused_with_its_line(
    tmp_path: Path, recorded: bool, text: str | bytes
) -> None:
    (tmp_path / "a.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    source = SourcesRegistry.instance().types["file"]("main", str(tmp_path))
    with ExitStack() as stack:
        if recorded:
            stack.enter_context(install(Snapshot([str(tmp_path)])))
        with pytest.raises(ConfigCompositionException, match=rf"'{tmp_path}/a\.yaml', line 2: "):
            source.load_config(config_path="a")


@pytest.mark.parametrize("name", [*AS_EVER, "gone", "gone+plain"])
@pytest.mark.parametrize("recorded", [False, True], ids=["from disk", "from a snapshot"])
def test_a_file_that_does_not_include_is_read_as_by_hydra(
    tmp_path: Path, name: str, recorded: bool
) -> None:
    written(tmp_path, AS_EVER)

    def seen(kind: type[hydras.FileConfigSource]) -> Any:
        source = kind("main", str(tmp_path))
        told: list[Any] = [source.is_config(name), source.is_group(name), source.available()]
        told += [source.list("", None)]
        try:
            result = source.load_config(config_path=name)
        except Exception as error:
            return [*told, type(error), str(error).replace("<file>", f"{tmp_path}/{name}.yaml")]
        config = OmegaConf.to_container(result.config)
        return [*told, config, result.path, result.provider, result.header, result.defaults_list]

    theirs = seen(hydras.FileConfigSource)
    if not recorded:
        assert seen(SourcesRegistry.instance().types["file"]) == theirs
        return
    with install(Snapshot([str(tmp_path)])) as snapshot:
        assert seen(SourcesRegistry.instance().types["file"]) == theirs
        snapshot.complete(tmp_path)
        assert seen(SourcesRegistry.instance().types["file"]) == theirs


# -- the hook ---------------------------------------------------------------------------------------


def test_the_hook_can_be_put_back_any_time(conf: Path) -> None:
    """Hydra 1.4 imports plugins once: who restores older singletons loses what that did."""
    from hydra_plugins.hydra_autocl_sweeper.include import register

    SourcesRegistry.instance().types["file"] = hydras.FileConfigSource
    assert "_include" in composed(conf, "sub/includes")["sub"]
    register()
    register()
    assert composed(conf, "sub/includes") == {**BASE, "lr": 2}


def test_the_hook_is_there_after_singletons_from_before_the_plugins_were_restored(
    conf: Path,
) -> None:
    """As `hydra_restore_singletons` of Hydra's own pytest plugin does after every test."""
    now = Singleton.get_state()
    before = {key: one for key, one in now["instances"].items() if key is not SourcesRegistry}
    try:
        Singleton.set_state({**now, "instances": before})
        assert composed(conf, "sub/includes") == {**BASE, "lr": 2}
    finally:
        Singleton.set_state(now)


# -- real apps --------------------------------------------------------------------------------------

APP = f"""
import sys, hydra
from autocl_sweeper.command_line import rewrite

@hydra.main({'version_base="1.3", ' if OLD else ""}config_path="conf", config_name="config")
def main(cfg):
    print(dict(cfg))
    return float(cfg.lr)

if __name__ == "__main__":
    sys.argv[1:] = rewrite(sys.argv[1:])
    main()
"""


@pytest.fixture
def app(conf: Path) -> Path:
    folder = conf.parent
    (folder / "app.py").write_text(APP)
    written(
        folder, {"far/other": "_include: ../conf/base.yaml\nlr: 7", "layer": "dir: ${dir}/layer"}
    )
    return folder


def run(app: Path, *arguments: str, status: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "app.py", *arguments],
        cwd=app,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def test_an_app_shows_its_configuration(app: Path) -> None:
    shown = run(app, "layer.yaml", "--cfg", "job", "--db.port=3", "--resolve", "db=pg")
    values = {**BASE, "lr": 1, "db": {**PLAIN, "port": 3}, "dir": "root/layer"}
    assert yaml.safe_load(shown) == values


def test_an_app_is_given_another_folder_and_name(app: Path) -> None:
    shown = run(app, "--config-dir", "far", "--config-name", "other", "--cfg", "job")
    assert yaml.safe_load(shown) == {**BASE, "lr": 7}


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], id="joblib"),
        # Our own job processes are tried with sweeps, in test_drift.py.
        pytest.param(["hydra/launcher=gpu"], id="gpu", marks=pytest.mark.slow),
    ],
)
def test_worker_processes_of_a_multirun_include_too(app: Path, launcher: list[str]) -> None:
    run(app, "layer.yaml", "-m", "lr=5,6", *launcher, "hydra.sweep.dir=swept")
    for number, lr in enumerate((5, 6)):
        used = yaml.safe_load((app / f"swept/{number}/.hydra/config.yaml").read_text())
        assert used == {**BASE, "lr": lr, "db": PLAIN, "dir": "root/layer"}


def test_a_mistake_is_reported_with_the_chain_and_no_traceback(app: Path) -> None:
    written(
        app, {"layer": "_include: conf/bad.yaml", "conf/bad": "a: 1\n_include: [base.yaml, x.yaml]"}
    )
    told = run(app, "layer.yaml", status=1)
    assert "Traceback" not in told
    assert f"There is no file '{app}/conf/x.yaml'." in told
    assert f"_include: 'x.yaml' in '{app}/conf/bad.yaml', line 2" in told
    assert f"included from '{app}/layer.yaml'" in told
