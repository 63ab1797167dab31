"""What the README says to type does what it says: its blocks, copied and run as real processes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from support.installed import ROOT
from support.readme import COMMANDS, README, block, typed


def test_the_own_app_of_the_readme_sweeps_and_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    (tmp_path / "my_app.py").write_text(block("python"))
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/config.yaml").write_text(block("yaml"))
    typed("python my_app.py", tmp_path)  # a Hydra app of its own
    (command,) = (line for line in COMMANDS if line.startswith("python my_app.py"))
    printed = typed(command, tmp_path)
    assert "average accuracy" in printed and "Best chain: score" in printed
    (look,) = (line for line in COMMANDS if line == "autocl report runs/first")
    typed(look, tmp_path)
    assert (tmp_path / "runs/first/report.html").exists()


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([\w-]+)", README))
    assert {"demo", "test"} <= named <= targets


def test_every_page_and_picture_that_the_readme_links_exists() -> None:
    linked = re.findall(r"\]\(([^)#:]+)[)#]", README) + re.findall(
        r"(?:src|srcset)=\"(.*?)\"", README
    )
    missing = [path for path in linked if not os.path.exists(ROOT / path)]
    assert linked and not missing
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages <= set(linked), "each page of the documentation is linked"
