"""Files of CL_Benchmark and of O-LoRA's task configurations, read and checked. Standard library only.

<data_dir>/<Group>/<dataset>/{train,dev,test}.json     [{"sentence": ..., "label": ...}, ...]
<data_dir>/<Group>/<dataset>/labels.json               ["True", "False"], in the order of prompts
<task_config_dir>/<task>/{train,dev,test}_tasks.json   {"<Group>": [{"sampling strategy": "full",
                                                        "dataset name": "<dataset>"}, ...], ...}
<instruction_file>       {"<Group>": [{"instruction_type": "zero-shot", "instruction": "...\\n"}]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from train.config.typed import SettingsError, nearest
from train.data.cache import remedy

SPLITS = ("train", "dev", "test")
STRATEGIES = ("random", "full", "sample")
UNLABELLED = ("-", "")  # 131 test rows of the published MNLI have '-'
TYPES = ("zero-shot", "few-shot")


@dataclass(frozen=True)
class Entry:
    """One dataset of a task-config file."""

    group: str
    dataset: str
    strategy: str

    def __str__(self) -> str:
        return f"{self.group}/{self.dataset}"


@dataclass(frozen=True)
class Item:
    """One labelled row of a split; `number` counts the rows of its file from 0."""

    sentence: str
    label: str
    number: int


@dataclass(frozen=True)
class Split:
    """The rows of a file that have a label, in its order."""

    path: Path
    items: tuple[Item, ...]
    unlabelled: int  # rows left out


def task_folder(root: Path, name: str) -> Path:
    """The task-config folder of a task below `root`.

    The one called like the task; else the only one that is called so in another case, or goes on with
    `_`: `boolqa` finds `BoolQA_40_1`. Raises SettingsError.
    """
    if not root.is_dir():
        raise SettingsError(
            f"task_config_dir={root}: no such folder (looked from {Path.cwd()}). It holds a folder "
            "per task with train_tasks.json, dev_tasks.json and test_tasks.json"
            f"{remedy(root)}"
        )
    if (root / name).is_dir():
        return root / name
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    wanted = name.lower()
    found = [f for f in folders if f.lower() == wanted or f.lower().startswith(f"{wanted}_")]
    if len(found) != 1:
        several = f"it could be {', '.join(found)}" if found else f"there are {', '.join(folders)}"
        raise SettingsError(
            f"task.{name}: no folder '{name}' in task_config_dir={root}; {several}"
            f"{nearest(name, folders)}. task.{name}.dataset.task_config names a folder"
        )
    return root / found[0]


def read_entries(folder: Path, split: str) -> dict[str, Entry]:
    """The datasets of `<folder>/<split>_tasks.json` by group/name, in its order. Raises SettingsError."""
    path = folder / f"{split}_tasks.json"
    entries: dict[str, Entry] = {}
    for group, listed in _mapping(path).items():
        if not isinstance(listed, list):
            raise SettingsError(f"{path}: {group}: must be a list of datasets, not {listed!r}")
        for one in listed:
            name = one.get("dataset name") if isinstance(one, dict) else None
            if not isinstance(name, str) or not name:
                raise SettingsError(
                    f"{path}: {group}: {one!r}: must be a mapping with 'dataset name'"
                )
            if stray := [k for k in one if k not in ("dataset name", "sampling strategy")]:
                raise SettingsError(
                    f"{path}: {group}/{name}: unknown key '{stray[0]}'; there are 'dataset name' and "
                    "'sampling strategy' (with a blank)"
                )
            strategy = one.get("sampling strategy", "random")
            if strategy not in STRATEGIES:
                raise SettingsError(
                    f"{path}: {group}/{name}: sampling strategy '{strategy}': must be random (the first "
                    "rows), full (all rows) or sample (drawn by evaluation.split_seed)"
                )
            entry = Entry(group, name, strategy)
            if str(entry) in entries:
                raise SettingsError(f"{path}: {entry} stands twice")
            entries[str(entry)] = entry
    return entries


def dataset_folder(root: Path, entry: Entry) -> Path:
    """The folder of a dataset. Raises SettingsError for an unknown group or dataset."""
    if not root.is_dir():
        raise SettingsError(
            f"data_dir={root}: no such folder (looked from {Path.cwd()}). It is CL_Benchmark itself: "
            "<data_dir>/<Group>/<dataset>/train.json"
        )
    for folder, name, what in (
        (root, entry.group, "group"),
        (root / entry.group, entry.dataset, "dataset"),
    ):
        # By the names listed: some file systems find `boolqa` where `BoolQA` is meant.
        known = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if name not in known:
            raise SettingsError(
                f"data_dir={root}: no {what} '{name}' in {folder}{nearest(name, known)} "
                f"(there are {', '.join(known) or 'none'})"
            )
    return root / entry.group / entry.dataset


def read_labels(folder: Path) -> tuple[str, ...]:
    """The labels of a dataset in the order of its prompts. Raises SettingsError."""
    path = folder / "labels.json"
    labels = _json(path)
    if not isinstance(labels, list) or not labels or not all(isinstance(x, str) for x in labels):
        raise SettingsError(f"{path}: must be a JSON list of texts")
    if len(set(labels)) < len(labels):
        raise SettingsError(f"{path}: a label stands twice: {', '.join(labels)}")
    return tuple(labels)


def read_split(folder: Path, split: str, labels: Sequence[str]) -> Split:
    """The labelled rows of a split. Raises SettingsError."""
    path = folder / f"{split}.json"
    if not path.is_file():
        there = sorted(file.name for file in folder.glob("*.json"))
        raise SettingsError(
            f"{path}: the split '{split}' is missing (there are {', '.join(there) or 'no files'})"
        )
    stamp = path.stat()
    return _split(path, tuple(labels), stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=64)
def _split(path: Path, labels: tuple[str, ...], mtime_ns: int, size: int) -> Split:
    rows = _json(path)
    if not isinstance(rows, list):
        raise SettingsError(f"{path}: must be a JSON list of rows")
    items: list[Item] = []
    for number, row in enumerate(rows):
        values = [row.get(k) if isinstance(row, dict) else None for k in ("sentence", "label")]
        sentence, label = values
        if not isinstance(sentence, str) or not isinstance(label, str):
            raise SettingsError(
                f"{path}, row {number + 1}: must be a mapping with the texts 'sentence' and 'label', "
                f"not {str(row)[:80]}"
            )
        if label in labels:
            items.append(Item(sentence, label, number))
        elif label.strip() not in UNLABELLED:
            raise SettingsError(
                f"{path}, row {number + 1}: label '{label}' is not in labels.json "
                f"({', '.join(labels)}){nearest(label, labels)}"
            )
    return Split(path, tuple(items), len(rows) - len(items))


def read_instructions(path: Path) -> dict[str, tuple[str, ...]]:
    """Group -> its zero-shot instructions, those of few-shot left out. Raises SettingsError."""
    found: dict[str, tuple[str, ...]] = {}
    for group, listed in _mapping(path).items():
        own: list[str] = []
        for one in listed if isinstance(listed, list) else [listed]:
            kind = one.get("instruction_type") if isinstance(one, dict) else None
            text = one.get("instruction") if isinstance(one, dict) else None
            if kind not in TYPES or not isinstance(text, str):
                raise SettingsError(
                    f"{path}: {group}: {str(one)[:80]}: must have an 'instruction' (text) and an "
                    f"'instruction_type', {' or '.join(TYPES)}"
                )
            own += [text] if kind == "zero-shot" else []
        found[group] = tuple(own)
    return found


def prompt(
    group: str,
    dataset: str,
    instruction: str | None,
    labels: Sequence[str],
    sentence: str,
    add_task_name: bool = True,
    add_dataset_name: bool = True,
) -> str:
    """What a model reads, character for character as O-LoRA's published code writes it.

    Without an instruction there are no options either. Braces mean nothing: the original formats a
    template and sends it unfilled where a sentence has one.
    """
    made = f"Task:{group}\n" if add_task_name else ""
    made += f"Dataset:{dataset}\n" if add_dataset_name else ""
    if instruction is not None:
        made += f"{instruction}Option: {', '.join(labels)} \n"
    return f"{made}{sentence}\nAnswer:"


def _json(path: Path) -> Any:
    """Raises SettingsError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file (looked from {Path.cwd()})") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read as JSON: {error}") from error


def _mapping(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: must be a mapping from groups, not {type(content).__name__}")
    return content
