"""Rows of a task of class few_shot: tab-separated files as CrossFit lays them out.

    <data_dir>/<task>/<sample>_{train,dev,test}.tsv       input<TAB>answer[<TAB>another right answer ...]

UTF-8, no header, no quotes. Several samples of one task lie in one folder; CrossFit calls them
<task>_<k>_<seed>. The model reads ` [<task>] <input>` and answers `<extra_id_0> <answer>`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from train.config.task import Task
from train.config.text_data import FEW_SHOT_FILE, TextData
from train.config.typed import SettingsError, nearest
from train.data.benchmark import SPLITS
from train.data.families.records import text_of
from train.data.tables import Row
from train.data.text_tasks import TextRows, limited

COLUMNS = ("prompt", "answer", "answers", "input", "dataset", "line")
TEMPLATE = "[TEXT:prompt,verbatim] -> <extra_id_0> [TEXT:answer]"

# Task -> its metric; the others are scored by ACC. evaluation.metrics of a task says another.
METRICS: Mapping[str, str] = {
    "codah": "Classification-F1",
    **dict.fromkeys(("adversarialqa", "hotpot_qa", "superglue-record"), "QA-F1"),
    **dict.fromkeys(("eli5-askh", "eli5-asks", "eli5-eli5"), "Rouge-L"),
    **dict.fromkeys(
        ("lama-conceptnet", "lama-google_re", "numer_sense", "search_qa", "web_questions"), "EM"
    ),
}


def read_few_shot(task: Task, text: TextData) -> TextRows:
    """All rows of a task's sample. Raises SettingsError with file and line."""
    where = f"task.{task.name}"
    if text.data_dir is None:
        raise SettingsError(
            f"data_dir is not set: {where} of class few_shot is read from <data_dir>/{task.name}/"
        )
    folder = Path(text.data_dir).absolute() / task.name
    stem = _sample(folder, task)
    parts = {part: _read(folder / f"{stem}_{part}.tsv", task.name) for part in SPLITS}
    for one, other in itertools.combinations(parts, 2):
        both = {row["input"] for row in parts[one]} & {row["input"] for row in parts[other]}
        if both and not (text.allow_test_selection and one == "dev"):
            raise SettingsError(
                f"{folder / stem}_{other}.tsv: {len(both)} inputs are in {one} as well: "
                f"{min(both)[:60]!r}. A model is selected on what it was not trained on and reported on "
                "what it was not selected on"
            )
    if empty := [part for part in ("train", "dev") if not parts[part]]:
        raise SettingsError(f"{folder / stem}_{empty[0]}.tsv: has no rows")
    return limited(parts, text)


def _sample(folder: Path, task: Task) -> str:
    """The name before _train.tsv."""
    found = sorted(path.name.removesuffix("_train.tsv") for path in folder.glob(FEW_SHOT_FILE))
    if not found:
        raise SettingsError(f"task.{task.name}: there is no {folder / FEW_SHOT_FILE}")
    wanted = task.dataset.sample
    if wanted is None and len(found) > 1:
        raise SettingsError(
            f"task.{task.name}.dataset.sample is not set, and {folder} has {len(found)} samples: "
            f"{', '.join(found)}"
        )
    if wanted is not None and wanted not in found:
        raise SettingsError(
            f"task.{task.name}.dataset.sample={wanted}: {folder} has {', '.join(found)}"
            f"{nearest(wanted, found)}"
        )
    return wanted or found[0]


def _read(path: Path, task: str) -> list[Row]:
    rows: list[Row] = []
    # Not splitlines(), which ends a line at other marks as well.
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line:
            continue
        text, *answers = line.split("\t")
        answers = [answer for answer in answers if answer.strip()]
        if not answers:
            raise SettingsError(
                f"{path}, line {number}: has no answer; a line is input<TAB>answer, and more right "
                "answers each behind a tab of its own"
            )
        values = (f" [{task}] {text}", answers[0], "\t".join(answers), text, task, number)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def drawn(row: Row, rng: np.random.Generator) -> Row:
    """The row of one visit in training: one of its answers, drawn evenly."""
    answers = str(row["answers"]).split("\t")
    return {**row, "answer": answers[int(rng.integers(len(answers)))]}


def sample(
    train: Sequence[str], test: Sequence[str], k: int, seed: int, classes: bool
) -> dict[str, list[str]]:
    """Lines of a few-shot sample: train shuffled by the seed, first k -> train, next k -> dev.

    classes: k of every answer instead of k in all. The lines of `test` become the test set. Raises
    ValueError where there are too few.
    """
    order = np.random.default_rng(seed).permutation(len(train))
    groups: dict[str, list[str]] = {}
    for i in order:
        label = train[i].partition("\t")[2] if classes else ""
        groups.setdefault(label, []).append(train[i])
    made: dict[str, list[str]] = {"train": [], "dev": [], "test": [*test]}
    for label, own in sorted(groups.items()):
        if len(own) < 2 * k:
            of = f" of answer '{label}'" if classes else ""
            raise ValueError(f"k={k}: {2 * k} lines{of} are needed, and there are {len(own)}")
        made["train"] += own[:k]
        made["dev"] += own[k : 2 * k]
    return made
