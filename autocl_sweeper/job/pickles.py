"""Pickles between a controller and its jobs, which share a program but not its objects.

What the main module defines goes by its name, so that a job has the class of its own `__main__`. A copy by
value goes along for what the job's import of that module does not define: what stands below its guard.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections import ChainMap
from functools import cache, reduce
from typing import Any, ClassVar

from autocl_sweeper.job.program import MAIN


def dumps(value: Any) -> bytes:
    """A pickle in which what the main module defines goes by its name. Raises what cloudpickle does."""
    return _dumped(_picklers()[0], value)


def by_value(value: Any) -> bytes:
    """A pickle that needs no main module. Raises what cloudpickle does."""
    return _dumped(_picklers()[1], value)


def loads(data: bytes) -> Any:
    return pickle.loads(data)


def _dumped(pickler: Any, value: Any) -> bytes:
    buffer = io.BytesIO()
    pickler(buffer).dump(value)
    return buffer.getvalue()


def _reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    """Since 3.1.3 cloudpickle leaves the file name out, and with it the lines of tracebacks."""
    from cloudpickle import CloudPickler  # type: ignore[import-untyped]

    return _code, (code.co_filename, *CloudPickler.dispatch_table[types.CodeType](code))


def _code(file: str, make: Any, arguments: tuple[Any, ...]) -> types.CodeType:
    made: types.CodeType = make(*arguments)
    return made.replace(co_filename=file)


@cache
def _picklers() -> tuple[Any, Any]:
    from cloudpickle import CloudPickler

    class ByValue(CloudPickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = ChainMap(
            {types.CodeType: _reduce_code}, CloudPickler.dispatch_table
        )

    class Pickler(ByValue):
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, (type, types.FunctionType)) and value.__module__ == MAIN:
                main = sys.modules[MAIN]
                if _lookup(main, value.__qualname__) is value:
                    return of_main, (value.__qualname__, _by_value(value))
            return super().reducer_override(value)

    return Pickler, ByValue


@cache
def _by_value(value: Any) -> bytes | None:
    try:
        return by_value(value)
    except Exception:  # it uses a lock or an open file; its name has to do
        return None


def of_main(name: str, data: bytes | None) -> Any:
    """What the main module of this process calls `name`, or its copy. Raises AttributeError."""
    found = _lookup(sys.modules[MAIN], name)
    if found is None:
        if data is None:
            raise AttributeError(
                f"the main module does not define '{name}' when a job imports it, and it cannot be"
                " pickled. Move it above `if __name__ == '__main__':`"
            )
        found = loads(data)
    return found


def _lookup(module: Any, name: str) -> Any:
    return reduce(lambda found, part: getattr(found, part, None), name.split("."), module)
