"""Rows of a task of class cl_benchmark: its datasets, as its task-config folder names them.

A task is trained on the datasets of its train_tasks.json and evaluated on these: dev_tasks.json and
test_tasks.json say by which rows. What they list beyond is some other task's, which every job of a chain
evaluates as well once it is seen.
"""

from __future__ import annotations

import filecmp
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from train.config.task import Task
from train.config.text_data import SHIPPED, TextData, config_root
from train.config.typed import SettingsError
from train.data.benchmark import (
    SPLITS,
    Entry,
    Item,
    Split,
    dataset_folder,
    prompt,
    read_entries,
    read_instructions,
    read_labels,
    read_split,
    task_folder,
)
from train.data.tables import Row

log = logging.getLogger(__name__)

COLUMNS = ("prompt", "answer", "sentence", "group", "dataset", "instance")
TEMPLATE = "[TEXT:prompt,verbatim] -> [TEXT:answer]"
CLOSED_TEMPLATE = "[TEXT:prompt,verbatim] -> [TEXT:answer,closed_set]"


@dataclass(frozen=True)
class TextRows:
    """The rows of one task, with `COLUMNS`; all that could be wrong with them was refused."""

    train: tuple[Row, ...]
    dev: tuple[Row, ...]
    test: tuple[Row, ...]
    labels: tuple[str, ...]  # of all its datasets
    selects_on_test: bool  # dev rows are test rows, as allow_test_selection lets them


def limited(
    parts: Mapping[str, Sequence[Row]],
    text: TextData,
    labels: tuple[str, ...] = (),
    selects_on_test: bool = False,
) -> TextRows:
    """The first rows of train, dev and test, as many as `text` lets."""
    limits = (text.max_train_samples, text.max_eval_samples, text.max_predict_samples)
    train, dev, test = (tuple(parts[split][:n]) for split, n in zip(SPLITS, limits, strict=True))
    return TextRows(train, dev, test, labels, selects_on_test)


@dataclass(frozen=True)
class _Dataset:
    """One dataset that a task is trained on, by split; a split that is not listed is empty."""

    entry: Entry
    labels: tuple[str, ...]
    rows: Mapping[str, Sequence[Item]]
    on_test: bool


def read_text_task(task: Task, text: TextData, seed: int) -> TextRows:
    """The rows of a task. seed: of strategy sample, of dev_from_train and of drawn instructions.

    Raises SettingsError, before anything is trained: for what is missing or unknown, for labels that
    labels.json lacks, and where dev rows are test rows.
    """
    folder = _config_folder(task, text)
    root = Path(text.data_dir).absolute() if text.data_dir else SHIPPED / "CL_Benchmark"
    listed = {split: read_entries(folder, split) for split in SPLITS}
    own = listed["train"]
    if not own:
        raise SettingsError(f"{folder / 'train_tasks.json'}: names no dataset to train on")
    if others := [name for name in listed["dev"] | listed["test"] if name not in own]:
        _say(
            log.info,
            f"task {task.name}: {folder} also lists {', '.join(others)} to evaluate on: that is done from "
            "the task on that trains on them (seen_tasks=[...] adds tasks to all jobs)",
        )
    datasets = [_dataset(entry, root, listed, folder, text, seed) for entry in own.values()]
    if not any(one.rows["dev"] for one in datasets):
        raise SettingsError(
            f"{folder / 'dev_tasks.json'}: lists none of {', '.join(own)}, and a job is "
            "selected by its score on them: list them, or set dev_from_train=0.1"
        )
    if empty := [str(one.entry) for one in datasets if not one.rows["train"]]:
        raise SettingsError(f"{root}: no labelled row of {', '.join(empty)} is left to train on")
    write = _writer(text, seed)
    made = {
        split: [write(one, split, item) for one in datasets for item in one.rows[split]]
        for split in SPLITS
    }
    labels = tuple(dict.fromkeys(label for one in datasets for label in one.labels))
    return limited(made, text, labels, any(one.on_test for one in datasets))


def _config_folder(task: Task, text: TextData) -> Path:
    root, given = config_root(text.task_config_dir), task.dataset.task_config
    if given is None:
        return task_folder(root, task.name)
    folder = (root if text.task_config_dir else Path.cwd()) / given
    if not folder.is_dir():
        raise SettingsError(f"task.{task.name}.dataset.task_config={given}: no folder {folder}")
    return folder


def _dataset(
    entry: Entry,
    root: Path,
    listed: Mapping[str, Mapping[str, Entry]],
    folder: Path,
    text: TextData,
    seed: int,
) -> _Dataset:
    place, dev_entry = dataset_folder(root, entry), listed["dev"].get(str(entry))
    labels = read_labels(place)
    train: Sequence[Item] = _read(place, "train", labels).items
    test = _read(place, "test", labels) if str(entry) in listed["test"] else None
    tested = test.items if test else ()
    rng = np.random.default_rng([seed, zlib.crc32(str(entry).encode())])
    dev: Sequence[Item] = ()
    on_test = False
    if text.dev_from_train:
        never = {item.sentence for item in tested}
        dev, train = carve(train, labels, text.dev_from_train, never, rng)
        dev_entry = dev_entry or entry
    elif dev_entry:
        read = _read(place, "dev", labels)
        dev, on_test = read.items, test is not None and _shares(read, test, text, folder)
    if dev_entry:
        dev = sampled(dev, dev_entry.strategy, text.max_num_instances_per_eval_task, rng)
    train = sampled(train, entry.strategy, text.max_num_instances_per_task, rng)
    rows = {"train": train, "dev": dev, "test": tested}
    _say_shared(entry, rows)
    return _Dataset(entry, labels, rows, on_test)


