"""Pickles between a controller and its jobs, which share a program but not its objects.

What the main module defines goes by its name, so that a job has the class of its own `__main__`. A copy by
value goes along for what the job's import of that module does not define: what stands below its guard.
"""

from __future__ import annotations

import io
import sys
import types
from functools import cache
from typing import Any

from autocl_sweeper.job.program import MAIN


def cloudpickle() -> Any:
    try:
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError:  # joblib before 1.6 carries its own copy instead of requiring the package
        from joblib.externals import cloudpickle  # type: ignore[import-untyped]
    return cloudpickle


def dumps(value: Any) -> bytes:
    """Raises what cloudpickle does."""
    buffer = io.BytesIO()
    _pickler()(buffer).dump(value)
    return buffer.getvalue()


def loads(data: bytes) -> Any:
    return cloudpickle().loads(data)


@cache
def _pickler() -> Any:
    class Pickler(cloudpickle().CloudPickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, (type, types.FunctionType)) and value.__module__ == MAIN:
                main = sys.modules[MAIN]
                if _lookup(main, value.__qualname__) is value:
                    return of_main, (value.__qualname__, _by_value(value))
            return super().reducer_override(value)

    return Pickler


@cache
def _by_value(value: Any) -> bytes | None:
    try:
        data: bytes = cloudpickle().dumps(value)
    except Exception:  # it uses a lock or an open file; its name has to do
        return None
    return data


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
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
