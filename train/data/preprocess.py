"""From rows to what a model reads: token ids and pixels, as a task's instruction arranges them.

Text runs and TEXT slots are tokenised apart, each as `" " + text.strip()`. Neighbours on one side form
a group `<bos> ... </eos>` (or with the marks of a tokenizer from a folder), an IMAGE ends it. An image
takes the place of as many `<image>` ids as it has patches. What is random (the template, masks, noise)
depends on the generator that is handed in.
"""

from __future__ import annotations

import base64
import binascii
import io
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from train.data.instruction import Filled, Slot, fill
from train.data.pretrained import read
from train.data.rows import DataError, Row

if TYPE_CHECKING:
    from train.config.sections import ImagePreprocess, TextPreprocess
    from train.data.task_plan import TaskPlan
    from train.data.vocabulary import Vocabulary

Pixels = NDArray[np.float32]  # channels x height x width

RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Example:
    """One row, ready for a model that reads tokens and patches and answers tokens."""

    source: tuple[int, ...]  # the encoder's input; `<image>` where a patch goes
    images: tuple[Pixels, ...]
    decoder: tuple[int, ...]  # <bos> ... </eos>; input is [:-1], target [1:]
    learned: tuple[bool, ...]  # per id of `decoder`: does it count in the loss?
    prefix: tuple[int, ...]  # what generation is given before its first own id
    row: Row


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
    filled = fill(template, row, where)
    source: list[int] = []
    images: list[Pixels] = []
    group: list[int] = []
    for slot, value in zip(template.slots, filled.values, strict=True):
        if slot.side == "decoder":
            continue
        if slot.type == "IMAGE":
            source += _closed(group, tokens, plan.max_src_length)
            group = []
            images.append(pixels_of(plan, slot, row, training, where))
            source += [tokens.image] * patches
        else:
            group += slot_ids(slot, str(value), tokens, plan.text, rng, training)
    source += _closed(group, tokens, plan.max_src_length)
    decoder, learned, prefix = _decoder(plan, filled, tokens, rng, training, where)
    return Example(tuple(source), tuple(images), decoder, learned, prefix, row)


def _closed(group: Sequence[int], tokens: Vocabulary, longest: int) -> list[int]:
    return [*tokens.before, *group, *tokens.after][: longest + 1] if group else []


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
    for slot, value in zip(filled.template.slots, filled.values, strict=True):
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
    longest = plan.max_tgt_length + 1
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


def pixels_of(plan: TaskPlan, slot: Slot, row: Row, training: bool, where: str) -> Pixels:
    """The image of `row` for an IMAGE slot. Raises DataError."""
    value = row.get(slot.name)
    if value is None:
        raise DataError(f"{where}: column '{slot.name}' has no image for {slot}")
    if slot.preprocess == "digits":
        pixels: Pixels = np.asarray(value, dtype=np.float32)[None]  # the class made it, in [-1, 1]
    else:
        image = open_image(value, f"{where}, {slot}")
        pixels = image_pixels(image, plan.images[slot.preprocess])
    ratio = float(slot.attributes.get("mask_ratio", 0.0)) if training else 0.0
    return blank_centre(pixels, ratio) if ratio > 0 else pixels


def blank_centre(pixels: Pixels, ratio: float) -> Pixels:
    """The image with the central `ratio` of its area at 0, the mean of what models see."""
    _, height, width = pixels.shape
    rows, cols = round(height * ratio**0.5), round(width * ratio**0.5)
    top, left = (height - rows) // 2, (width - cols) // 2
    blank = pixels.copy()
    blank[:, top : top + rows, left : left + cols] = 0
    return blank


def open_image(value: Any, where: str) -> Any:
    """An image of PIL in RGB, from one, from a path, or from its file in base64."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, Image.Image):
        return value.convert("RGB")
    text = str(value)
    # A path of a thousand characters is none; asking the system about a whole file would fail.
    if len(text) < 1024 and Path(text).is_file():
        source: Any = text
    else:
        try:
            source = io.BytesIO(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            raise DataError(
                f"{where}: {text[:80]!r} is no file (from {Path.cwd()}) and no image in base64"
            ) from error
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{where}: {text[:80]!r} cannot be read as an image: {error}") from error


def image_pixels(image: Any, settings: ImagePreprocess) -> Pixels:
    """Resized and normalised by an image processor of transformers. Raises DataError."""
    side = settings.patch_image_size
    pixels = _processor(settings)(image, return_tensors="np")["pixel_values"][0]
    if np.shape(pixels) != (3, side, side):
        raise DataError(
            f"the image processor {settings.processor} gives {np.shape(pixels)}, not (3, {side}, "
            f"{side}) as patch_image_size={side} says; set that to what it gives"
        )
    return np.asarray(pixels, dtype=np.float32)


@cache
def _processor(settings: ImagePreprocess) -> Any:
    from transformers import AutoImageProcessor, ViTImageProcessorPil

    if settings.processor is not None:
        return read(AutoImageProcessor.from_pretrained, settings.processor, "processor")
    side = settings.patch_image_size
    imagenet = settings.imagenet_default_mean_and_std
    return ViTImageProcessorPil(
        size={"height": side, "width": side},
        resample=RESAMPLING[settings.interpolation],
        image_mean=IMAGENET_MEAN if imagenet else (0.5,) * 3,
        image_std=IMAGENET_STD if imagenet else (0.5,) * 3,
    )
