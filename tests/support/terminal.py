"""A terminal of a given width that a program writes into, as a person would see it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import threading
from contextlib import suppress

import pyte

LINES = 40
REDRAW = b"\r\x1b[2K"  # what rich begins each of them with


class Terminal:
    """Reads until every writer has closed it. `frames`: the screen before each redraw, and the last one.

    So they are whole, in whatever pieces a redraw comes.
    """

    def __init__(self, columns: int) -> None:
        self._ours, self.theirs = pty.openpty()
        size = struct.pack("HHHH", LINES, columns, 0, 0)
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, size)
        self._screen = pyte.Screen(columns, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self.frames: list[list[str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        unseen = b""
        with suppress(OSError):  # the other end is closed
            while data := os.read(self._ours, 65536):
                *whole, unseen = (unseen + data).split(REDRAW)
                for text in whole:
                    self._show(text)
                    self._stream.feed(REDRAW)
        self._show(unseen)

    def _show(self, text: bytes) -> None:
        self._stream.feed(text)
        self.frames.append([line.rstrip() for line in self._screen.display])

    def type(self, keys: str) -> None:
        """Press these keys; Ctrl-C is \x03."""
        os.write(self._ours, keys.encode())

    @property
    def cursor_hidden(self) -> bool:
        return bool(self._screen.cursor.hidden)

    def shows(self, text: str) -> bool:
        """Whether a line of the last frame has this."""
        return bool(self.frames) and any(text in line for line in self.frames[-1])

    def close(self) -> list[str]:
        """The last screen. Our copy of the other end is closed by whoever started the program."""
        self._reader.join(300)
        os.close(self._ours)
        return self.frames[-1]
