"""Text of users and jobs as text: nothing in it moves a cursor, colours a line or hides one."""

from __future__ import annotations

import re

_SEQUENCE = re.compile(  # ECMA-48: CSI ... final byte; OSC, DCS and others up to their end; ESC x
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])"
    r"|\x9b[0-?]*[ -/]*[@-~]?"
)
# Controls apart from tab and line feed, and marks that turn the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def masked(text: str) -> str:
    """`text` without its numbers: equal for messages that differ in nothing else."""
    return re.sub(r"\d+", "#", text)


def plain(text: str) -> str:
    """`text` without terminal sequences and control characters; lines end in a line feed."""
    if text.isprintable():
        return text
    return _CONTROL.sub("", _SEQUENCE.sub("", text.replace("\r\n", "\n").replace("\r", " ")))
