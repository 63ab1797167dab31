"""A terminal of a given width that a program writes into, as a person would see it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import threading

import pyte

LINES = 40


class Terminal:
    """Reads until every writer has closed it. `frames`: the screen after each piece that came."""

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
        try:
            while data := os.read(self._ours, 65536):
                self._stream.feed(data)
                self.frames.append([line.rstrip() for line in self._screen.display])
        except OSError:  # the other end is closed
            pass

    def shows(self, text: str) -> bool:
        """Whether a line of the screen has this now."""
        return bool(self.frames) and any(text in line for line in self.frames[-1])

    def close(self) -> list[str]:
        """The last screen. Our copy of the other end is closed by whoever started the program."""
        self._reader.join(300)
        os.close(self._ours)
        return self.frames[-1]
