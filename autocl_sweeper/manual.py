"""The documentation that an installation carries: whole pages, and what they say about one key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path

from autocl_sweeper.errors import AutoCLError

FOLDER = Path(__file__).with_name("docs")  # a link to docs/ in the repository, its pages in a wheel


@dataclass(frozen=True)
class Passage:
    """A paragraph, a list item or a row of a table."""

    page: str
    heading: str
    text: str
    keys: frozenset[str] = frozenset()  # defined by this row of a table, in full

    def names(self, key: str) -> bool:
        return any(
            re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", code) for code in _codes(self.text)
        )


def pages() -> dict[str, str]:
    """Name -> text of every page."""
    return {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.md"))}


def index() -> str:
    """The pages with their titles."""
    found = pages()
    width = max(map(len, found))
    return "\n".join(f"{name:{width}}  {_title(text)}" for name, text in found.items())


def lookup(asked: str) -> str:
    """The page of that name, or the passages about a key. Raises AutoCLError for neither."""
    found = pages()
    page = asked.removeprefix("docs/").removesuffix(".md")
    if page in found:
        return found[page].rstrip()
    passages = [one for name, text in found.items() for one in _passages(name, text)]
    defining = [one for one in passages if any(_same(asked, key) for key in one.keys)]
    last = asked.rpartition(".")[2]
    homes = {one.page for one in defining} or set(found)
    about = [
        one
        for one in passages
        if one.page in homes and (one.names(asked) or (defining and one.names(last)))
    ]
    if not defining and not about:
        raise AutoCLError(_unknown(asked, found, passages))
    told = [*defining, *(one for one in about if not one.keys)]
    return "\n\n".join(
        "\n\n".join([f"== {page}: {heading}", *(one.text for one in group)])
        for (page, heading), group in groupby(told, lambda one: (one.page, one.heading))
    )


def _unknown(asked: str, found: Mapping[str, str], passages: Sequence[Passage]) -> str:
    keys = {key for one in passages for key in one.keys}
    short = {key.rpartition(".")[2]: key for key in sorted(keys)}
    close = get_close_matches(asked, [*found, *keys, *short], n=1, cutoff=0.6)
    hint = f" Did you mean {short.get(close[0], close[0])}?" if close else ""
    return (
        f"no page and no key {asked!r} in the documentation.{hint}\n"
        f"  Pages: {', '.join(found)}. A key is named as in an override: hydra.launcher.grace_s."
    )


def _same(asked: str, key: str) -> bool:
    """Whether one is the other or ends it: `grace_s` is `hydra.launcher.grace_s`."""
    return f".{key}".endswith(f".{asked}") or asked.endswith(f".{key}")


def _title(text: str) -> str:
    return text.partition("\n")[0].lstrip("# ").replace("`", "")


def _codes(text: str) -> list[str]:
    return re.findall(r"`+([^`]+)`+", text)  # a fenced block is one


def _passages(page: str, text: str) -> Iterator[Passage]:
    """The passages of a page; a row of a table of keys is written out below the table's titles."""
    heading, prefix = _title(text), ""
    fenced = re.split(r"^(```.*?^```)$", text, flags=re.DOTALL | re.MULTILINE)
    blocks = (
        block.strip("\n")
        for number, part in enumerate(fenced)
        for block in ([part] if number % 2 else re.split(r"\n{2,}|\n(?=#+ |- |\d+\. )", part))
    )
    for block in blocks:
        if block.startswith("#"):
            heading = block.lstrip("# ")
        elif block.startswith("|"):
            titles, _, *rows = map(_cells, block.splitlines())
            for row in rows:
                names = _codes(row[0]) if titles[0] == "key" else []
                keys = frozenset(f"{prefix}{name}" for name in names)
                lines = (f"{t}: {cell}" for t, cell in zip(titles, row, strict=False) if cell)
                yield Passage(page, heading, "\n".join(lines), keys)
        elif block:
            if under := re.search(r"under `(hydra(?:\.\w+)+)`", block):
                prefix = f"{under[1]}."
            yield Passage(page, heading, block)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in line.strip("| ").split(" | ")]
