"""Token classification as CoNLL-2003's names: words, and a tag for each, O or B-, I-, E-, S- and a kind.

A .txt or .conll file has a word per line, its tag in the last column, and an empty line behind a sentence. A
record of JSON has tokens and tags (or ner_tags); tags that are numbers are those of preprocess.text.ans2label.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.config.task import Task
from train.config.typed import SettingsError
from train.data.families.made import CITIES, COMPANIES, FIRST, LAST, Lengths, one_of, words
from train.data.families.records import Found, Record, read_records, text_of
from train.data.specs import Column

COLUMNS = ("tokens", "tags")
TEMPLATE = "[TEXT:tokens] -> [TEXT:tags]"
METRIC = "seqeval"
LENGTHS = Lengths(median=11, spread=0.75, least=1, most=120)
LINES = (".txt", ".conll")
TAG = re.compile(r"O|[BIES]-\S+")


def read(path: Path, task: Task, renamed: Sequence[Column]) -> Iterator[Found]:
    """Raises SettingsError with file and line."""
    if path.suffix in LINES:
        sentences = _of_lines(path)
    else:
        sentences = (_of_record(one, task) for one in read_records(path, renamed))
    for number, (tokens, tags, where) in enumerate(sentences):
        yield (tokens, " ".join(tags)), where, number


Sentence = tuple[tuple[str, ...], tuple[str, ...], str]


def _of_lines(path: Path) -> Iterator[Sentence]:
    own: list[tuple[str, str]] = []
    begun = 0
    for number, line in enumerate([*text_of(path).split("\n"), ""], start=1):
        parts = line.split()
        if parts and parts[0] != "-DOCSTART-":
            if len(parts) < 2:
                raise SettingsError(
                    f"{path}, line {number}: has '{parts[0]}' and no tag; a line is a word and, last, its "
                    "tag"
                )
            own.append((parts[0], _tag(parts[-1], f"{path}, line {number}")))
            begun = begun or number
        elif own:
            tokens, tags = zip(*own, strict=True)
            yield tokens, tags, f"{path}, line {begun}"
            own, begun = [], 0


def _of_record(record: Record, task: Task) -> Sentence:
    key = "ner_tags" if "tags" not in record.values and "ner_tags" in record.values else "tags"
    tokens, tags = record.value("tokens"), record.value(key)
    for name, value in (("tokens", tokens), (key, tags)):
        if not isinstance(value, list) or not value:
            raise SettingsError(f"{record.where}: '{name}' must be a list, not {str(value)[:60]}")
    if len(tokens) != len(tags):
        raise SettingsError(f"{record.where}: has {len(tokens)} tokens and {len(tags)} tags")
    if empty := [i for i, one in enumerate(tokens) if not str(one).strip()]:
        raise SettingsError(f"{record.where}: token {empty[0] + 1} is empty")
    names: dict[Any, str] = {}
    if isinstance(task.preprocess.text.ans2label, dict):
        names = {number: name for name, number in task.preprocess.text.ans2label.items()}
    if unnamed := [tag for tag in tags if isinstance(tag, int) and tag not in names]:
        raise SettingsError(
            f"{record.where}: the tag {unnamed[0]} is a number without a name; say what numbers mean: "
            f"task.{task.name}.preprocess.text.ans2label={{O: 0, B-PER: 1, ...}}"
        )
    named = tuple(_tag(str(names.get(tag, tag)), record.where) for tag in tags)
    return tuple(map(str, tokens)), named, record.where


def _tag(tag: str, where: str) -> str:
    if not TAG.fullmatch(tag):
        raise SettingsError(f"{where}: '{tag}' is no tag; it is O, or B-, I-, E- or S- and a kind")
    return tag


def made(n: int, rng: np.random.Generator) -> Iterator[Found]:
    """Names of people (two words), cities and companies among words that mean nothing."""
    kinds = (("PER", (FIRST, LAST)), ("LOC", (CITIES,)), ("ORG", (COMPANIES,)))
    for number, length in enumerate(LENGTHS.draw(n, rng)):
        tokens: list[str] = []
        tags: list[str] = []
        while len(tokens) < length:
            plain = words(int(rng.integers(0, 6)), rng)
            kind, parts = kinds[int(rng.integers(len(kinds)))]
            tokens += [*plain, *(one_of(part, rng) for part in parts)]
            tags += ["O"] * len(plain) + [f"{'I' if i else 'B'}-{kind}" for i in range(len(parts))]
        yield (tuple(tokens[:length]), " ".join(tags[:length])), f"row {number + 1}", number
