"""The tasks' images: who gets which, and that nobody shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from support.runs import meeting_of, planned

from train.data import generated
from train.data.generated import digits
from train.data.rows import load
from train.data.tables import DataError

TASKS = ["digits_01", "digits_23", "digits_45", "digits_67", "digits_89"]


def rows_of(job: Any) -> Any:
    return load(planned(job)[job.task.name], job.evaluation)


def parts(job: Any) -> dict[str, set[bytes]]:
    rows = rows_of(job)
    by_name = {"train": rows.train(0), "dev": rows.dev, "test": rows.test}
    return {name: {row["image"].tobytes() for row in part} for name, part in by_name.items()}


def test_the_five_tasks_use_every_image_once(make_job: Any) -> None:
    rows = [r for task in TASKS for part in parts(make_job(f"task={task}")).values() for r in part]
    images, _ = digits()
    assert sorted(rows) == sorted(image.tobytes() for image in images)


@pytest.mark.parametrize("task", TASKS)
def test_each_part_has_its_share_of_each_digit(make_job: Any, task: str) -> None:
    _, labels = digits()
    job = make_job(f"task={task}", "evaluation.dev_share=0.3", "evaluation.test_share=0.2")
    rows = rows_of(job)
    for digit in job.task.options:
        total = int((labels == digit).sum())
        for part, share in ((rows.train(0), 0.5), (rows.dev, 0.3), (rows.test, 0.2)):
            count = sum(row["label"] == str(digit) for row in part)
            assert count == pytest.approx(share * total, abs=1)


def test_the_split_depends_on_its_own_seed_and_not_on_the_seed_of_training(make_job: Any) -> None:
    assert parts(make_job("seed=1")) == parts(make_job("seed=2"))
    assert parts(make_job("evaluation.split_seed=1")) != parts(make_job("evaluation.split_seed=2"))


def test_an_image_stays_in_its_part_whichever_task_asks(make_job: Any) -> None:
    pair, crossing = (
        parts(make_job("task=digits_01")),
        parts(make_job("task.digits_01.options=[1,2]")),
    )
    for name in ("train", "dev", "test"):
        others = set().union(*(crossing[o] for o in ("train", "dev", "test") if o != name))
        assert pair[name] & crossing[name] and not pair[name] & others


def test_a_copy_of_an_image_in_another_part_is_refused(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).normal(size=(16, 8, 8)).astype(np.float32)
    images[8:] = images[0]
    monkeypatch.setattr(generated, "digits", lambda: (images, np.arange(16) // 8))
    with pytest.raises(DataError, match=r"task digits_01: the row .*'label': '1'.* is in '"):
        rows_of(make_job())


def test_pixels_and_classes_are_those_of_scikit_learn(make_job: Any) -> None:
    bunch = load_digits()
    job = make_job("task=digits_67")
    row = next(r for r in rows_of(job).dev if r["label"] == "7")
    task = meeting_of(job)
    made = task.example(row, np.random.default_rng(0), False, "row")
    sevens = bunch.images[bunch.target == 7]
    assert any(np.array_equal((made.content[0] + 1) * 8, image) for image in sevens)
    assert task.classes == [6, 7] and made.label == 7


def test_an_answer_is_always_one_of_the_options(make_job: Any) -> None:
    job = make_job("task=digits_67")
    task = meeting_of(job)

    class Head(torch.nn.Module):
        """Ten logits per image; the highest are no options."""

        def forward(self, pixel_values: torch.Tensor) -> Any:
            self.logits = torch.tensor([[9.0, 0, 0, 0, 0, 0, 1, 2, 0, 0]] * len(pixel_values))
            return self

    rows = rows_of(job).dev[:3]
    made = [task.example(r, np.random.default_rng(0), False, "row") for r in rows]
    assert task.answers(Head(), made, torch.device("cpu")) == ["7"] * 3
