"""What is wrong with a text that is no YAML: the line to look at, and how to write it instead."""

from __future__ import annotations

import re
from typing import Any

NO_BREAK_SPACE = "\u00a0"
_OPENING = {"{": "}", "[": "]"}


def explained(error: Any, text: str) -> tuple[int, str]:
    """Line of a yaml.MarkedYAMLError, counted from 1, and its message with the repair where one is known."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else 1
    told = ", ".join(filter(None, (error.context, error.problem)))
    begun = error.context_mark
    open_above = ("while scanning a quoted", "while scanning a simple key")
    if begun is not None and begun.line + 1 < line and told.startswith(open_above):
        line = begun.line + 1  # what is not closed is noticed at the end of the file, or anywhere
    lines = text.splitlines() or [""]
    shown = lines[min(line, len(lines)) - 1]
    above = next((one for one in reversed(lines[: line - 1]) if one.strip()), "")
    repair = _repair(told, shown, above)
    return line, f"{told}." + (f"\n  {repair}" if repair else "")


def unreadable(path: str, error: UnicodeDecodeError) -> str:
    """Message for a file that is not UTF-8: the line, what it is more likely to be, and the repair."""
    read = bytes(error.object)
    if read[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"'{path}' is UTF-16, not UTF-8 text.{_convert('utf-16', path)}"
    line = read.count(b"\n", 0, error.start) + 1
    return (
        f"'{path}', line {line}: the byte 0x{read[error.start]:02x} is not UTF-8 text."
        + _convert("latin1", path)
    )


def forbidden(path: str, text: str) -> str | None:
    """Message for a text with a character that YAML forbids; None where there is none."""
    if "\0" in text[:4]:
        kind = "utf-16-be" if text.startswith("\0") else "utf-16-le"
        return f"'{path}' is UTF-16, not UTF-8 text.{_convert(kind, path)}"
    found = re.search(
        "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]", text
    )
    if found is None:
        return None
    line = text.count("\n", 0, found.start()) + 1
    return (
        f"'{path}', line {line}: this is not valid YAML: it has the control character"
        f" {found[0]!r}.\n  Remove it; in a text between double quotes it is written as an escape."
    )


def _convert(encoding: str, path: str) -> str:
    name = path.rpartition("/")[2]
    return (
        "\n  Save it as UTF-8 in your editor, or convert it:"
        f" iconv -f {encoding} -t utf-8 {name} > new.yaml"
    )


def _repair(told: str, line: str, above: str) -> str | None:
    """What to write instead of a line; None where the parser's own words have to do."""
    indent, (key, value) = _indent(line), _value(line)
    quoted = f"{key.strip()} '{value.replace(chr(39), chr(39) * 2)}'"
    if "\t" in line[: indent + 1] or "tab" in told:
        return "YAML is indented by spaces; this line has a tab. Replace it by spaces."
    if "???" in line and not re.search(r"[\"']\?\?\?", line):
        return 'Between {} and [] YAML wants ??? in quotes: "???".'
    if "mapping values are not allowed" in told and indent > _indent(above) and _value(above)[0]:
        return (
            "It is indented deeper than the line above, which has its value already. Begin it below"
            " the key of that line."
        )
    if "mapping values are not allowed" in told and key:
        return f"A value with a colon and a space in it wants quotes: {quoted}"
    if value[:1] in _OPENING and _ends_early(value):
        return f"A value that begins with a bracket and goes on behind it wants quotes: {quoted}"
    if value[:1] in ("@", "%", "`", "&", "!", "|", ">"):
        return f"A value that begins with {value[0]} wants quotes: {quoted}"
    if line.strip().startswith(("*:", "* :")):
        return 'The key of a star wants quotes: "*":'
    if "quoted scalar" in told and "escape" in told:
        return (
            "Between double quotes \\ begins an escape. Take single quotes, or write each \\ twice."
        )
    if "quoted scalar" in told:
        return "The quote that opens in this line is never closed."
    if "could not find expected ':'" in told and re.match(r"\s*[\w.-]+[:=]\S", line):
        spaced = re.sub(r"^(\s*[\w.-]+)\s*[:=]", r"\1: ", line).strip()
        return f"A key, a colon and a space stand before a value: {spaced}"
    if "flow mapping" in told or "flow sequence" in told:
        return "A { or [ that opens above is not closed, or a comma is missing."
    if "block mapping" in told or "block collection" in told:
        return (
            "Keys of one mapping begin in the same column; this line begins in another. Indent it as"
            " the keys it belongs to."
        )
    if "single document" in told:
        return "A file holds one document: remove the line ---, or make two files of it."
    return None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _value(line: str) -> tuple[str, str]:
    """('  key: ', 'the rest') of a line that sets a key."""
    found = re.match(r"(\s*(?:- )?[^\s:#][^:]*:\s+)(.*)", line)
    return (found[1], found[2].strip()) if found else ("", line.strip())


def _ends_early(value: str) -> bool:
    """Whether a flow mapping or list closes, and something other than a comment follows."""
    depth = 0
    for place, sign in enumerate(value):
        depth += (sign in _OPENING) - (sign in _OPENING.values())
        if depth == 0:
            return value[place + 1 :].split("#")[0].strip() not in ("", ",")
    return False
