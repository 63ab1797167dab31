"""The Hydra app behind `autocl finetune`: each of its jobs runs a script once and gives its score."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from autocl_sweeper.outcome import CHECKPOINT_NAME
from autocl_sweeper.reporter import final_result
from autocl_sweeper.script.template import as_text

NAME = "autocl_finetune"
OWN = "autocl"  # the key of the configuration that holds what the app itself needs
SAVED, MODEL = "saved_params_dir", "model_path"


class ScriptError(Exception):
    """A script ended well and left nothing that can be ranked, or started from."""


def run(config: DictConfig, overrides: Sequence[str]) -> None:
    """The multirun of this configuration. Exits as Hydra does when it fails."""
    ConfigStore.instance().store(name=NAME, node=config)
    sys.argv[1:] = ["--multirun", *overrides]
    hydra.main(version_base=None, config_path=None, config_name=NAME)(trial)()


def trial(config: Any) -> dict[str, Any]:
    """Run the script of one trial: its score and the folder of its model."""
    folder = Path(HydraConfig.get().runtime.output_dir) / CHECKPOINT_NAME
    folder.mkdir(exist_ok=True)
    argv = argv_of(config, folder)
    print(shlex.join(argv), flush=True)
    status = _run(argv)
    if status:
        _end_likewise(status)
    script = os.path.basename(config[OWN].script)
    score = final_result()
    if score is None:
        raise ScriptError(
            f"{script} ended without a result: it calls autocl_sweeper.report_final_result(score)"
        )
    if config[OWN].must_save and not any(folder.iterdir()):
        raise ScriptError(
            f"{script} saved nothing in --{SAVED}={folder}, where the next round starts from"
        )
    return {"score": score, "checkpoint": str(folder)}


def argv_of(config: Any, folder: Path) -> list[str]:
    """The command line of a trial: what is searched, the evaluator's own, then what is fixed."""
    own = config[OWN]
    options: dict[str, Any] = {name: OmegaConf.select(config, name) for name in own.names}
    if (epochs := OmegaConf.select(config, own.epochs)) is not None:
        options[own.epochs] = epochs
    options[SAVED] = str(folder)
    if config[MODEL] is not None:
        options[MODEL] = config[MODEL]
    options.update({name: text for name, text in own.rest})
    return [
        own.python,
        own.script,
        *(f"--{name}={as_text(value)}" for name, value in options.items()),
    ]


def _run(argv: Sequence[str]) -> int:
    """The exit status of a command; negative: the signal that ended it."""
    # A signal to the job is one to its script as well, whose end is waited for. Unlike SIG_IGN,
    # a function is not inherited.
    signal.signal(signal.SIGTERM, lambda *_: None)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # lines appear in the log as they come
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environment).wait()


def _end_likewise(status: int) -> NoReturn:
    """End this process as the script ended, so that the launcher sees what became of it."""
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    sys.exit(abs(status))
