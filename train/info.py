"""`python train.py --info trainer`: the options of a section, from the same dataclasses as its checks."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from typing import Any, get_args, get_origin

from autocl_sweeper.command_line import INFO, INFO_VALUES
from train.config.ofasys import OFASYS
from train.config.schema import KINDS, SECTIONS, TopLevel
from train.config.typed import default_of, hints, nearest, options, type_text


def answer(argv: Sequence[str]) -> str | None:
    """What `--info` asks of us in `argv`; None: it is not there, or asks Hydra.

    Without a value, and with the name of a section (`trainer`, `task.dataset`), it is ours.
    Raises ValueError for what neither of us knows.
    """
    for place, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag not in INFO:
            continue
        if not equals:
            following = argv[place + 1] if place + 1 < len(argv) else ""
            # The next word may be an option, an override or a file: then there is no value.
            is_other = following.startswith("-") or following.endswith((".yaml", ".yml"))
            value = "" if is_other or "=" in following else following
        if value in INFO_VALUES:
            return None
        return overview() if not value else describe(value)
    return None


def overview() -> str:
    """The sections, a line each."""
    sections = "\n".join(f"  {name:22}{_first_line(kind)}" for name, kind in SECTIONS.items())
    others = "\n".join(_rows(TopLevel, ""))
    return (
        f"Sections (python train.py --info SECTION lists the options of one):\n\n{sections}\n\n"
        f"Other keys at the top:\n\n{others}\n\n"
        "Sections of OFASys, taken over by other names (see docs/configuration.md):\n\n"
        f"  {', '.join(OFASYS)}\n\nOf Hydra: --info {', '.join(INFO_VALUES)}"
    )


def describe(name: str) -> str:
    """The options of a section, or of one inside it: 'task.dataset'. Raises ValueError."""
    first, *below = name.split(".")
    if first not in KINDS:
        raise ValueError(
            f"--info {name}: there is no section '{first}'{nearest(first, KINDS)}. Sections: {', '.join(KINDS)}; "
            f"Hydra's own: {', '.join(INFO_VALUES)}"
        )
    kind = KINDS[first]
    for key in below:
        inner = _section(hints(kind)[options(kind)[key].name]) if key in options(kind) else None
        if inner is None:
            raise ValueError(f"--info {name}: '{key}' is no section of {kind.__name__}")
        kind = inner
    where = name.replace("task", "task.<name>", 1) if first == "task" else name
    said = "of OFASys; what each key is here" if first in OFASYS else _first_line(kind)
    return "\n".join([f"{where}: {said}", "", *_rows(kind, "")])


def _rows(kind: type, prefix: str) -> Iterator[str]:
    for key, one in options(kind).items():
        wanted, told = hints(kind)[one.name], one.metadata["help"]
        if inner := _section(wanted):
            several = ".<name>" if get_origin(wanted) is dict else ""
            yield from ("", f"  {prefix}{key}{several}: {told}")
            yield from _rows(inner, f"{prefix}{key}{several}.")
            continue
        default = default_of(one)
        shown = "required" if default is MISSING else json.dumps(default, default=list)
        unit = f" [{one.metadata['unit']}]" if one.metadata["unit"] else ""
        yield f"  {prefix}{key} = {shown}{unit}"
        values = textwrap.shorten(type_text(wanted), 100, placeholder=" ...")
        yield textwrap.indent(textwrap.fill(f"{told} ({values})", 90), " " * 6)


def _section(wanted: Any) -> type | None:
    """The section inside an annotation: of `X`, `X | None` and `dict[str, X]`."""
    for one in (wanted, *get_args(wanted)):
        if isinstance(one, type) and dataclasses.is_dataclass(one):
            return one
    return None


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def answer_and_exit() -> None:
    """Answer `--info` on this process's command line, if it is ours to answer."""
    try:
        text = answer(sys.argv[1:])
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if text is not None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends us without a traceback
        print(text)
        raise SystemExit(0)
