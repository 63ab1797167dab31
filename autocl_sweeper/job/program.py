"""The user's program in its jobs: described by the controller, imported as multiprocessing's spawn does it.

A job is started as the app was: with its interpreter options, `sys.path`, working directory and command
line. Its main file runs once under the name `__mp_main__`, before any state of the controller comes, and
stands in `sys.modules` as `__main__` too. So its classes can be pickled and instantiated by name, and what
it registers is registered. A main file without a guard would start Hydra again: that call ends the import.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from traceback import format_exception_only, walk_stack
from typing import Any, cast

MAIN, SPAWNED = "__main__", "__mp_main__"

importing = False  # whether this process imports a program now


class StartedAgain(BaseException):
    """Hydra was started by the top level of a main file that a job imports."""


def refuse_to_start_again() -> None:
    """Called by our search path plugin whenever Hydra starts. Raises StartedAgain in such an import."""
    modules = (frame.f_globals.get("__name__") for frame, _ in walk_stack(None))
    if importing and "hydra.main" in modules:
        raise StartedAgain


@dataclass(frozen=True)
class Program:
    """How the app was started. Without a main file `module` and `file` are empty."""

    argv: tuple[str, ...]
    path: tuple[str, ...]  # absolute
    cwd: str
    module: str  # of `python -m module`; `__main__` for a folder or an archive; empty for a script
    file: str

    @classmethod
    def of_this_process(cls) -> Program:
        main = sys.modules[MAIN]
        spec = getattr(main, "__spec__", None)
        file = os.path.abspath(getattr(main, "__file__", None) or "")
        return cls(
            argv=tuple(sys.argv),
            path=tuple(os.path.abspath(entry) for entry in sys.path),
            cwd=os.getcwd(),
            module="" if spec is None else spec.name,
            file=file if spec is not None or os.path.isfile(file) else "",
        )

    @property
    def can_be_imported(self) -> bool:
        return bool(self.module or self.file)

    def enter(self) -> str:
        """Make this process one of the app: paths, command line, main file.

        Returns why the main file could not be imported; empty when it was, or when there is none.
        """
        sys.path[:] = self.path
        os.chdir(self.cwd)
        sys.argv[:] = self.argv
        return self._import_main() if self.can_be_imported else ""

    def _import_main(self) -> str:
        global importing
        before = sys.modules[MAIN]
        main = types.ModuleType(SPAWNED)
        sys.modules[MAIN] = sys.modules[SPAWNED] = main
        importing = True
        try:
            exec(self._code(main), main.__dict__)
        except StartedAgain:
            return ""
        except (Exception, SystemExit) as error:
            sys.modules[MAIN] = before
            del sys.modules[SPAWNED]
            return format_exception_only(type(error), error)[-1].strip()
        finally:
            importing = False
        return ""

    def _code(self, main: types.ModuleType) -> types.CodeType:
        """The code of the main file; `main` gets the attributes that Python gives it."""
        if not self.module:
            loader = SourceFileLoader(SPAWNED, self.file)
            main.__dict__.update(__file__=self.file, __spec__=None, __loader__=loader)
            text = Path(self.file).read_bytes()
            code: types.CodeType = compile(text, self.file, "exec", dont_inherit=True)
            return code
        if self.module == MAIN:
            spec = PathFinder.find_spec(MAIN, [os.path.dirname(self.file)])
        else:
            spec = importlib.util.find_spec(self.module)
        if spec is None or spec.loader is None:
            raise ImportError(f"there is no module {self.module} any more")
        names = {"__file__": spec.origin, "__spec__": spec, "__package__": spec.parent}
        main.__dict__.update(names, __loader__=spec.loader)
        return cast(types.CodeType, spec.loader.get_code(spec.name))  # type: ignore[attr-defined]


def interpreter_options(words: Sequence[str]) -> list[str]:
    """The options before the program in a command line of Python (`sys.orig_argv`), but `-i`."""
    options: list[str] = []
    rest = list(words[1:])
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word.startswith("--"):
            options += [word, rest.pop(0)] if word == "--check-hash-based-pycs" else [word]
            continue
        for place, letter in enumerate(word[1:], start=1):
            if letter in "cm":
                return options
            if letter in "WX":
                options += [f"-{letter}", word[place + 1 :] or rest.pop(0)]
                break
            if letter != "i":
                options.append(f"-{letter}")
    return options


# -- functions of the program -------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a function stands: its module, and what tells it from the module's others."""

    module: str
    name: str
    line: int

    @classmethod
    def of(cls, function: Any) -> Place | None:
        """None for a function that its module does not lead to, or that is none."""
        code = getattr(function, "__code__", None)
        if code is None or function.__module__ not in sys.modules:
            return None
        place = cls(function.__module__, function.__qualname__, code.co_firstlineno)
        return place if place.find() is function else None

    def find(self) -> Any:
        """The function, however many decorators are around it; None where the module has it not.

        Raises what importing the module does.
        """
        module = importlib.import_module(self.module)
        seen: set[int] = set()
        waiting = [vars(module).get(self.name), *vars(module).values()]
        while waiting:
            one = waiting.pop(0)
            if id(one) in seen or not callable(one):
                continue
            seen.add(id(one))
            line = getattr(getattr(one, "__code__", None), "co_firstlineno", None)
            if line == self.line and one.__qualname__ == self.name:
                return one
            for cell in (isinstance(one, types.FunctionType) and one.__closure__) or ():
                with suppress(ValueError):  # nothing is in it yet
                    waiting.append(cell.cell_contents)
            inner = (getattr(one, name, None) for name in ("__wrapped__", "func", "__func__"))
            waiting += [function for function in inner if function is not None]
        return None
