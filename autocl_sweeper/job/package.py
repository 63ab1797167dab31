"""What the jobs of a launcher share, packed once by the controller, and the order of each one."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from logging.config import DictConfigurator
from pathlib import Path
from types import FunctionType
from typing import Any

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.job.compose import Composer
from autocl_sweeper.job.pickles import by_value, dumps, loads
from autocl_sweeper.job.program import MAIN, Place, Program, interpreter_options
from autocl_sweeper.outcome import JobFiles, write_whole
from autocl_sweeper.private import private_folder
from autocl_sweeper.types import Job

NOT_IMPORTED = (
    "jobs do not import the app's main file: %s. What it defines is sent to them as a copy"
)
# Their resolvers are registered anew in every process.
NOT_OF_APPS = (MAIN, "autocl_sweeper", "hydra", "hydra_plugins", "omegaconf")


@dataclass(frozen=True)
class Order:
    """One job: what it is to run, composed."""

    number: int
    overrides: tuple[str, ...]
    returns: bool  # whether it leaves a JobReturn, too
    config: Any


@dataclass(frozen=True)
class Opened:
    """A package in the process of a job, which is one of the app by now."""

    context: Any  # Hydra's
    function: Any
    flaw: str  # why the main file could not be imported; empty: it was


class Package:
    """Two pickles in one file, because the second cannot be read before the first is done.

    The program to enter, and modules to import; then context, singletons and task function.
    """

    def __init__(
        self, files: JobFiles, data: bytes, composer: Composer | None, written: bool = False
    ) -> None:
        self.files = files
        self.data = data
        self._composer = composer
        self._composed: tuple[tuple[str, ...], Any] | None = None  # of the last job
        # Not on disk before the first job: the folder may turn out to be another sweep's.
        self._written = written

    @classmethod
    def pack(cls, files: JobFiles, hydra_context: Any, config: Any, function: Any) -> Package:
        """Raises ConfigurationError for a function that no job could get."""
        from hydra.core.singleton import Singleton

        program = Program.of_this_process()
        if getattr(function, "__module__", MAIN) == MAIN and not program.can_be_imported:
            raise ConfigurationError(
                "The app's main module has no file, as in a notebook, an interactive session or `python -c`,"
                " so no job can start it.\n"
                "  hydra/launcher=gpu starts each job as the app was started. Put the app into a file and"
                " run `python app.py`\n"
                "  or `python -m package.app`; or take hydra/launcher=basic here, which runs jobs in this"
                " process. No job was started."
            )
        place = Place.of(function)
        copy: bytes | None = None
        if place is None or place.module == MAIN:
            try:
                copy = by_value(function)
            except Exception as error:  # it uses a lock or an open file: its place has to do
                if place is None:
                    raise ConfigurationError(
                        f"The task function {function!r} cannot be sent to a job process: {error}.\n"
                        "  It is pickled with the globals it uses, and one of them cannot be.\n"
                        "  Make that object inside the function, or move the function to the top of"
                        " a file."
                    ) from error
        state = Singleton.get_state()
        homes = sorted(_homes_of_resolvers(state)) if program.can_be_imported else []
        data = dumps((program, homes)) + dumps((hydra_context, state, place, copy))
        return cls(files, data, Composer(hydra_context.config_loader, config))

    def write(self) -> None:
        if not self._written:
            private_folder(self.files.folder)
            write_whole(self.files.package(), self.data)
            self._written = True

    def order(self, job: Job, returns: bool) -> bytes:
        """What the process of a job reads. Raises what composing the job does."""
        return dumps(Order(job.number, tuple(job.overrides), returns, self._config(job)))

    def section(self, job: Job, name: str) -> Mapping[str, Any]:
        """A section of a job's configuration, empty where it has none. Raises what composing does."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            node = OmegaConf.select(self._config(job), name)
            found = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_dict(node) else {}
        except OmegaConfBaseException:  # it holds what only the job itself resolves
            return {}
        return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}

    def _config(self, job: Job) -> Any:
        assert self._composer is not None
        overrides = tuple(job.overrides)
        if self._composed is None or self._composed[0] != overrides:
            self._composed = overrides, self._composer(overrides)
        return self._composed[1]

    def command(self) -> list[str]:
        """Starts one job process; an order's descriptor is to follow."""
        self.write()
        return command("autocl_sweeper.job.process", str(self.files.folder))


# `python -c` puts the working directory, as '', before the standard library: whatever lies there under the
# name of a module would be imported, before the program's own path is known.
_START = (
    "import sys; sys.path[:] = [sys.argv.pop(1), *filter(None, sys.path)];"
    " from importlib import import_module; import_module(sys.argv.pop(1)).main(*sys.argv[1:])"
)


def command(module: str, *arguments: str) -> list[str]:
    """Runs `main` of a module of ours, also where this package lies beside a script, not installed.

    With the interpreter's own options: a job is started as the app was.
    """
    home = str(Path(__file__).resolve().parents[2])
    options = interpreter_options(sys.orig_argv)
    return [sys.executable, *options, "-c", _START, home, module, *arguments]


def enter(data: bytes) -> str:
    """Make this process one of the app that packed `data`; why its main file is missing, if it is."""
    program, homes = loads(data)
    flaw: str = program.enter()
    for name in homes if not flaw else ():
        with suppress(Exception):  # a job that imports it meets the same error, and reports it
            import_module(name)
    return flaw


def opened(data: bytes, flaw: str) -> Opened:
    """What a package holds, with Hydra's singletons installed; `flaw` is what `enter` returned."""
    from hydra.core.singleton import Singleton
    from hydra.core.utils import setup_globals

    stream = BytesIO(data)
    pickle.load(stream)  # `enter` has read it
    context, state, place, copy = pickle.load(stream)
    Singleton.set_state(state)
    setup_globals()
    function = None
    if place is not None and not (flaw and place.module == MAIN):
        function = place.find()
    if function is None:
        if copy is None:
            raise ConfigurationError(
                f"The task function '{place.name}' is not in the program as a job imports it"
                f" ({flaw or 'its main file defines it in another way'}), and it cannot be pickled.\n"
                "  Define it at the top of its file, and guard what only the app itself is to do:"
                " if __name__ == '__main__':"
            )
        function = loads(copy)
    return Opened(context, function, flaw)


def _homes_of_resolvers(state: Any) -> set[str]:
    """The modules that registered resolvers: imported later in a job, they would register them twice."""
    cells = [
        cell.cell_contents
        for resolver in state["omegaconf_resolvers"].values()
        for cell in getattr(resolver, "__closure__", None) or ()
    ]
    names = {cell.__module__ for cell in cells if isinstance(cell, FunctionType)}
    return {name for name in names if name.partition(".")[0] not in NOT_OF_APPS}


def rehearse() -> None:
    """What parsers, OmegaConf and logging learn the first time: better once than in every job."""
    from omegaconf import OmegaConf, open_dict

    job = {
        "dir": "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}/${oc.env:HOME,x}",
        "sub": "${job.num}",
        "job": {"num": 1, "name": "x", "values": [1, 2.5, True, None, "text"]},
        "file": {"filename": "${dir}/${job.name}.log", "class": "logging.FileHandler"},
    }
    config = OmegaConf.create(job)
    with open_dict(config):
        config.job.num = 2
    OmegaConf.to_container(deepcopy(config), resolve=True)
    OmegaConf.to_yaml(pickle.loads(pickle.dumps(config)))
    DictConfigurator({"version": 1}).configure_formatter(
        {"format": "[%(levelname)s] - %(message)s"}
    )
