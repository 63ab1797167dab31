"""A task of class object_detection: boxes of a DETR, whose own loss matches them with those there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from train.data.families.object_detection import Drawn
from train.data.pixels import open_image
from train.data.tables import Row
from train.data.task_plan import TaskPlan
from train.model.family import IGNORED, moved


@dataclass(frozen=True)
class Seen:
    """One image as the processor gives it, with its objects."""

    pixels: torch.Tensor  # channels x height x width
    labels: torch.Tensor  # a number for each object
    boxes: torch.Tensor  # objects x 4: centre and size, in shares of the image
    height: int  # of the image as it is
    width: int


class ObjectDetection:
    """A `Meeting` with a loss of its own (`OwnLoss`)."""

    def __init__(self, plan: TaskPlan, processor: Any) -> None:
        assert plan.answers is not None
        self.plan, self.processor, self.labels = plan, processor, [*plan.answers]

    def example(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Seen:
        image = row["image"]
        opened = image.open() if isinstance(image, Drawn) else open_image(image, row["place"])
        objects = [
            {**one, "category_id": self.labels.index(one["label"])}
            for one in json.loads(row["objects"])
            if not one["iscrowd"]
        ]
        size = {}
        edges = self.plan.task.dataset.shortest_edges
        if training and edges:
            longest = self.processor.size["longest_edge"]
            size = {"size": {"shortest_edge": int(rng.choice(edges)), "longest_edge": longest}}
        annotations = {"image_id": 0, "annotations": objects}
        made = self.processor(opened, annotations=annotations, return_tensors="pt", **size)
        [found] = made["labels"]
        labels, boxes = found["class_labels"], found["boxes"].reshape(-1, 4)
        return Seen(made["pixel_values"][0], labels, boxes, opened.height, opened.width)

    def batch(self, examples: Sequence[Seen]) -> dict[str, torch.Tensor]:
        """Images and objects are padded to the most of the batch."""
        n, most = len(examples), max(len(one.labels) for one in examples)
        height, width = (max(one.pixels.shape[i] for one in examples) for i in (1, 2))
        batch = {
            "pixel_values": torch.zeros(n, examples[0].pixels.shape[0], height, width),
            "pixel_mask": torch.zeros(n, height, width, dtype=torch.long),
            "labels": torch.full((n, most), IGNORED),
            "boxes": torch.zeros(n, most, 4),
        }
        for i, one in enumerate(examples):
            _, height, width = one.pixels.shape
            batch["pixel_values"][i, :, :height, :width] = one.pixels
            batch["pixel_mask"][i, :height, :width] = 1
            batch["labels"][i, : len(one.labels)] = one.labels
            batch["boxes"][i, : len(one.labels)] = one.boxes
        return batch

    def loss(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's own loss, which is a mean, times the images; and the logits."""
        there = batch["labels"] != IGNORED
        objects = [
            {"class_labels": labels[own], "boxes": boxes[own]}
            for labels, boxes, own in zip(batch["labels"], batch["boxes"], there, strict=True)
        ]
        found = self._found(model, batch, labels=objects)
        return found.loss * len(objects), found.logits

    def logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Images x queries x (labels and, last, nothing)."""
        logits: torch.Tensor = self._found(model, batch).logits
        return logits

    def answers(
        self, model: torch.nn.Module, examples: Sequence[Seen], device: torch.device
    ) -> list[str]:
        """JSON lists of {label, bbox, score}, boxes as x, y, width, height in pixels of the image."""
        batch = moved(self.batch(examples), device)
        sizes = torch.tensor([(one.height, one.width) for one in examples], device=device)
        found = self.processor.post_process_object_detection(
            self._found(model, batch), threshold=0.0, target_sizes=sizes
        )
        return [json.dumps([*self._objects(one)]) for one in found]

    def _objects(self, found: Mapping[str, torch.Tensor]) -> Any:
        values = (found[key].tolist() for key in ("scores", "labels", "boxes"))
        for score, label, (left, top, right, bottom) in zip(*values, strict=True):
            box = [round(n, 2) for n in (left, top, right - left, bottom - top)]
            yield {"label": self.labels[label], "bbox": box, "score": round(score, 4)}

    def _found(self, model: torch.nn.Module, batch: Mapping[str, Any], **more: Any) -> Any:
        return model(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"], **more)


MEETING = ObjectDetection
