"""Chains of two tasks under each method that is no O-LoRA: what it trains, saves and goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support.runs import finish, loaded, meeting_of, of, planned
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from train.chain import CheckpointError
from train.config.typed import SettingsError
from train.data.rows import kept
from train.data.rows import load as load_rows
from train.delta.ewc import EWC, ElasticityOff
from train.model.checkpoints import load
from train.model.family import family_of

QUICK = ("+trainer.max_steps=3", "trainer.per_device_train_batch_size=4",
         "evaluation.dev_share=0.02", "evaluation.test_share=0.02")  # fmt: skip


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
    still = ("trainer.learning_rate=0",)
    grown(make, folders, tmp_path / "a", "seqlora")
    job = make(*of(folders("bert")), *QUICK, "delta=seqlora", "task=parity", *still,
               f"init_from={tmp_path / 'a/1/checkpoint'}")  # fmt: skip
    finish(job, tmp_path / "b")
    places = ("a/1/checkpoint/task1", "a/2/checkpoint/task2", "b/checkpoint/task2")
    one, two, unmoved = (weights_of(tmp_path / p / "adapter_model.safetensors") for p in places)
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
    grown(make, folders, tmp_path, "seqft")
    places = (folders("bert"), *(tmp_path / n / "checkpoint/base" for n in "12"))
    base, one, two = (weights_of(folder / "model.safetensors") for folder in places)
    moved = [k for k in base if "encoder" in k and not torch.equal(base[k], one[k])]
    assert moved and any(not torch.equal(one[key], two[key]) for key in moved)
    # An adapter may follow: it is on the last whole model.
    on = make(*of(folders("bert")), *QUICK, f"init_from={tmp_path / '2/checkpoint'}")
    finish(on, tmp_path / "3")
    assert (tmp_path / "3/checkpoint/task3/adapter_config.json").is_file()
    with pytest.raises(CheckpointError, match=r"adapters, and delta\._name=seqlora goes on from"):
        finish(make(*of(folders("bert")), *QUICK, "delta=seqlora",
                    f"init_from={tmp_path / '3/checkpoint'}"), tmp_path / "4")  # fmt: skip


def test_the_fisher_of_ewc_is_the_mean_over_rows_of_squared_gradients(
    make: Any, folders: Any, tmp_path: Path
) -> None:
    """Row by row with backward(), on the saved chain; the penalty by hand from it."""
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

    def second_task() -> EWC:
        delta = EWC(job.delta)
        chain = load(tmp_path / "1/checkpoint", family_of(job.model), delta)
        delta.attach(chain.model, "task2", chain.deltas)
        return delta

    def move(delta: EWC) -> None:
        with torch.no_grad():
            for p in delta._weights().values():
                p += 0.5

    assert EWC(job.delta).penalty().weighted == 0  # the whole model is trained
    delta = second_task()
    assert delta.penalty().parts["ewc_loss"] == 0  # nothing has moved yet
    move(delta)
    expected = sum(value.sum().item() for value in saved.values()) * 0.5**2 / 2
    assert delta.penalty().parts["ewc_loss"].item() == pytest.approx(expected, rel=1e-4)
    lost = second_task()
    lost.old = {k: torch.zeros_like(v) for k, v in saved.items()}
    move(lost)
    with pytest.raises(ElasticityOff, match=r"penalty is 0\.0 although the adapter has moved"):
        lost.penalty()


def test_replay_keeps_the_same_rows_of_an_earlier_task_and_trains_on_them(
    make: Any, folders: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = make(*of(folders("bert")), "delta=replay", *QUICK)
    [plan] = planned(job).values()
    rows = load_rows(plan, job.evaluation)
    few, again, other = (kept(rows, 5, seed).train(0) for seed in (0, 0, 1))
    assert few == again != other and len(few) == 5
    assert all(row in rows.train(0) for row in few)
    assert len(kept(rows, 10**6, 0).train(3)) == len(rows.train(0))

    with caplog.at_level("INFO"):
        grown(make, folders, tmp_path / "a", "replay", "trainer.logging_steps=1")
    logged = [record.message for record in caplog.records if "task_loss" in record.message]
    assert ["sentiment_loss" in line for line in logged] == [False] * 3 + [True] * 3
    grown(make, folders, tmp_path / "b", "seqlora")
    first, second = (
        [weights_of(tmp_path / name / task) for name in "ab"]
        for task in (f"{n}/checkpoint/task{n}/adapter_model.safetensors" for n in (1, 2))
    )
    assert all(torch.equal(first[0][key], first[1][key]) for key in first[0])
    assert any(not torch.equal(second[0][key], second[1][key]) for key in second[0])
    begun = f"init_from={tmp_path / 'a/1/checkpoint'}"
    with pytest.raises(SettingsError, match=r"delta\.replay_rows=100: rows of task 'sentiment'"):
        finish(make(*of(folders("bert")), *QUICK, "delta=replay", "task=parity", begun,
                    "seen_tasks=[parity]"), tmp_path / "c")  # fmt: skip


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_osf_changes_the_weights_outside_of_their_main_directions_and_saves_the_change(
    make: Any, folders: Any, tmp_path: Path, kind: str
) -> None:
    """The saved adapters in stock peft give the weights; their main directions by numpy's SVD."""
    words = (*of(folders(kind)), *QUICK, "delta=osf", "trainer.learning_rate=0.03")
    begun = "init_from=null"
    for n, task in ((1, "sentiment"), (2, "parity")):
        finish(make(*words, f"task={task}", begun), tmp_path / str(n))
        begun = f"init_from={tmp_path / str(n) / 'checkpoint'}"
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    layer = {
        "t5": "decoder.block.1.layer.1.EncDecAttention.q.weight",
        "llama": "model.layers.1.self_attn.q_proj.weight",
    }[kind]
    weights = [auto.from_pretrained(folders(kind)).state_dict()[layer].double().numpy()]
    for n in (1, 2):
        model = auto.from_pretrained(folders(kind))
        for place in range(1, n + 1):
            adapter = str(tmp_path / f"{place}/checkpoint/task{place}")
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        weights.append(model.state_dict()[layer].double().numpy())
        before, after = weights[-2:]
        left, sizes, right = np.linalg.svd(before)
        half, moved = len(sizes) // 2, after - before
        along = left[:, :half].T @ moved @ right[:half].T
        assert np.abs(moved).max() > 1e-3
        # 0.01 to 0.03: Adam scales the projected gradients. Unconstrained it would be about a half.
        assert np.linalg.norm(along) < 0.1 * np.linalg.norm(moved)
    # The chain as a next task finds it: adapters in memory, not merged.
    chain = loaded(make(*words), tmp_path / "2/checkpoint").model.merge_and_unload()
    torch.testing.assert_close(
        chain.state_dict()[layer], torch.from_numpy(weights[-1]).float(), rtol=0, atol=1e-5
    )


def test_osf_refuses_to_freeze_all_directions(make: Any, folders: Any, tmp_path: Path) -> None:
    for kind, rank, why in (
        ("t5", 16, "nothing is left to train"),
        ("gpt2", 0.5, "no torch.nn.Linear"),
    ):
        job = make(*of(folders(kind)), *QUICK, "delta=osf", f"delta.effective_rank={rank}")
        with pytest.raises(SettingsError, match=f"effective_rank={rank}, .*{why}"):
            finish(job, tmp_path / kind)
