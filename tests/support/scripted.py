"""Sweeps of `python -m autocl_sweeper.script` for tests, in a folder of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from support.bench import APPS, Bench

OURS = ("hydra/sweeper=autocl", "hydra/launcher=gpu")
STRANGER: dict[str, Any] = {
    "defaults": ["autocl_script", "_self_"],
    "script": {
        "command": [
            "{python}",
            str(APPS / "stranger.py"),
            "--target={target}",
            "--rate={rate}",
            "--out={checkpoint_dir}",
            "--end={end}",
            ["--words", "{words}"],
            ["--resume", "{init_from}/w.json"],
        ],
        "score": {"key": "eval.score"},
    },
    "tasks": {"a": {"target": 1.0}, "b": {"target": -1.0}},
    "task": "a",
    "params": {"rate": 1.0, "end": "well", "words": None},
}


class Scripted(Bench):
    """One script's file, swept."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder, APPS / "stranger.py")
        (folder / "conf").mkdir()
        (folder / "conf/swept.yaml").write_text(yaml.safe_dump(config))

    def command(self, *arguments: str) -> list[str]:
        named = ["--config-dir", str(self.folder / "conf"), "--config-name", "swept"]
        argv = [sys.executable, "-m", "autocl_sweeper.script", "-m", *named]
        return [*argv, f"hydra.sweep.dir={self.sweep}", *arguments]

    def log(self, number: int) -> str:
        """job.log of a trial's last attempt."""
        event = [one for one in self.events("start") if one["trial"] == number][-1]
        return (self.sweep / event["folder"] / "job.log").read_text("utf-8", "replace")
