"""Chains of two tasks under each method that is no O-LoRA: what it trains, saves and goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.runs import finish, meeting_of, planned

QUICK = ("+trainer.max_steps=3", "trainer.per_device_train_batch_size=4",
         "evaluation.dev_share=0.02", "evaluation.test_share=0.02")  # fmt: skip


def of(folder: Path, *more: str) -> list[str]:
    return ["model=pretrained", f"model.path={folder}", *more]


def grown(make: Any, folders: Any, folder: Path, method: str, *more: str) -> list[Any]:
    """Results of a chain of two tasks under a method."""
    done: list[Any] = []
    for place, task in enumerate(("sentiment", "parity"), start=1):
        begun = f"init_from={done[-1]['checkpoint']}" if done else "init_from=null"
        job = make(*of(folders("bert")), *QUICK, f"delta={method}", f"task={task}", begun,
                   "trainer.learning_rate=0.03", *more)  # fmt: skip
        done.append(finish(job, folder / str(place)))
    return done


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(folder)
    return found


def test_inclora_is_olora_whose_penalty_is_logged_and_weighs_nothing(
    make: Any, folders: Any, tmp_path: Path
) -> None:
    penalised, free, plain = (
        grown(make, folders, tmp_path / name, method, *more)
        for name, method, more in (
            ("a", "lora", ("delta.lamda_1=3",)),
            ("b", "inclora", ("+delta.lamda_1=3",)),
            ("c", "lora", ("delta.lamda_1=0",)),
        )
    )
    adapter = "checkpoint/task2/adapter_model.safetensors"
    a, b, c = (weights_of(tmp_path / name / "2" / adapter) for name in "abc")
    assert free[1]["orthogonal_loss"] > penalised[1]["orthogonal_loss"] > 0
    assert all(torch.equal(b[key], c[key]) for key in b)
    assert any(not torch.equal(a[key], b[key]) for key in b)
    assert plain[1]["train_loss"] == free[1]["train_loss"]


def test_seqlora_trains_the_parents_adapter_on_and_leaves_it_alone_in_the_model(
    make: Any, folders: Any, tmp_path: Path
) -> None:
    from support.runs import loaded

    from train.config.typed import SettingsError

    still = ("trainer.learning_rate=0",)
    grown(make, folders, tmp_path / "a", "seqlora")
    job = make(*of(folders("bert")), *QUICK, "delta=seqlora", "task=parity", *still,
               f"init_from={tmp_path / 'a/1/checkpoint'}")  # fmt: skip
    finish(job, tmp_path / "b")
    one, two, unmoved = (
        weights_of(tmp_path / f"{place}/adapter_model.safetensors")
        for place in ("a/1/checkpoint/task1", "a/2/checkpoint/task2", "b/checkpoint/task2")
    )
    assert all(torch.equal(one[key], unmoved[key]) for key in one)
    assert any(not torch.equal(one[key], two[key]) for key in one)
    chain = loaded(job, tmp_path / "a/2/checkpoint")
    assert [*chain.model.peft_config] == ["task2"]
    with pytest.raises(SettingsError, match=r"delta\.lora_dim=4: the adapter of the chain has 8"):
        finish(make(*of(folders("bert")), *QUICK, "delta=seqlora", "task=parity",
                    "delta.lora_dim=4", f"init_from={tmp_path / 'a/1/checkpoint'}"),
               tmp_path / "c")  # fmt: skip


def test_seqft_saves_whole_models_and_goes_on_from_the_last(
    make: Any, folders: Any, tmp_path: Path
) -> None:
    from train.chain import CheckpointError

    grown(make, folders, tmp_path, "seqft")
    base, one, two = (
        weights_of(folder / "model.safetensors")
        for folder in (
            folders("bert"),
            tmp_path / "1/checkpoint/base",
            tmp_path / "2/checkpoint/base",
        )
    )
    moved = [k for k in base if "encoder" in k and not torch.equal(base[k], one[k])]
    assert moved and any(not torch.equal(one[key], two[key]) for key in moved)
    # An adapter may follow: it is on the last whole model.
    on = make(*of(folders("bert")), *QUICK, f"init_from={tmp_path / '2/checkpoint'}")
    finish(on, tmp_path / "3")
    assert (tmp_path / "3/checkpoint/task3/adapter_config.json").is_file()
    with pytest.raises(
        CheckpointError, match=r"holds adapters, and delta\._name=seqlora goes on from"
    ):
        finish(make(*of(folders("bert")), *QUICK, "delta=seqlora",
                    f"init_from={tmp_path / '3/checkpoint'}"), tmp_path / "4")  # fmt: skip


def test_the_fisher_of_ewc_is_the_mean_over_rows_of_squared_gradients(
    make: Any, folders: Any, tmp_path: Path
) -> None:
    """Row by row with backward(), on the saved chain; the penalty by hand from it."""
    from support.runs import loaded

    from train.data.rows import load as load_rows
    from train.delta.ewc import EWC, ElasticityOff

    few = ("evaluation.dev_share=0.48", "evaluation.test_share=0.48")  # what is left is trained on
    grown(make, folders, tmp_path, "ewc", *few)
    job = make(*of(folders("bert")), *QUICK, "delta=ewc", *few)
    saved = weights_of(tmp_path / "1/checkpoint/task1/fisher.safetensors")
    model = loaded(job, tmp_path / "1/checkpoint").model.eval()
    task, [plan] = meeting_of(job), planned(job).values()
    model.set_requires_grad("task1", True)
    train = load_rows(plan, job.evaluation).train(0)
    own = {n.replace(".task1.", "."): p for n, p in model.named_parameters() if ".task1." in n}
    total = {name: torch.zeros_like(p) for name, p in own.items()}
    # The template of a row is drawn by the seed of the run, as in training.
    seed = int(np.random.SeedSequence([0, 1]).generate_state(1)[0])
    for i, row in enumerate(train):
        one = task.example(row, np.random.default_rng([seed, 0, i]), False, "row")
        model.zero_grad()
        batch = task.batch([one])
        torch.nn.functional.cross_entropy(task.logits(model, batch), batch["labels"]).backward()
        for name, p in own.items():
            total[name] += p.grad**2
    assert saved.keys() == total.keys()
    for name, value in total.items():
        torch.testing.assert_close(saved[name], value / len(train), rtol=1e-4, atol=1e-9)

    delta = EWC(job.delta)
    from train.model.checkpoints import load
    from train.model.family import family_of

    chain = load(tmp_path / "1/checkpoint", family_of(job.model), delta)
    delta.attach(chain.model, "task2", chain.deltas)
    assert delta.penalty().parts["ewc_loss"] == 0  # nothing has moved yet
    with torch.no_grad():
        for p in delta._weights().values():
            p += 0.5
    expected = sum(value.sum().item() for value in saved.values()) * 0.5**2 / 2
    assert delta.penalty().parts["ewc_loss"].item() == pytest.approx(expected, rel=1e-4)
    delta.old, delta.is_on = {k: torch.zeros_like(v) for k, v in saved.items()}, False
    with pytest.raises(ElasticityOff, match=r"penalty is 0\.0 although the adapter has moved"):
        delta.penalty()
