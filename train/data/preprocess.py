"""From rows to what a model reads: token ids and pixels, as a task's instruction arranges them.

Text runs and TEXT slots are tokenised apart, each as `" " + text.strip()`, verbatim ones as they are.
Neighbours on one side form a group `<bos> ... </eos>` (or with the marks of a tokenizer from a folder), an
IMAGE ends it. An image takes the place of as many `<image>` ids as it has patches. What is random (the
template, masks, noise) depends on the generator that is handed in.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from train.config.text_data import FEW_SHOT
from train.data.few_shot import drawn
from train.data.instruction import Filled, Slot, fill
from train.data.pixels import Pixels, pixels_of
from train.data.tables import DataError, Row

if TYPE_CHECKING:
    from train.config.task import TextPreprocess
    from train.data.task_plan import TaskPlan
    from train.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Example:
    """One row, ready for a model that reads tokens and patches and answers tokens."""

    source: tuple[int, ...]  # the encoder's input; `<image>` where a patch goes
    images: tuple[Pixels, ...]
    decoder: tuple[int, ...]  # <bos> ... </eos>; input is [:-1], target [1:]
    learned: tuple[bool, ...]  # per id of `decoder`: does it count in the loss?
    prefix: tuple[int, ...]  # what generation is given before its first own id


def example(
    plan: TaskPlan,
    tokens: Vocabulary,
    patches: int,
    row: Row,
    rng: np.random.Generator,
    training: bool,
    where: str = "row",
) -> Example:
    """`row` under one of the task's templates, drawn uniformly. Raises FillError, DataError.

    `patches`: ids an image takes. Masks and noise act in training only.
    """
    template = plan.templates[int(rng.integers(len(plan.templates)))]
    if training and plan.task.kind == FEW_SHOT:
        row = drawn(row, rng)
    filled = fill(template, row, where)
    source: list[int] = []
    images: list[Pixels] = []
    group: list[int] = []
    for slot, value in filled:
        if slot.side == "decoder":
            continue
        if slot.type == "IMAGE":
            source += _closed(group, tokens, plan.max_src_length)
            group = []
            images.append(pixels_of(plan, slot, row, training, where))
            source += [tokens.image] * patches
        else:
            ids = slot_ids(slot, str(value), tokens, plan.text, rng, training)
            group += shortened(ids, plan, tokens) if slot.has("verbatim") else ids
    source += _closed(group, tokens, plan.max_src_length)
    decoder, learned, prefix = _decoder(plan, filled, tokens, rng, training, where)
    return Example(tuple(source), tuple(images), decoder, learned, prefix)


def _closed(group: Sequence[int], tokens: Vocabulary, longest: int) -> list[int]:
    return [*tokens.before, *group, *tokens.after][: longest + 1] if group else []


def shortened(ids: Sequence[int], plan: TaskPlan, tokens: Vocabulary) -> list[int]:
    """A verbatim slot's ids, cut so that they and the marks around them are max_src_length ids.

    From the right, as O-LoRA does; with `keep_end` inside the text, so that its answer mark is kept.
    """
    room = max(1, plan.max_src_length - len(tokens.before) - len(tokens.after))
    if len(ids) <= room:
        return list(ids)
    end = tokens.encode(ANSWER_MARK) if plan.keep_end else []
    if len(end) >= room:
        end = []
    return [*ids[: room - len(end)], *end]


ANSWER_MARK = "\nAnswer:"


def over_length(plan: TaskPlan, tokens: Vocabulary, rows: Sequence[Row]) -> int:
    """How many rows have a verbatim slot that is cut."""
    slots = [s for t in plan.templates for s in t.side("encoder") if s.has("verbatim")]
    read = ([tokens.encode(str(row[slot.name])) for slot in slots] for row in rows)
    return sum(any(len(shortened(ids, plan, tokens)) < len(ids) for ids in row) for row in read)


def _decoder(
    plan: TaskPlan,
    filled: Filled,
    tokens: Vocabulary,
    rng: np.random.Generator,
    training: bool,
    where: str,
) -> tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...]]:
    ids, learned = [*tokens.start], [False] * len(tokens.start)
    prefix, forced = [*tokens.start], True
    for slot, value in filled:
        if slot.side == "encoder":
            continue
        given = slot.text is not None or slot.has("no_loss")
        forced = forced and given
        if value is None:
            if not training and not given:
                continue
            raise DataError(
                f"{where}: column '{slot.name}' has no value, but {slot} of the instruction is "
                + ("given to the model" if given else "what the model is to learn")
            )
        own = slot_ids(slot, str(value), tokens, plan.text, rng, training)
        ids += own
        counts = not given or (slot.text is not None and plan.decoder_plain_with_loss)
        learned += [counts] * len(own)
        prefix += own if forced else []
    longest = plan.max_tgt_length + bool(tokens.start)
    ids, learned = [*ids, tokens.eos], [*learned, True]
    return tuple(ids[:longest]), tuple(learned[:longest]), tuple(prefix[:longest])


def slot_ids(
    slot: Slot,
    text: str,
    tokens: Vocabulary,
    settings: TextPreprocess,
    rng: np.random.Generator,
    training: bool,
) -> list[int]:
    """The ids of one run of text or TEXT slot, at most `max_length` of them."""
    if slot.has("uncased"):
        text = text.lower()
    if slot.has("no_punctuation"):
        text = text.translate(str.maketrans("", "", string.punctuation))
    mask_ratio = float(slot.attributes.get("mask_ratio", 0.0)) if training else 0.0
    noise_ratio = float(slot.attributes.get("noise_ratio", 0.0)) if training else 0.0
    if mask_ratio > 0:
        ids = _masked(text.split(), mask_ratio, tokens, settings, rng)
    elif slot.has("verbatim"):
        ids = tokens.encode(text)
    else:
        ids = tokens.encode(" " + text.strip()) if text.strip() else []
    if noise_ratio > 0:
        noisy = rng.random(len(ids)) < noise_ratio
        other = tokens.random_ids(len(ids), rng)
        ids = [new if n else old for old, new, n in zip(ids, other, noisy, strict=True)]
    return ids[: int(slot.attributes.get("max_length", len(ids)))]


def _masked(
    words: Sequence[str],
    ratio: float,
    tokens: Vocabulary,
    settings: TextPreprocess,
    rng: np.random.Generator,
) -> list[int]:
    """Whole words masked in spans until their share is `ratio` (BART, arXiv 1910.13461, section 2.2).

    replace_length -1: a mask for every id of a span; 1: one mask per span; 0: the span vanishes.
    """
    hidden = np.zeros(len(words), dtype=bool)
    wanted = round(len(words) * ratio)
    while hidden.sum() < wanted:
        length = 1
        if settings.mask_span_distribution == "span-poisson":
            length = max(1, int(rng.poisson(settings.poisson_lambda)))
        start = int(rng.choice(np.flatnonzero(~hidden)))
        hidden[start : start + min(length, wanted - int(hidden.sum()))] = True
    ids: list[int] = []
    for i, word in enumerate(words):
        own = tokens.encode(" " + word)
        if not hidden[i]:
            ids += own
        elif settings.replace_length == -1 or (
            settings.replace_length == 1 and (i == 0 or not hidden[i - 1])
        ):
            n = len(own) if settings.replace_length == -1 else 1
            random = rng.random() < settings.random_ratio
            assert random or tokens.mask is not None  # TextAnswer asked
            ids += tokens.random_ids(n, rng) if random else [tokens.mask] * n  # type: ignore[list-item]
    return ids
