"""Writes train/config/hf_arguments.py: `python -m train.config.hf_names`, after an update of transformers.

The section `trainer` speaks the names of transformers.TrainingArguments. Importing that class takes
seconds, so names, types and defaults stand in a file of ours, and a test compares the two.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from train.config.refused import REFUSED

FILE = Path(__file__).with_name("hf_arguments.py")

HEAD = '''"""The arguments of transformers.TrainingArguments that the section `trainer` takes.

Written by `python -m train.config.hf_names` with transformers {version}; not to be edited.
"""

# ruff: noqa: E501
# fmt: off

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from train.config.typed import option

{enums}


@dataclass(frozen=True)
class HFArguments:
    """By their own names, with their own defaults."""

'''


def source() -> str:
    """The text of train/config/hf_arguments.py for the installed transformers."""
    import transformers

    fields = dataclasses.fields(transformers.TrainingArguments)
    known = {f.name for f in fields}
    if stray := REFUSED.keys() - known:
        raise RuntimeError(f"transformers has no arguments {sorted(stray)} any more: REFUSED")
    taken = [f for f in fields if f.name not in REFUSED]
    enums = sorted({one for f in taken for one in _enums(f.type)}, key=lambda one: one.__name__)
    texts = [f"{one.__name__} = Literal[{', '.join(repr(v.value) for v in one)}]" for one in enums]
    head = HEAD.format(version=transformers.__version__, enums="\n".join(texts))
    return head + "\n".join(map(_line, taken)) + "\n"


def _enums(wanted: Any) -> Iterator[type[Enum]]:
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        yield wanted
    for one in get_args(wanted):
        yield from _enums(one)


def _line(one: dataclasses.Field[Any]) -> str:
    default = one.default_factory() if callable(one.default_factory) else one.default
    default = default.value if isinstance(default, Enum) else default
    first = re.split(r"(?<=[.:])\s", str(one.metadata.get("help", "")).replace("%%", "%"))[0]
    shown = first.rstrip(".:").replace('"', "'")
    return f'    {one.name}: {_type(one.type)} = option({default!r}, "{shown}")'


def _type(wanted: Any) -> str:
    """An annotation without modules, null last. A dict has any values, an enum is its texts."""
    text = re.sub(r"(\w+\.)+(?=\w)", "", inspect.formatannotation(wanted))
    left = "str" if any(_enums(wanted)) else ""  # it is one of those texts
    text = re.sub(r"\bdict\b(?!\[)", "dict[str, Any]", text)
    kept = [one for one in text.split(" | ") if one != left]
    return " | ".join(sorted(kept, key="None".__eq__))


if __name__ == "__main__":
    FILE.write_text(source())
