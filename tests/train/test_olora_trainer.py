"""One step of our Trainer against arithmetic done by hand; its guards."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import second_task, trainings
from transformers import TrainingArguments

from train.delta.olora import (
    OrthogonalityOff,
    a_norm,
    by_shape,
    factors,
    l2_loss,
    orthogonal_loss,
)
from train.loop.trainer import Diverged, UpdateTrainer, train


def eight(job: Any) -> list[Any]:
    """The job's task with eight rows to train on, as the trainer wants it."""
    return trainings(job, 8, every=22)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


STEP = ("+trainer.optim=sgd", "+trainer.max_steps=1", "trainer.max_grad_norm=0")
PENALTIES = ("delta.lamda_1=0.5", "delta.lamda_2=0.1", "trainer.learning_rate=0.1")


def one_step(make_job: Any, folder: Path, batch: int, accumulation: int) -> dict[str, torch.Tensor]:
    sizes = (f"trainer.per_device_train_batch_size={batch}",
             f"trainer.gradient_accumulation_steps={accumulation}")  # fmt: skip
    job = make_job(*STEP, *PENALTIES, *sizes)
    model, delta = second_task(job, seed=1)
    report = train(model, eight(job), delta, job, 0, folder)
    assert report.steps == 1 and report.delta["orthogonal_loss_first"] > 0
    return weights(model)


def by_hand(make_job: Any) -> dict[str, torch.Tensor]:
    """w - lr * gradient of (cross entropy of the two options + penalties), written out."""
    job = make_job(*PENALTIES)
    model, delta = second_task(job, seed=1)
    [training] = eight(job)
    rows = training.rows.train(0)
    images = torch.stack([torch.from_numpy(row["image"])[None] for row in rows])
    labels = torch.tensor([job.task.options.index(int(row["label"])) for row in rows])
    assert set(labels.tolist()) == {0, 1}
    logits = model(pixel_values=images).logits[:, list(job.task.options)]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    for m in delta.modules:
        for old in m.a_old:
            for new in m.a_new:
                loss = loss + 0.5 * (old * new).sum().abs()
        loss = loss + 0.1 * (m.a_new**2).sum().sqrt() + 0.1 * (m.b_new**2).sum().sqrt()
    loss.backward()
    return {n: (p - 0.1 * p.grad).detach() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4), (3, 3)])
def test_a_step_is_the_gradient_of_the_whole_loss_however_the_batch_is_accumulated(
    make_job: Any, tmp_path: Path, batch: int, accumulation: int
) -> None:
    trained, expected = one_step(make_job, tmp_path, batch, accumulation), by_hand(make_job)
    assert trained.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, rtol=1e-5, atol=1e-6)


def test_a_step_is_to_the_last_bit_that_of_the_formula_in_its_order(
    make_job: Any, tmp_path: Path
) -> None:
    """Loss, L_orth, L_l2: autograd adds three gradients of A up by when each was computed.

    A chain multiplies a last bit into other accuracies, so results of old runs stay comparable.
    """
    trained = one_step(make_job, tmp_path, 8, 1)
    job = make_job(*PENALTIES)
    model, delta = second_task(job, seed=1)
    modules = delta.modules
    [training] = eight(job)
    batch = training.task.batch([training.example(0, i) for i in training.order(0)])
    loss = torch.nn.functional.cross_entropy(training.task.logits(model, batch), batch["labels"])
    (loss + 0.5 * orthogonal_loss(by_shape(modules)) + 0.1 * l2_loss(by_shape(modules))).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            expected = parameter.detach().add(parameter.grad, alpha=-0.1)
            assert torch.equal(trained[name], expected), name


def test_training_moves_the_new_adapter_and_nothing_else(make_job: Any, tmp_path: Path) -> None:
    job = make_job("delta.lora_dropout=0.2")
    model, delta = second_task(job, seed=1)
    before = copy.deepcopy(model.state_dict())
    train(model, eight(job), delta, job, 0, tmp_path)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if ".task3." in k}


def test_an_orthogonal_loss_of_zero_at_the_first_step_is_an_error(
    make_job: Any, tmp_path: Path
) -> None:
    job = make_job("delta.lamda_1=0")  # the guard does not depend on the weight
    model, delta = second_task(job, seed=1)
    for module in factors(model, "ancestors", []):
        torch.nn.init.zeros_(module.a_new)
    with pytest.raises(OrthogonalityOff, match=r"orthogonal loss is 0\.0 at the first step"):
        train(model, eight(job), delta, job, 0, tmp_path)


def test_a_loss_that_is_not_a_number_is_an_error_and_not_a_low_score(
    make_job: Any, tmp_path: Path
) -> None:
    job = make_job("trainer.learning_rate=1e30", "trainer.num_train_epochs=3")
    model, delta = second_task(job, seed=1)
    with pytest.raises(Diverged, match=r"loss is nan at step 2 of 3 .*learning_rate=1e\+30"):
        train(model, eight(job), delta, job, 0, tmp_path)


def test_the_parts_of_the_loss_are_logged_apart_and_also_without_weight(
    make_job: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job("delta.lamda_1=0", "delta.lamda_2=0", "trainer.logging_steps=1")
    model, delta = second_task(job, seed=1)
    with caplog.at_level("INFO"):
        report = train(model, eight(job), delta, job, 0, tmp_path)
    for key in ("task_loss", "orthogonal_loss", "l2_loss", "a_norm"):
        assert key in caplog.text
    groups = by_shape(delta.modules)
    for key, of in (("orthogonal_loss", orthogonal_loss), ("l2_loss", l2_loss), ("a_norm", a_norm)):
        assert report.delta[key] == pytest.approx(of(groups).item())


@pytest.mark.parametrize(("updates", "warmup"), [(1, 0.06), (5, 5), (5, 50), (3, 0.99)])
def test_a_training_that_is_all_warm_up_has_a_polynomial_schedule(
    tmp_path: Path, updates: int, warmup: float
) -> None:
    trainer = object.__new__(UpdateTrainer)
    trainer.args = TrainingArguments(
        str(tmp_path), lr_scheduler_type="polynomial", warmup_steps=warmup, learning_rate=1.0
    )
    trainer.lr_scheduler = None
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = trainer.create_scheduler(updates, optimizer)
    rates = []
    for _ in range(updates):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    steps = warmup if warmup >= 1 else -(-updates * warmup // 1)
    assert rates == pytest.approx([step / steps for step in range(updates)])
