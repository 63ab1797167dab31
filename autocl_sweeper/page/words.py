"""Text of a page: numbers and times as people read them, and text of jobs made safe to show."""

from __future__ import annotations

import math
import re
import shlex

from autocl_sweeper.plain import plain

NOTHING = "\u2013"
WORDS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip
PATH = re.compile(r"(?<![\w.~/-])~?/(?:[^\s'\":,;=()\[\]{}/]+/)+(?=[^\s'\":,;=()\[\]{}/])")


def clean(text: str) -> str:
    """Text without terminal escapes, control characters, and bytes that no encoding has."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")  # a progress bar is a line each time
    return plain(lines).encode("utf-8", "replace").decode()


def without_paths(text: str) -> str:
    """Text whose absolute paths are shortened to their last part: they name users and machines."""
    return PATH.sub("…/", text)


def shown(text: str) -> str:
    return without_paths(clean(text))


def score(value: float | None) -> str:
    """Three decimals; four digits where three decimals would say too little or too much; 120,800."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    if 1e4 <= abs(value) < 1e7:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3f}" if 0.01 <= abs(value) < 100 else f"{value:.4g}"
    return text.replace("-", "\u2212")


def drop(value: float | None) -> str:
    """A difference, in three decimals; 0 for none."""
    if value is None:
        return NOTHING
    return "0" if abs(value) < 5e-4 else f"{value:.3f}".replace("-", "\u2212")


def short_score(value: float | None) -> str:
    """The same without the zero before the point."""
    return re.sub(r"^(\u2212?)0\.", r"\1.", score(value))


def share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0%}"


def setting(value: object) -> str:
    """A hyper-parameter as it is read."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return shown(str(value))


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"


def number(count: int) -> str:
    """A small number as a word."""
    return WORDS[count] if count < len(WORDS) else f"{count:,}"


def counted(count: int, what: str) -> str:
    """`3 trials`, `1 trial`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def joined(words: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def bare_key(key: str) -> str:
    """The last part of an override key."""
    return shown(key).rpartition(".")[2].lstrip("+")


def command_line(text: str) -> str:
    """A command whose absolute paths are shortened."""
    try:
        words = shlex.split(text)
    except ValueError:
        return shown(text)
    return " ".join(
        shown(word) if re.fullmatch(r"[\w.,:/=+@%~-]+", word) else shlex.quote(shown(word))
        for word in words
    )
