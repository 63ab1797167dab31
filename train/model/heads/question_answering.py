"""A task of class question_answering: windows over the context, and the best span of all of them.

A question whose context is too long has several windows, which share `doc_stride` tokens. In training every
window is an example of its own; one without the answer points to the begin mark, as do questions without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from train.data.rows import Rows
from train.data.tables import DataError, Row
from train.data.task_plan import TaskPlan
from train.model.family import inputs_of, moved

AT_ONCE = 1000  # questions that are tokenised together


@dataclass(frozen=True)
class Window:
    """One window of a question's context as the tokenizer gives it."""

    context: str
    encoding: Mapping[str, list[int]]
    offsets: tuple[tuple[int, int] | None, ...]  # of tokens of the context: characters
    null: int  # place of the begin mark
    label: tuple[int, int]  # first and last token of the answer


@dataclass(frozen=True)
class Span:
    """An answer, by the sum of two logits; an empty text says that there is none."""

    text: str
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


class QuestionAnswering:
    """A `Meeting`: an example is the windows of a question, or one of them."""

    def __init__(self, plan: TaskPlan, tokenizer: Any) -> None:
        assert plan.rows is not None
        self.plan, self.tokenizer = plan, tokenizer
        self.may_be_null = any(not row["starts"] for row in plan.rows.train)

    def spread(self, rows: Rows) -> Rows:
        """A training row per window. Raises DataError for a question that leaves no room."""
        for part in (rows.dev, rows.test):
            self._counts(part)
        train = rows.train(0)
        windows = [
            {**row, "window": i}
            for row, n in zip(train, self._counts(train), strict=True)
            for i in range(n)
        ]
        return replace(rows, train=lambda epoch: windows)

    def example(
        self, row: Row, rng: np.random.Generator, training: bool, where: str
    ) -> tuple[Window, ...]:
        made = self._tokenised([row])
        chosen = range(len(made["input_ids"])) if "window" not in row else [row["window"]]
        return tuple(self._window(row, made, i) for i in chosen)

    def batch(self, examples: Sequence[tuple[Window, ...]]) -> dict[str, torch.Tensor]:
        windows = [window for example in examples for window in example]
        padded = self.tokenizer.pad([one.encoding for one in windows], return_tensors="pt")
        return {**padded, "labels": torch.tensor([one.label for one in windows])}

    def logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Windows x 2 x tokens: of the first and the last token of the answer."""
        found = model(**inputs_of(batch))
        return torch.stack([found.start_logits, found.end_logits], dim=1)

    def answers(
        self, model: torch.nn.Module, examples: Sequence[tuple[Window, ...]], device: torch.device
    ) -> list[str]:
        return [spans[0].text for spans in self._spans(model, examples, device)]

    def ranked(
        self, model: torch.nn.Module, examples: Sequence[tuple[Window, ...]], device: torch.device
    ) -> list[list[dict[str, Any]]]:
        names = ("text", "probability", "start_logit", "end_logit")
        found = []
        for spans in self._spans(model, examples, device):
            shares = softmax([one.score for one in spans]).tolist()
            rows = [
                (s.text, p, s.start_logit, s.end_logit) for s, p in zip(spans, shares, strict=True)
            ]
            found.append([dict(zip(names, row, strict=True)) for row in rows])
        return found

    def _spans(
        self, model: torch.nn.Module, examples: Sequence[tuple[Window, ...]], device: torch.device
    ) -> list[list[Span]]:
        batch = moved(self.batch(examples), device)
        logits = iter(self.logits(model, batch).float().cpu().numpy())
        return [self.best([(window, next(logits)) for window in example]) for example in examples]

    def best(self, windows: Sequence[tuple[Window, Any]]) -> list[Span]:
        """The n_best answers of a question, from the logits (2 x tokens) of its windows."""
        settings = self.plan.task.evaluation
        spans = [
            Span(window.context[first[0] : last[1]], float(starts[i]), float(ends[j]))
            for window, (starts, ends) in windows
            for i in np.argsort(-starts, kind="stable")[: settings.n_best]
            for j in np.argsort(-ends, kind="stable")[: settings.n_best]
            if i <= j < min(len(window.offsets), i + settings.max_answer_length)
            and (first := window.offsets[i]) is not None
            and (last := window.offsets[j]) is not None
        ]
        spans = sorted(spans, key=lambda one: -one.score)[: settings.n_best]
        if self.may_be_null:
            marks = [
                Span("", float(starts[w.null]), float(ends[w.null]))
                for w, (starts, ends) in windows
            ]
            null = min(marks, key=lambda one: one.score)
            ahead = not spans or null.score - spans[0].score > settings.null_threshold
            spans.insert(0 if ahead else len(spans), null)
        return spans or [Span("", 0.0, 0.0)]

    def _tokenised(self, rows: Sequence[Row]) -> Any:
        return self.tokenizer(
            [row["question"].lstrip() for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=self.plan.max_src_length,
            stride=self.plan.text.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def _counts(self, rows: Sequence[Row]) -> list[int]:
        """How many windows each question has."""
        counts = [0] * len(rows)
        marks = self.tokenizer.num_special_tokens_to_add(pair=True)
        room = self.plan.max_src_length - marks - self.plan.text.doc_stride
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            asked = self.tokenizer(
                [row["question"].lstrip() for row in some], add_special_tokens=False
            )
            for row, ids in zip(some, asked["input_ids"], strict=True):
                if len(ids) >= room:
                    raise DataError(
                        f"{row['place']}: the question has {len(ids)} tokens, which leaves no room for its "
                        f"context: max_src_length={self.plan.max_src_length} less "
                        f"doc_stride={self.plan.text.doc_stride} and {marks} marks must be more. Make "
                        f"task.{self.plan.name}.preprocess.text.doc_stride smaller"
                    )
            for of in self._tokenised(some)["overflow_to_sample_mapping"]:
                counts[start + of] += 1
        return counts

    def _window(self, row: Row, made: Any, i: int) -> Window:
        parts = made.sequence_ids(i)
        offsets = tuple(
            tuple(place) if part == 1 else None
            for part, place in zip(parts, made["offset_mapping"][i], strict=True)
        )
        aside = ("offset_mapping", "overflow_to_sample_mapping")
        encoding = {key: made[key][i] for key in made if key not in aside}
        ids = encoding["input_ids"]
        mark = self.tokenizer.cls_token_id
        null = ids.index(mark) if mark in ids else 0
        return Window(row["context"], encoding, offsets, null, _label(row, offsets, null))


def _label(row: Row, offsets: Sequence[tuple[int, ...] | None], null: int) -> tuple[int, int]:
    """Tokens of the first answer where it is wholly in the window, else the begin mark."""
    if not row["starts"]:
        return null, null
    start, end = row["starts"][0]
    inside = [i for i, one in enumerate(offsets) if one is not None]
    touched = [i for i in inside if offsets[i][0] < end and offsets[i][1] > start]  # type: ignore[index]
    first, last = offsets[inside[0]], offsets[inside[-1]]
    assert first is not None and last is not None
    if not touched or first[0] > start or last[1] < end:
        return null, null
    return touched[0], touched[-1]


MEETING = QuestionAnswering
