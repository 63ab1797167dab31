"""One job: run the command, say what its end means, and find its numbers."""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from autocl_sweeper.errors import InfeasibleError
from autocl_sweeper.executor.process.groups import exit_reason
from autocl_sweeper.outcome import LOG_NAME, cause_in_log, last_lines
from autocl_sweeper.script.numbers import Listener, NoNumberError
from autocl_sweeper.script.process import run
from autocl_sweeper.script.settings import read
from autocl_sweeper.types import Cause

GRACE_S = 10.0  # from SIGTERM to SIGKILL, under launchers that say nothing
SHOWN = 10  # last lines of a command that failed


class CommandFailed(Exception):
    """The command ended with a status that does not mean success, or left no score."""


class OutOfMemoryError(CommandFailed):
    """A device had no memory left for the command; launchers know this by the name of the class."""


def check_job(config: Any) -> None:
    """Refuse what is wrong with a planned job. Raises ConfigurationError."""
    hydra = config.hydra
    read(config, hydra, Path(str(hydra.sweep.dir), "job").absolute())


def run_command(config: Any) -> dict[str, Any]:
    """Run the command of a job: its score, checkpoint and numbers.

    Raises ConfigurationError, CommandFailed, InfeasibleError.
    """
    hydra = HydraConfig.get()
    output_dir = Path(hydra.runtime.output_dir)
    settings = read(config, hydra, output_dir)
    script = settings.script
    checkpoint = output_dir / script.checkpoint
    checkpoint.mkdir(parents=True, exist_ok=True)
    argv = settings.argv()
    listener = Listener([one for one in settings.sources() if one.file is None])
    grace_s = float(OmegaConf.select(hydra.launcher, "grace_s", default=GRACE_S))
    log = output_dir / LOG_NAME
    with ExitStack() as stack:
        # Our launcher has put the log there, and what we write is in it; others keep none.
        copy = None if log.exists() else stack.enter_context(open(log, "wb", buffering=0))

        def heard(data: bytes) -> None:
            listener.feed(data)
            _write_all(data)
            if copy is not None:
                copy.write(data)

        heard(f"{shlex.join(argv)}\n".encode("utf-8", "surrogateescape"))
        status = run(argv, settings.folder(), settings.environment(), heard, grace_s)
    listener.close()
    saved = checkpoint.is_dir() and any(checkpoint.iterdir())  # the script may have removed it
    if checkpoint.is_dir() and not saved:
        checkpoint.rmdir()
    meaning = script.exit_codes.get(status, "failure")
    if meaning != "success":
        _fail(status, meaning, log)
    numbers: dict[str, float] = {}
    missing: list[str] = []
    for source in settings.sources():
        try:
            printed = source.file is None
            found = listener.number(source) if printed else source.in_file(output_dir)
            numbers[source.name] = found
        except NoNumberError as error:
            missing.append(str(error))
    if missing:
        raise CommandFailed(
            "\n  ".join([f"the command ended well (exit status {status}), but", *missing])
            + _shown(log)
        )
    return {
        **({} if script.score is None else {"score": numbers["script.score"]}),
        **{name: numbers[f"script.numbers.{name}"] for name in script.numbers},
        "eval": {task: numbers[one.name] for task, one in settings.evaluations().items()},
        "checkpoint": str(checkpoint) if saved else None,
    }


def _fail(status: int, meaning: str, log: Path) -> NoReturn:
    text = f"the command ended: {exit_reason(status) if status else 'exit status 0'}"
    if meaning == "infeasible":
        raise InfeasibleError(f"{text}, which script.exit_codes says is infeasible{_shown(log)}")
    cause = cause_in_log(last_lines(log))
    if meaning == "out_of_memory" or cause is Cause.DEVICE_MEMORY:
        raise OutOfMemoryError(f"{text}{_shown(log)}")
    kind = MemoryError if cause is Cause.HOST_MEMORY else CommandFailed
    raise kind(f"{text}{_shown(log)}")


def _shown(log: Path) -> str:
    lines = last_lines(log, SHOWN)
    return "".join(["\n  its last lines:", *(f"\n    | {line}" for line in lines)])


def _write_all(data: bytes) -> None:
    """Write to the job's output as its C code would, whatever became of sys.stdout."""
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]
