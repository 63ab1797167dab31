"""Writes train/config/hf_arguments.py: `python -m train.config.hf_names`, after an update of transformers.

The section `trainer` speaks the names of transformers.TrainingArguments. Importing that class takes
seconds, so names, types and defaults stand in a file of ours, and a test compares the two.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin

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
    shown = first.rstrip(".:")
    text = f"    {one.name}: {' | '.join(dict.fromkeys(_types(one.type)))} = option("
    inner = f'{default!r}, "{shown.replace(chr(34), chr(39))}"'
    return f"{text}{inner})"


def _types(wanted: Any) -> Iterator[str]:
    if get_origin(wanted) in (Union, types.UnionType):
        inner = get_args(wanted)
        enums = [*_enums(wanted)]
        for one in sorted(inner, key=lambda t: t is type(None)):
            if not (enums and one is str):  # the text of one of its values
                yield from _types(one)
    elif isinstance(wanted, type) and issubclass(wanted, Enum):
        yield wanted.__name__
    elif wanted is dict or get_origin(wanted) is dict:
        yield "dict[str, Any]"
    elif get_origin(wanted) is list:
        yield f"list[{' | '.join(_types(get_args(wanted)[0]))}]"
    elif wanted is type(None):
        yield "None"
    else:
        yield str(wanted.__name__)


if __name__ == "__main__":
    FILE.write_text(source())
