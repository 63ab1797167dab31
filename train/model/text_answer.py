"""A task on an encoder-decoder: an instruction is read, an answer is generated as text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from train.config.typed import SettingsError
from train.data.preprocess import Example, example
from train.data.rows import DataError, Row
from train.data.task_plan import TaskPlan
from train.data.vocabulary import Vocabulary
from train.model.family import IGNORED
from train.model.patches import UnifyModel

log = logging.getLogger(__name__)


class TextAnswer:
    """A `Meeting`: rows to ids and images, answers by generation."""

    def __init__(self, plan: TaskPlan, patches: int, vocabulary: Vocabulary) -> None:
        self.plan = plan
        self.patches = patches  # ids an image takes
        self.vocabulary = vocabulary
        self.cut = self.cut_answer = False
        self._check_answers()
        ratios = [s.attributes.get("mask_ratio", 0) for t in plan.templates for s in t.slots]
        if vocabulary.mask is None and any(ratios):
            raise SettingsError(
                f"task.{plan.name}.instruction.template: mask_ratio needs a mask token, and the "
                "tokenizer of the model has none"
            )

    def _check_answers(self) -> None:
        key = f"task.{self.plan.name}.preprocess.text.ans2label"
        by_ids: dict[tuple[int, ...], str] = {}
        for answer in self.plan.answers or ():
            ids = tuple(self.vocabulary.encode(" " + answer.strip()))
            if not ids or ids in by_ids:
                same = f"the same ids as '{by_ids[ids]}'" if ids else "no id at all"
                raise SettingsError(
                    f"{key}: the tokenizer makes {same} of the answer '{answer}' ({list(ids)}), so it "
                    "could not be told apart; choose other words"
                )
            by_ids[ids] = answer
        if not by_ids:
            return
        longest = max(by_ids, key=len)
        # Ids behind the start mark, the end mark among them.
        length = len(longest) + len(self.vocabulary.start)
        if length > self.plan.max_tgt_length:
            raise SettingsError(
                f"task.{self.plan.name}.max_tgt_length={self.plan.max_tgt_length}: the answer "
                f"'{by_ids[longest]}' has {length} ids ({self.vocabulary.unit}, one space and the end "
                "mark) and would be learned cut short"
            )

    def example(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Example:
        plan = self.plan
        made = example(plan, self.vocabulary, self.patches, row, rng, training, where)
        whole = (self.vocabulary.after[-1], self.vocabulary.image)
        if not self.cut and made.source and made.source[-1] not in whole:
            self.cut = True
            log.warning(
                "%s: the text is cut to task.%s.max_src_length=%d ids; of later rows this is not told",
                *(where, plan.name, plan.max_src_length),
            )
        if training and not any(made.learned):
            raise DataError(
                f"{where}: nothing is left to learn, because what stands before the answer takes all "
                f"of task.{plan.name}.max_tgt_length={plan.max_tgt_length} ids "
                f"({self.vocabulary.unit}): raise it, or take a tokenizer with longer pieces "
                "(model.tokenizer)"
            )
        if training and not self.cut_answer and made.decoder[-1] != self.vocabulary.eos:
            self.cut_answer = True
            log.warning(
                "%s: the answer is cut to task.%s.max_tgt_length=%d ids and learned without its end; of "
                "later rows this is not told",
                *(where, plan.name, plan.max_tgt_length),
            )
        return made

    def batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        return collate(examples, self.vocabulary.pad)

    def logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """n x length x vocabulary; `labels` of the batch are aligned with it."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits: torch.Tensor = model(**inputs).logits
        return logits

    def answers(
        self, model: torch.nn.Module, examples: Sequence[Example], device: torch.device
    ) -> list[str]:
        closed_set = None if self.plan.answers is None else list(self.plan.answers)
        return generate(model, examples, self.vocabulary, closed_set, self.plan.generation, device)


def collate(examples: Sequence[Example], pad: int) -> dict[str, torch.Tensor]:
    """A batch: ids padded to the longest, images of all rows one after another."""
    source = _padded([e.source or (pad,) for e in examples], pad)
    labels = [
        [i if learn else IGNORED for i, learn in zip(e.decoder[1:], e.learned[1:], strict=True)]
        for e in examples
    ]
    batch = {
        "input_ids": source,
        "attention_mask": _padded([[1] * max(1, len(e.source)) for e in examples], 0),
        "decoder_input_ids": _padded([e.decoder[:-1] for e in examples], pad),
        "labels": _padded(labels, IGNORED),
    }
    images = [image for e in examples for image in e.images]
    if images:
        batch["pixel_values"] = torch.from_numpy(np.stack(images))
    return batch


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


class Trie:
    """The answers of a closed set, as a tree of ids: what may follow what was generated."""

    def __init__(self, answers: Sequence[Sequence[int]], end: int) -> None:
        self.end = end
        self.longest = max(len(a) for a in answers) + 1  # with the end mark
        self._next: dict[tuple[int, ...], set[int]] = {}
        for answer in answers:
            ids = (*answer, end)
            for i, one in enumerate(ids):
                self._next.setdefault(ids[:i], set()).add(one)

    def after(self, generated: Sequence[int]) -> list[int]:
        """Ids that may come next; after the end, the end again (a beam may be longer)."""
        return sorted(self._next.get(tuple(generated), {self.end}))


def generate(
    model: Any,
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    closed_set: Sequence[str] | None,
    arguments: Mapping[str, Any],
    device: torch.device,
) -> list[str]:
    """The answers of `model`, one per example; of `closed_set` where there is one.

    Rows are put together by the length of what they are forced to begin with, so that no answer
    begins behind padding.
    """
    trie, texts = None, {}
    if closed_set is not None:
        # Not by decoding: a tokenizer may lower case, or split off what it does not join again.
        texts = {tuple(vocabulary.encode(" " + a.strip())): a for a in closed_set}
        trie = Trie([*texts], vocabulary.eos)
    by_prefix: dict[int, list[int]] = {}
    for i, one in enumerate(examples):
        by_prefix.setdefault(len(one.prefix), []).append(i)
    answers = [""] * len(examples)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for length, rows in by_prefix.items():
        batch = collate([examples[i] for i in rows], vocabulary.pad)
        batch = {key: value.to(device) for key, value in batch.items()}
        mask = batch["attention_mask"]
        if isinstance(base, UnifyModel):
            seen = base.embed(batch["input_ids"], batch.get("pixel_values"))
            encoded = base.get_encoder()(inputs_embeds=seen, attention_mask=mask)
        else:
            encoded = base.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)
        prefix = torch.tensor([examples[i].prefix for i in rows], device=device)
        made = base.generate(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=prefix,
            bos_token_id=vocabulary.start[0],
            eos_token_id=vocabulary.eos,
            pad_token_id=vocabulary.pad,
            do_sample=False,
            **_limits(arguments, trie, length),
        )
        for i, ids in zip(rows, made[:, length:].tolist(), strict=True):
            if trie is None:
                answers[i] = vocabulary.decode(ids)
            else:
                answers[i] = texts[tuple(ids[: ids.index(vocabulary.eos)])]
    return answers


def _limits(arguments: Mapping[str, Any], trie: Trie | None, begin: int) -> dict[str, Any]:
    if trie is None:
        return dict(arguments)
    own = {k: v for k, v in arguments.items() if k in ("num_beams", "length_penalty")}
    # The answers are all there is: a limit on length or repetition could rule every one out.

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        return trie.after(ids[begin:].tolist())

    return {**own, "max_new_tokens": trie.longest, "prefix_allowed_tokens_fn": allowed}
