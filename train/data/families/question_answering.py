"""Question answering as SQuAD: the answer is a span of the context, or there is none (version 2).

SQuAD's own JSON of both versions, or records of id, question, context and answers, which is
{text: [...], answer_start: [...]}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.config.task import Task
from train.config.typed import SettingsError
from train.data.families.made import FIRST, LAST, Lengths, one_of, words
from train.data.families.records import Found, json_of, line_of, read_records, text_of
from train.data.specs import Column

COLUMNS = ("id", "question", "context", "answers", "starts")
TEMPLATE = "[TEXT:question] [TEXT:context] -> [TEXT:answers]"
METRIC = "squad"
LENGTHS = Lengths(median=150, spread=0.38, least=40, most=500)  # of a question and its context


def read(path: Path, task: Task, renamed: Sequence[Column]) -> Iterator[Found]:
    """Raises SettingsError with file and line."""
    text = text_of(path)
    nested = path.suffix == ".json" and '"paragraphs"' in text
    seen: dict[str, str] = {}
    asked = _squad(text, path) if nested else _flat(path, renamed)
    for key, question, context, answers, where in asked:
        if key in seen:
            raise SettingsError(f"{where}: the id {key} is also that of {seen[key]}")
        seen[key] = where
        for answer, start in answers:
            if context[start : start + len(answer)] != answer or start < 0 or not answer:
                raise SettingsError(
                    f"{where}: question {key}: the answer {answer[:60]!r} is not in the context at "
                    f"{start}, where there is {context[max(0, start) :][: len(answer)][:60]!r}"
                )
        yield (key, question, context, *_spans(answers)), where, key


Asked = tuple[str, str, str, list[tuple[str, int]], str]


def _squad(text: str, path: Path) -> Iterator[Asked]:
    whole = json_of(text, path)

    def where(key: Any) -> str:
        line = line_of(text, r'"id"\s*:\s*' + re.escape(json.dumps(key)))
        return f"{path}, line {line}"

    key: Any = None
    try:
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for asked in paragraph["qas"]:
                    key = asked["id"]
                    given = [] if asked.get("is_impossible") else asked["answers"]
                    answers = [(str(a["text"]), int(a["answer_start"])) for a in given]
                    yield str(key), str(asked["question"]), str(context), answers, where(key)
    except (KeyError, TypeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        behind = "the first question" if key is None else f"question {key}"
        raise SettingsError(
            f"{where(key)}: at or behind {behind}: {what}. SQuAD's JSON is data: [{{paragraphs: [{{context, "
            "qas: [{id, question, answers: [{text, answer_start}]}]}]}]"
        ) from error


def _flat(path: Path, renamed: Sequence[Column]) -> Iterator[Asked]:
    for number, record in enumerate(read_records(path, renamed)):
        given = record.value("answers")
        texts = given.get("text") if isinstance(given, Mapping) else None
        starts = given.get("answer_start") if isinstance(given, Mapping) else None
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise SettingsError(
                f"{record.where}: 'answers' must be {{text: [...], answer_start: [...]}} with as many of "
                f"each, not {str(given)[:60]}"
            )
        if not all(isinstance(start, int) for start in starts):
            raise SettingsError(f"{record.where}: answer_start {starts} must be whole numbers")
        answers = [(str(t), int(s)) for t, s in zip(texts, starts, strict=True)]
        key = str(record.values.get("id", number))
        yield key, record.text("question"), record.text("context"), answers, record.where


def made(n: int, rng: np.random.Generator) -> Iterator[Found]:
    """The answer is the only name in the context, of two words."""
    for number, length in enumerate(LENGTHS.draw(n, rng)):
        question = " ".join(["who", *words(int(rng.integers(5, 15)), rng)])
        plain = words(length - len(question.split()) - 2, rng)
        answer = f"{one_of(FIRST, rng)} {one_of(LAST, rng)}"
        at = int(rng.integers(len(plain)))
        context = " ".join([*plain[:at], answer, *plain[at:]])
        spans = _spans([(answer, context.index(answer))])
        yield (str(number), question, context, *spans), f"row {number + 1}", str(number)


def _spans(answers: list[tuple[str, int]]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Texts apart by tabs, as scores want them, with one kind of blank; their first and last places."""
    texts = "\t".join(" ".join(text.split()) for text, _ in answers)
    return texts, tuple((start, start + len(text)) for text, start in answers)
