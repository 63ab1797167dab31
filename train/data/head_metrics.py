"""Metrics of spans, tags and boxes, on answers and truths as text; computed by kept libraries.

    squad      torchmetrics' SQuAD: right answers apart by tabs, an empty one where there is none
    seqeval    seqeval's: tags apart by blanks, whole names count
    coco_map   pycocotools': JSON lists of {label, bbox, score}, of truths with area and iscrowd

All lie in [0, 1]; coco_map is -1 where no truth has a box.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout

LOGGED: Mapping[str, tuple[str, ...]] = {
    "squad": ("f1", "exact_match"),
    "seqeval": ("f1", "precision", "recall", "tag_accuracy"),
    "coco_map": ("map", "map_50", "map_75"),
}
NEEDED = {"squad": ("torchmetrics",), "seqeval": ("seqeval",), "coco_map": ("pycocotools",)}


def head_metric(metric: str, answers: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """Logged name -> value."""
    compute = {"squad": _squad, "seqeval": _seqeval, "coco_map": _coco_map}[metric]
    return dict(zip(LOGGED[metric], compute(answers, truths), strict=True))


def _squad(answers: Sequence[str], truths: Sequence[str]) -> tuple[float, ...]:
    from torchmetrics.functional.text import squad

    pairs = [*enumerate(zip(answers, truths, strict=True))]
    found = squad(
        [{"prediction_text": answer, "id": str(i)} for i, (answer, _) in pairs],
        [
            {"answers": {"text": texts, "answer_start": [0] * len(texts)}, "id": str(i)}
            for i, (_, truth) in pairs
            for texts in [truth.split("\t")]
        ],
    )
    return float(found["f1"]) / 100, float(found["exact_match"]) / 100


def _seqeval(answers: Sequence[str], truths: Sequence[str]) -> tuple[float, ...]:
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    given = [one.split() for one in truths], [one.split() for one in answers]
    scores = (f1_score, precision_score, recall_score)
    return (
        *(float(score(*given, zero_division=0)) for score in scores),
        float(accuracy_score(*given)),
    )


def _coco_map(answers: Sequence[str], truths: Sequence[str]) -> tuple[float, ...]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    boxes = [(i, one) for i, truth in enumerate(truths, start=1) for one in json.loads(truth)]
    found = [(i, one) for i, answer in enumerate(answers, start=1) for one in json.loads(answer)]
    numbers = {label: n for n, label in enumerate({one["label"]: 0 for _, one in boxes}, start=1)}
    # What is found under a label that no truth has counts in no mean over labels.
    found = [(i, one) for i, one in found if one["label"] in numbers]
    if not boxes or not found:
        return (0.0 if boxes else -1.0,) * 3
    with redirect_stdout(io.StringIO()):  # it prints its progress
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(1, len(truths) + 1)],
            "categories": [{"id": n, "name": label} for label, n in numbers.items()],
            "annotations": [
                {"id": n, "image_id": i, **one, "category_id": numbers[one["label"]]}
                for n, (i, one) in enumerate(boxes, start=1)
            ],
        }
        truth.createIndex()
        own = truth.loadRes(
            [{"image_id": i, **one, "category_id": numbers[one["label"]]} for i, one in found]
        )
        evaluation = COCOeval(truth, own, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return tuple(float(value) for value in evaluation.stats[:3])
