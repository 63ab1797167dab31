"""The screen, which is never the reason that a sweep ends.

A terminal that is gone, a closed stdout, a pipe that is full and is not read, an encoding that lacks a
character: what cannot be shown is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from autocl_sweeper.plain import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PATIENCE_S = 1.0  # for a pipe that is full, once; then nothing waits until it is read again
PIPE_BYTES, TERMINAL_BYTES = 4096, 256  # what can be written without waiting when poll says so


def screen(stderr: bool = False) -> Console:
    """A console of rich that shows strings as they are: markup and terminal sequences are text."""
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(plain(text), **{**options, "markup": False, "emoji": False})

    return PlainConsole(stderr=stderr)


def table() -> Table:
    """An empty table with a line below its head and none around it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


class PatientStream:
    """A text stream in front of another: `write` neither raises nor waits long."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._lost = 0  # characters since the last that were shown
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        try:
            self._descriptor: int | None = stream.fileno()
        except (OSError, ValueError, AttributeError):
            self._descriptor = None
        terminal = self._descriptor is not None and os.isatty(self._descriptor)
        self._most = TERMINAL_BYTES if terminal else PIPE_BYTES

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._lock:
            if self._lost and self._show(f"\n[{self._lost} characters could not be shown]\n"):
                self._lost = 0
            if not self._show(text):
                self._lost += len(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        if self._descriptor is None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def _show(self, text: str) -> bool:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        shown = text.encode(encoding, "backslashreplace")
        try:
            if self._descriptor is None:
                self._stream.write(shown.decode(encoding))
                return True
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            while shown:
                if not poll.poll(0 if self._lost else PATIENCE_S * 1000):
                    return False
                shown = shown[os.write(self._descriptor, shown[: self._most]) :]
        except (OSError, ValueError):
            return False
        return True


@contextlib.contextmanager
def patient_screen() -> Iterator[None]:
    """In this block stdout, stderr and the log handlers on them are patient."""
    _occupy_standard_descriptors()
    before = sys.stdout, sys.stderr
    made: dict[int, Any] = {}

    def patient(stream: Any) -> Any:
        if isinstance(stream, PatientStream) or not any(stream is one for one in before):
            return stream
        if id(stream) not in made:
            # Closed before Python began: there is no stream at all.
            made[id(stream)] = PatientStream(stream or open(os.devnull, "w"))  # noqa: SIM115
        return made[id(stream)]

    sys.stdout, sys.stderr = map(patient, before)
    try:
        with moved_handlers(patient):
            yield
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def moved_handlers(moved: Callable[[Any], Any]) -> Iterator[None]:
    """In this block log handlers on streams, files among them, write to what `moved` gives for each."""
    with contextlib.ExitStack() as back:
        for logger in (logging.getLogger(), *logging.root.manager.loggerDict.values()):
            for handler in getattr(logger, "handlers", ()):
                if isinstance(handler, logging.StreamHandler):
                    before, now = handler.stream, moved(handler.stream)
                    if now is not before:  # the others may open another file meanwhile
                        back.callback(handler.setStream, before)
                        handler.setStream(now)
        yield


def _occupy_standard_descriptors() -> None:
    """Open /dev/null where one is closed, or the next file opened becomes stdout of child processes."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free


def four(score: float | None) -> str:
    """A score as tables and commands print it: four decimals, or four digits of a small one."""
    if score is None:
        return "-"
    return f"{score:.4f}" if score == 0 or abs(score) >= 0.01 else f"{score:.4g}"
