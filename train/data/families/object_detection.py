"""Object detection as COCO: boxes of objects in images of many sizes.

A file is COCO's instances JSON: images, annotations and categories. Images lie in dataset.image_dir or, of
instances_train2017.json, in train2017 there; without that key beside the file, or in ../train2017.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.config.task import Task
from train.config.typed import SettingsError
from train.data.families.records import Found, json_of, line_of, text_of
from train.data.specs import Column

log = logging.getLogger(__name__)

COLUMNS = ("image", "objects")
TEMPLATE = "[IMAGE:image] -> [TEXT:objects]"
METRIC = "coco_map"
# Width and height in pixels, and how many of a hundred of COCO's images are about of this shape.
SIZES = (
    (640, 480, 43), (480, 640, 17), (640, 427, 20), (427, 640, 8), (640, 360, 5), (500, 375, 5),
    (612, 612, 2),
)  # fmt: skip
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230)}
KEYS = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


@dataclass(frozen=True)
class Drawn:
    """An image made by rule: coloured boxes on noise."""

    width: int
    height: int
    boxes: tuple[tuple[str, tuple[int, int, int, int]], ...]  # colour, and x, y, width, height
    seed: int

    def open(self) -> Any:
        """As an image of pillow."""
        from PIL import Image

        rng = np.random.default_rng(self.seed)
        pixels = rng.integers(90, 150, (self.height, self.width, 3), dtype=np.uint8)
        for colour, (x, y, width, height) in self.boxes:
            pixels[y : y + height, x : x + width] = COLOURS[colour]
        return Image.fromarray(pixels)


def read(path: Path, task: Task, renamed: Sequence[Column]) -> Iterator[Found]:
    """Raises SettingsError with file and line."""
    if renamed:
        raise SettingsError(f"task.{task.name}.dataset.selected_cols: COCO's JSON has fixed names")
    text = text_of(path)
    whole = json_of(text, path)
    for key, names in KEYS.items():
        parts = whole.get(key) if isinstance(whole, Mapping) else None
        if not isinstance(parts, list):
            raise SettingsError(
                f"{path}: has no list '{key}'; COCO's JSON has {', '.join(KEYS)} as lists"
            )
        for number, part in enumerate(parts, start=1):
            if missing := [n for n in names if not isinstance(part, Mapping) or n not in part]:
                line = line_of(text, "", json.dumps(key))
                raise SettingsError(
                    f"{path}, line {line} and on: number {number} of {key} has no '{missing[0]}'"
                )
    names_of = {category["id"]: str(category["name"]) for category in whole["categories"]}
    folder = _folder(path, task, whole["images"])
    objects: dict[Any, list[dict[str, Any]]] = {}
    for image in whole["images"]:
        file = folder / str(image["file_name"])
        if not file.is_file():
            line = line_of(text, json.dumps(image["file_name"]), '"images"')
            raise SettingsError(
                f"{path}, line {line}: there is no image {file}; task.{task.name}.dataset.image_dir is the "
                "folder of the images"
            )
        objects[image["id"]] = []
    empty = 0
    for one in whole["annotations"]:
        if wrong := _wrong(one, objects, names_of):
            line = line_of(text, rf'"id"\s*:\s*{json.dumps(one.get("id"))}\b', '"annotations"')
            raise SettingsError(f"{path}, line {line}: annotation {one.get('id')}: {wrong}")
        if min(one["bbox"][2:]) == 0:
            empty += 1
            continue
        box = [float(n) for n in one["bbox"]]
        area, crowd = float(one.get("area", box[2] * box[3])), int(one.get("iscrowd", 0))
        found = {"label": names_of[one["category_id"]], "bbox": box}
        objects[one["image_id"]].append({**found, "area": area, "iscrowd": crowd})
    if empty:
        log.warning("%s: %d boxes without width or height are left out", path, empty)
    for image in whole["images"]:
        shown = str(folder / str(image["file_name"]))
        yield (shown, json.dumps(objects[image["id"]])), str(path), image["id"]


def _folder(path: Path, task: Task, images: Sequence[Mapping[str, Any]]) -> Path:
    """Where the images of a file are; where the first one is missing, where they should be."""
    split, root = path.stem.removeprefix("instances_"), task.dataset.image_dir
    places = [Path(root), Path(root) / split] if root else [path.parent, path.parent.parent / split]
    there = (one for one in places for image in images[:1] if (one / image["file_name"]).is_file())
    return next(there, places[0])


def _wrong(one: Mapping[str, Any], images: Mapping[Any, Any], names: Mapping[Any, str]) -> str:
    """What is wrong with an annotation; empty: nothing."""
    if one["image_id"] not in images:
        return f"there is no image with the id {one['image_id']}"
    if one["category_id"] not in names:
        return f"there is no category with the id {one['category_id']}"
    box = one["bbox"]
    numbers = isinstance(box, list) and all(isinstance(n, (int, float)) for n in box)
    if not numbers or len(box) != 4 or min(box[2:]) < 0:
        return f"bbox {box} must be x, y, width and height in pixels"
    return ""


def categories(path: Path) -> list[str]:
    """The names of a file's categories by their ids."""
    found = json_of(text_of(path), path)["categories"]
    return [str(one["name"]) for one in sorted(found, key=lambda one: int(one["id"]))]


def made(n: int, rng: np.random.Generator) -> Iterator[Found]:
    """One to three boxes an image; the colour of a box is its category."""
    shares = np.array([share for *_, share in SIZES]) / 100
    for number, place in enumerate(rng.choice(len(SIZES), n, p=shares)):
        width, height, _ = SIZES[int(place)]
        boxes = []
        for _ in range(int(rng.integers(1, 4))):
            own = (int(width * rng.uniform(0.2, 0.5)), int(height * rng.uniform(0.2, 0.5)))
            at = (int(rng.integers(width - own[0])), int(rng.integers(height - own[1])))
            boxes.append((str(rng.choice([*COLOURS])), (*at, *own)))
        objects = [
            {"label": label, "bbox": list(box), "area": float(box[2] * box[3]), "iscrowd": 0}
            for label, box in boxes
        ]
        image = Drawn(width, height, tuple(boxes), int(rng.integers(2**31)))
        yield (image, json.dumps(objects)), f"row {number + 1}", number