def _read(place: Path, split: str, labels: Sequence[str]) -> Split:
    found = read_split(place, split, labels)
    if found.unlabelled:
        total = len(found.items) + found.unlabelled
        _say(
            log.warning,
            f"{found.path}: {found.unlabelled} of {total} rows have no label ('-' or empty) and are "
            "left out",
        )
    return found


def sampled(
    items: Sequence[Item], strategy: str, limit: int, rng: np.random.Generator
) -> tuple[Item, ...]:
    """The rows a sampling strategy takes: random the first `limit` (as O-LoRA does), full all of them.

    sample: `limit` of them drawn evenly by `rng`, in the order of the file.
    """
    if strategy == "full" or len(items) <= limit:
        return tuple(items)
    if strategy == "random":
        return tuple(items[:limit])
    return tuple(items[i] for i in sorted(rng.choice(len(items), limit, replace=False)))


def carve(
    items: Sequence[Item],
    labels: Iterable[str],
    share: float,
    never: set[str],
    rng: np.random.Generator,
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """(dev, train) of training rows: every label gives dev as many rows, `share` of all together.

    A label with too few rows gives at most half of them. No sentence is in both, and none of
    `never` in dev. Raises SettingsError where a label has no row to give.
    """
    by_label = {label: own for label in labels if (own := [i for i in items if i.label == label])}
    each = max(1, round(share * len(items) / max(1, len(by_label))))
    taken: set[str] = set()
    dev: list[Item] = []
    for label, own in by_label.items():
        order = [own[i] for i in rng.permutation(len(own))]
        free = [item for item in order if item.sentence not in never | taken]
        chosen = free[: min(each, len(own) // 2)]
        if not chosen:
            raise SettingsError(
                f"dev_from_train={share}: label '{label}' has {len(own)} training rows, and none to give"
                " to a dev set (one text is in one part only, and at least half of them stay)"
            )
        dev += chosen
        taken |= {item.sentence for item in chosen}
    picked = {item.number for item in dev}
    return (
        tuple(item for item in items if item.number in picked),
        tuple(item for item in items if item.sentence not in taken),
    )


def _shares(dev: Split, test: Split, text: TextData, folder: Path) -> bool:
    """Whether dev rows are test rows. Raises SettingsError unless that is allowed."""
    both = {item.sentence for item in dev.items} & {item.sentence for item in test.items}
    if filecmp.cmp(dev.path, test.path, shallow=False):
        what = f"{dev.path} is the same file as {test.path.name}, byte by byte"
    elif both:
        what = (
            f"{len(both)} texts of {dev.path} are in {test.path.name} as well: {min(both)[:60]!r}"
        )
    else:
        return False
    if not text.allow_test_selection:
        raise SettingsError(
            f"{what} (dev_tasks.json and test_tasks.json of {folder} name both): a search would select "
            "on test data. Set dev_from_train=0.1, which takes dev rows from the training rows, or "
            "allow_test_selection=true, which the results then tell"
        )
    _say(log.warning, f"{what}: selection sees test data, as allow_test_selection=true lets it")
    return True


def _say_shared(entry: Entry, rows: Mapping[str, Sequence[Item]]) -> None:
    train = {item.sentence for item in rows["train"]}
    for split in ("dev", "test"):
        if both := train & {item.sentence for item in rows[split]}:
            what = f"{len(both)} texts of its training rows are in {split} as well"
            _say(log.warning, f"{entry}: {what}")


def _writer(text: TextData, seed: int) -> Callable[[_Dataset, str, Item], Row]:
    """Rows with their prompts. Raises SettingsError for an instruction file that cannot be read."""
    path = Path(text.instruction_file) if text.instruction_file else SHIPPED / "instructions.json"
    instructions = read_instructions(path.absolute())

    def write(dataset: _Dataset, split: str, item: Item) -> Row:
        entry = dataset.entry
        known = instructions.get(entry.group, ())
        if not known:
            _say(
                log.warning,
                f"{path.name}: no instruction for group {entry.group}: its prompts have neither "
                "instruction nor options",
            )
        place = 0
        if text.instruction_strategy == "multiple" and len(known) > 1:
            draw = [seed, zlib.crc32(f"{entry} {split}".encode()), item.number]
            place = int(np.random.default_rng(draw).integers(len(known)))
        written = prompt(
            entry.group,
            entry.dataset,
            known[place] if known else None,
            dataset.labels,
            item.sentence,
            text.add_task_name,
            text.add_dataset_name,
        )
        values = (written, item.label, item.sentence, entry.group, entry.dataset, item.number)
        return dict(zip(COLUMNS, values, strict=True))

    return write


@cache
def _say(log_it: Callable[..., None], message: str) -> None:
    """Once in a process, which reads the same files for every job it checks."""
    log_it("%s", message)
