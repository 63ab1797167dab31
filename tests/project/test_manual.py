"""`autocl docs`: the pages that come with an installation, and what they say about a key."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
from support.installed import ROOT

from autocl_sweeper.cli import main
from hydra_plugins.hydra_autocl_sweeper import _schema

GROUPS = {
    "hydra.sweeper": _schema.AutoCLSweeperConf,
    "hydra.launcher": _schema.RayLauncherConf,  # all keys of the GPU launcher and its own
}
CHOICES = {"_target_", "_recursive_", "defaults", "search"}  # of Hydra; groups, not keys
KEYS = [
    (group, field.name)
    for group, conf in GROUPS.items()
    for field in fields(conf)
    if field.name not in CHOICES
]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["docs", *arguments]) == 0
    return capsys.readouterr().out


def test_without_an_argument_every_page_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = [line.split()[0] for line in printed(capsys).splitlines()]
    assert listed == sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("name", ["launcher", "launcher.md", "docs/launcher.md"])
def test_a_page_is_printed_whole(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert printed(capsys, name).strip() == (ROOT / "docs/launcher.md").read_text().strip()


@pytest.mark.parametrize(("group", "name"), KEYS, ids=[".".join(key) for key in KEYS])
def test_every_key_of_the_plugin_is_explained_by_its_row(
    capsys: pytest.CaptureFixture[str], group: str, name: str
) -> None:
    page, key, default, meaning = (
        line for line in printed(capsys, f"{group}.{name}").splitlines()[:5] if line
    )
    assert page.split(":")[0] in ("== sweeper", "== launcher", "== machines")
    assert key.startswith("key: ") and f"`{name}`" in key
    assert default.startswith("default: ") and meaning.startswith("meaning: ")


def test_what_else_names_a_key_follows_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "hydra.launcher.grace_s")
    assert text.count("key: ") == 1
    assert "== launcher: Ends of jobs" in text and "**Signals.**" in text


def test_a_key_in_two_groups_is_explained_in_both(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "retries")
    assert "== launcher: Keys" in text and "== sweeper: Keys" in text
    assert "== launcher: Keys" not in printed(capsys, "hydra.sweeper.retries")


def test_a_name_without_a_row_is_found_where_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "AUTOCL_LEASE_DIR")
    assert "== launcher: Devices" in text and "mounted" in text


def test_an_unknown_key_is_an_error_with_the_nearest_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["docs", "hydra.launcher.grce_s"]) == 1
    told = capsys.readouterr().err
    assert "no page and no key 'hydra.launcher.grce_s'" in told
    assert "Did you mean hydra.launcher.grace_s?" in told
    assert "Pages: " in told and " configuration, " in told


@pytest.mark.parametrize("page", ["launching", "machines"])
def test_a_reader_that_has_enough_is_no_error(page: str) -> None:
    command = [sys.executable, "-m", "autocl_sweeper", "docs", page]
    autocl = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert autocl.stdout and autocl.stderr
    autocl.stdout.close()
    assert (autocl.stderr.read(), autocl.wait(300)) == (b"", 0)
    autocl.stderr.close()
