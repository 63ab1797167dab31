"""Small folders in CL_Benchmark's format, as a user would bring them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[tuple[str, str]]  # sentence, label


def rows(name: str, count: int, labels: Sequence[str] = ("True", "False")) -> Rows:
    """`count` different sentences, their labels taking turns."""
    return [(f"{name} sentence {i}", labels[i % len(labels)]) for i in range(count)]


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def dataset(
    root: Path,
    place: str,
    train: Rows | None = None,
    dev: Rows | None = None,
    test: Rows | None = None,
    labels: Sequence[str] = ("True", "False"),
) -> None:
    """A dataset `<Group>/<dataset>`, eight rows of train, four of the others unless given."""
    name = place.replace("/", " ")
    parts = {
        "train": rows(f"{name} train", 8, labels) if train is None else train,
        "dev": rows(f"{name} dev", 4, labels) if dev is None else dev,
        "test": rows(f"{name} test", 4, labels) if test is None else test,
    }
    for split, own in parts.items():
        written = [{"label": label, "sentence": sentence} for sentence, label in own]
        put(root / "CL_Benchmark" / place / f"{split}.json", written)
    put(root / "CL_Benchmark" / place / "labels.json", list(labels))


def configure(root: Path, task: str, **splits: Mapping[str, Sequence[Any]]) -> None:
    """A task-config folder; datasets by group, as names (full) or as entries."""
    for split in ("train", "dev", "test"):
        listed = splits.get(split, splits["train"])
        content = {
            group: [
                {"sampling strategy": "full", "dataset name": one} if isinstance(one, str) else one
                for one in own
            ]
            for group, own in listed.items()
        }
        put(root / "configs" / task / f"{split}_tasks.json", content)


def overrides(root: Path, *more: str) -> list[str]:
    return [
        f"data_dir={root / 'CL_Benchmark'}",
        f"task_config_dir={root / 'configs'}",
        "model=unify_tiny",
        *more,
    ]
