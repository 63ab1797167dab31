"""The tasks' images: who gets which, and that nobody shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

TASKS = ["digits_01", "digits_23", "digits_45", "digits_67", "digits_89"]


def parts(job: Any) -> dict[str, set[int]]:
    from train.data import split

    made = split(job.task, job.evaluation)
    return {name: set(getattr(made, name).tolist()) for name in ("train", "dev", "test")}


def test_the_five_tasks_use_every_image_once(make_job: Any) -> None:
    rows = [r for task in TASKS for part in parts(make_job(f"task={task}")).values() for r in part]
    assert sorted(rows) == list(range(1797))


@pytest.mark.parametrize("task", TASKS)
def test_each_part_has_its_share_of_each_digit(make_job: Any, task: str) -> None:
    from train.data import digits

    _, labels = digits()
    job = make_job(f"task={task}", "evaluation.dev_share=0.3", "evaluation.test_share=0.2")
    made = parts(job)
    for digit in job.task.options:
        total = int((labels == digit).sum())
        for name, share in (("train", 0.5), ("dev", 0.3), ("test", 0.2)):
            count = int((labels[list(made[name])] == digit).sum())
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


def test_a_row_in_two_parts_is_refused() -> None:
    from train.data import DataOverlap, Split

    with pytest.raises(DataOverlap, match="image 7 of the digits is in 'train' and in 'test'"):
        Split(train=np.array([3, 7]), dev=np.array([4]), test=np.array([7]))


def test_a_copy_of_an_image_in_another_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from train import data

    images = np.zeros((3, 8, 8), np.float32)
    images[1] = 1
    monkeypatch.setattr(data, "digits", lambda: (images, np.zeros(3, np.int64)))
    with pytest.raises(data.DataOverlap, match="image 2 of the digits is in 'dev' and in 'test'"):
        data.Split(train=np.array([1]), dev=np.array([0]), test=np.array([2]))


def test_pixels_and_options_are_those_of_scikit_learn(make_job: Any) -> None:
    from sklearn.datasets import load_digits

    from train.data import Examples

    bunch = load_digits()
    item = Examples(make_job("task=digits_67").task, np.flatnonzero(bunch.target == 7))[0]
    first = bunch.images[bunch.target == 7][0]
    np.testing.assert_allclose((item["pixel_values"][0] + 1) * 8, first)
    assert item["labels"] == 7 and item["options"].nonzero().flatten().tolist() == [6, 7]


def test_a_guess_is_always_one_of_the_options(make_job: Any) -> None:
    import torch

    from train.evaluation import among_options

    logits = torch.tensor([[9.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    options = torch.tensor([[False, True, True], [True, False, True]])
    assert among_options(logits, options).argmax(-1).tolist() == [2, 2]
