"""Images of rows as pixels of a model: opened, resized, normalised, masked."""

from __future__ import annotations

import base64
import binascii
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from train.config.task import ImagePreprocess, Interpolation
from train.data.instruction import Slot
from train.data.pretrained import read
from train.data.tables import DataError, Row

if TYPE_CHECKING:
    from train.data.task_plan import TaskPlan

Pixels = NDArray[np.float32]  # channels x height x width

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        resample=get_args(Interpolation).index(settings.interpolation),
        image_mean=IMAGENET_MEAN if imagenet else (0.5,) * 3,
        image_std=IMAGENET_STD if imagenet else (0.5,) * 3,
    )
